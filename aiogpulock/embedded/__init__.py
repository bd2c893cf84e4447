"""The embedded server: `server` joins and starts it, `supervisor` stops it, `binary` finds it, `files` guards its
directory, `neighbours` warns of others."""

from aiogpulock.embedded.server import EmbeddedServer, announce_other_server, find_server_binary, join

__all__ = ["EmbeddedServer", "announce_other_server", "find_server_binary", "join"]
