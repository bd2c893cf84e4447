"""The embedded server: one Redis-compatible server per user and host, shared by processes that come and go."""

from __future__ import annotations

from aiogpulock._embedded_binary import ServerBinary, find_server_binary

__all__ = ["ServerBinary", "find_server_binary"]
