"""The shipped Lua scripts, explored exhaustively on a small store: ``python -m tests.model --config ci``."""
