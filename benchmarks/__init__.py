"""Benchmarks: figures that users can repeat. ``python -m benchmarks``."""
