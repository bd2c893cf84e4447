"""Notices when one host has two locks: another user's embedded server, or a URL here and the embedded server there.

Best effort throughout: what cannot be seen is not warned about, and nothing here raises. Each warning comes once per
process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aiogpulock.embedded.files import Files, drop_lock, is_locked, open_lock, prepare, wait_lock
from aiogpulock.errors import GpuLockError

LOGGER = logging.getLogger("aiogpulock.embedded")
UNIX_SOCKETS = Path("/proc/net/unix")  # readable by everybody, names the sockets of all users; Linux only
OTHERS_SOCKET = re.compile(r" /tmp/aiogpulock-(\d+)/v\d+/s$", re.MULTILINE)
MARK_TIMEOUT = 0.2  # seconds; somebody who looks whether the lock is taken holds it for an instant

_said: set[str] = set()


def say_once(level: int, topic: str, text: str, *args: object) -> None:
    if topic not in _said:
        _said.add(topic)
        LOGGER.log(level, text, *args)


def forget_what_was_said() -> None:
    """For a forked child, which is a process of its own."""
    _said.clear()


def redacted(url: str) -> str:
    """The URL without user, password and query, fit for a log."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def warn_of_neighbours(files: Files) -> None:
    """Called by a process that uses the embedded server."""
    others = other_users(_unix_sockets(), os.geteuid())
    if others:
        say_once(
            logging.WARNING,
            "other user",
            "uid %s runs an embedded server of its own on this host: its processes and ours do not exclude each other "
            "from a GPU; set REDIS_URL to one server for all",
            ", ".join(map(str, others)),
        )
    if files.url_users_lock.exists() and is_locked(files.url_users_lock):
        _warn_of_two_locks(files, files.url_users_lock.read_text(errors="replace").strip())


def other_users(unix_sockets: str, uid: int) -> list[int]:
    """The uids, but for `uid`, whose embedded server's socket is bound according to the text of `/proc/net/unix`."""
    return sorted({int(other) for other in OTHERS_SOCKET.findall(unix_sockets)} - {uid})


@dataclass
class OtherServer:
    """This process's mark that it uses the server `url`; `close` takes the mark back. Idempotent."""

    url: str
    _lock: int | None = None
    _pid: int = field(default_factory=os.getpid)

    def close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if self._pid == os.getpid():
            drop_lock(lock)
        else:
            os.close(lock)  # a forked child's copy: the mark is the parent's


def announce_other_server(url: str, *, directory: Path | None = None) -> OtherServer:
    """Called by a manager with a URL: warns if this user's embedded server has users here, and warns those who come.

    The URL is written into the directory, and logged, without its credentials.
    """
    other = OtherServer(redacted(url))
    try:
        files = prepare(directory)
        if urlsplit(url).path == str(files.socket):
            return other  # a URL that names the embedded server itself: one lock
        if files.socket.exists() and is_locked(files.users_lock):
            _warn_of_two_locks(files, other.url)
        other._lock = _mark(files, other.url)
    except (GpuLockError, OSError, ValueError):
        LOGGER.debug("cannot tell whether an embedded server is in use here", exc_info=True)
    return other


def _mark(files: Files, url: str) -> int | None:
    lock = open_lock(files.url_users_lock)
    if not wait_lock(lock, fcntl.LOCK_SH, time.monotonic() + MARK_TIMEOUT):
        os.close(lock)
        return None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{url}\n".encode(), 0)
    return lock


def _warn_of_two_locks(files: Files, url: str) -> None:
    say_once(
        logging.WARNING,
        "two locks",
        "two locks on this host: some processes of this user lock their GPUs at %s, others at the embedded server "
        "in %s, and the ones do not exclude the others; set REDIS_URL for all of them, or for none",
        url,
        files.directory,
    )


def _unix_sockets() -> str:
    try:
        return UNIX_SOCKETS.read_text(errors="replace")
    except OSError:
        return ""
