"""A GPU lock for async Python: FIFO, event-driven, crash-safe, over Redis."""
