"""Where the embedded server lives: one private directory per user, and the advisory locks in it.

The lock files are never deleted: a process that locks a deleted file and one that locks its successor would both win.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiogpulock.errors import RedisUnavailableError

LAYOUT = "v1"  # a change of the files or of their meaning gets a directory of its own
SOCKET_PATH_LIMIT = 103  # bytes; macOS is the narrowest
OTHER_WAY = "or set REDIS_URL to a server of yours"


@dataclass(frozen=True)
class Files:
    """The paths in one embedded server's directory. `supervisor.py` knows four of them by name."""

    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "s"

    @property
    def users_lock(self) -> Path:
        """Shared by each process that uses the server; the supervisor waits for it exclusively."""
        return self.directory / "users.lock"

    @property
    def boot_lock(self) -> Path:
        """Exclusive while a process joins, looks for a server, or starts one."""
        return self.directory / "boot.lock"

    @property
    def server_lock(self) -> Path:
        """Held by the supervisor and the server as long as either lives. Its content names their pids."""
        return self.directory / "server.lock"

    @property
    def url_users_lock(self) -> Path:
        """Shared by each process whose managers use a URL instead. Its content is the last such URL."""
        return self.directory / "url-users.lock"

    @property
    def start_record(self) -> Path:
        return self.directory / "start.json"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"


def default_directory() -> Path:
    """Not under XDG_RUNTIME_DIR: cron and ssh sessions would disagree about it, and there would be two locks.

    ``AIOGPULOCK_EMBEDDED_DIR`` replaces it; programs that share a GPU must agree on it.
    """
    if chosen := _named_directory():
        return chosen
    return Path(f"/tmp/aiogpulock-{os.geteuid()}", LAYOUT)  # noqa: S108 - ownership, mode and links are checked


def _named_directory() -> Path | None:
    named = os.environ.get("AIOGPULOCK_EMBEDDED_DIR")
    return Path(named).absolute() if named else None


def prepare(directory: Path | None) -> Files:
    """Makes the directory where it is missing and refuses one that another user could have a hand in.

    Of a directory that somebody named, what it lies in is theirs to choose.
    """
    named = _named_directory() if directory is None else directory.absolute()
    chosen = named or default_directory()
    files = Files(chosen)
    length = len(os.fsencode(files.socket))
    if length > SOCKET_PATH_LIMIT:
        raise RedisUnavailableError(
            f"the path {files.socket} is too long for a unix socket ({length} bytes, at most {SOCKET_PATH_LIMIT}); "
            f"use a shorter directory, {OTHER_WAY}"
        )
    for level in (chosen,) if named else (chosen.parent, chosen):
        _make_private(level)
    return files


def _make_private(directory: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
    except FileNotFoundError as error:
        raise RedisUnavailableError(
            f"cannot make the directory {directory}: {directory.parent} does not exist. Make it, or name another by "
            f"AIOGPULOCK_EMBEDDED_DIR, {OTHER_WAY}"
        ) from error
    except OSError as error:
        raise RedisUnavailableError(f"cannot make the directory {directory}: {error.strerror}; {OTHER_WAY}") from error
    wrong = _what_is_wrong(found)
    if wrong:
        raise RedisUnavailableError(
            f"{directory} {wrong}, so others could read or replace what is in it; "
            f"remove it and try again (it is made anew with mode 0700), {OTHER_WAY}"
        )


def _what_is_wrong(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a directory"
    if found.st_uid != os.geteuid():
        return f"belongs to uid {found.st_uid}, not to uid {os.geteuid()}"
    if found.st_mode & 0o077:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}"
    return None


def open_lock(path: Path) -> int:
    """A descriptor for `flock`; closed in programs that this process starts."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_lock(fd: int, kind: int, deadline: float) -> bool:
    """Like `flock`, which knows no timeout, until `deadline` on the monotonic clock. Tries at least once."""
    pause = 0.001
    while not try_lock(fd, kind):
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    return True


def drop_lock(fd: int) -> None:
    """Unlocks as well as closes: a forked child may have a copy, and a copy alone would keep the lock."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether anybody holds the lock, shared or exclusive. Takes it for an instant to find out."""
    fd = open_lock(path)
    try:
        return not try_lock(fd, fcntl.LOCK_EX)
    finally:
        drop_lock(fd)


def is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


@contextlib.contextmanager
def locked(path: Path, deadline: float) -> Iterator[bool]:
    """Holds the lock exclusively during the body, if it came before the deadline: the value tells."""
    fd = open_lock(path)
    try:
        yield wait_lock(fd, fcntl.LOCK_EX, deadline)
    finally:
        drop_lock(fd)
