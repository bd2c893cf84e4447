"""Benchmarks: figures that users can repeat. ``python -m benchmarks``; see README.md beside this file."""
