"""The embedded server: one Redis-compatible server per user and host, shared by processes that come and go.

The first process that joins starts it, the last one that leaves lets it stop; nobody is in charge in between. Who is
there is known by `flock` on files in a private directory, so a killed process leaves nothing to repair. It excludes
processes of one user that share one `/tmp`: containers and several users need a server of their own and its URL.

Everything here blocks: async code calls it in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiogpulock.embedded.binary import ServerBinary, find_server_binary
from aiogpulock.embedded.files import (
    OTHER_WAY,
    Files,
    drop_lock,
    is_locked,
    is_same_file,
    locked,
    open_lock,
    prepare,
    try_lock,
    wait_lock,
)
from aiogpulock.embedded.neighbours import (
    announce_other_server,
    forget_what_was_said,
    say_once,
    warn_of_neighbours,
)
from aiogpulock.errors import ManagerClosedError, RedisUnavailableError

__all__ = ["EmbeddedServer", "ServerRun", "announce_other_server", "find_server_binary", "join"]

DEFAULT_TIMEOUT = 5.0  # seconds
DEFAULT_LINGER = 10.0  # seconds; a shell loop of short jobs keeps one server, with its history
ASK_TIMEOUT = 1.0  # seconds that a server gets to answer one question
ASK_INTERVAL = 0.003  # seconds between two questions to a server that starts
SUPERVISOR = Path(__file__).with_name("supervisor.py")


@dataclass(frozen=True)
class ServerRun:
    """One life of the server. `clean`: when it started, nobody was using a predecessor, so no lease can be in doubt."""

    run_id: str
    clean: bool


class EmbeddedServer:
    """This process's share in the embedded server, from `join` until `close`."""

    def __init__(self, membership: _Membership, run: ServerRun) -> None:
        self._membership: _Membership | None = membership
        self._run = run
        self._pid = os.getpid()
        self.directory = membership.files.directory
        self.url = f"unix://{membership.files.socket}"
        self.scope = f"excludes only processes of uid {os.geteuid()} on this host"

    @property
    def run_id(self) -> str:
        """The server's `run_id` when it was last asked."""
        return self._run.run_id

    @property
    def clean_run(self) -> str | None:
        """The server's `run_id` if it started with nobody using a predecessor, else None. The same for all who join."""
        return self._run.run_id if self._run.clean else None

    def revive(self, timeout: float = DEFAULT_TIMEOUT) -> EmbeddedServer:
        """Makes sure that the server answers within `timeout` seconds, starting another if it died; returns itself.

        A server that is started here is never clean: at least this process was using the one that died.
        """
        if self._membership is None:
            raise ManagerClosedError("the embedded server's handle is closed")
        if self._pid != os.getpid():
            raise ManagerClosedError("the embedded server's handle belongs to the process that forked this one")
        self._run = self._membership.ensure(timeout)
        return self

    def close(self) -> None:
        """Leaves; once all have left, the server stops after its linger. Idempotent; does nothing in a forked child."""
        membership, self._membership = self._membership, None
        if membership is not None and self._pid == os.getpid():
            membership.leave()


def join(
    *, directory: Path | None = None, timeout: float = DEFAULT_TIMEOUT, linger: float = DEFAULT_LINGER
) -> EmbeddedServer:
    """Joins this user's embedded server, starting it if it does not run, within `timeout` seconds.

    `directory` is made if missing and must be private. `linger` is for how many seconds a server that is started here
    outlives its last user. Raises `RedisUnavailableError` or `ServerTooOldError`, with what to do about it.
    """
    files = prepare(directory)
    with _memberships_lock:
        membership = _memberships.setdefault(files.directory, _Membership(files))
    server = EmbeddedServer(membership, membership.enter(timeout, linger))
    say_once(
        logging.INFO,
        "embedded",
        "no Redis URL is set: using the embedded server at %s, which %s",
        server.url,
        server.scope,
    )
    with contextlib.suppress(OSError):
        warn_of_neighbours(files)
    return server


class _Membership:
    """This process's one share of users.lock in a directory, counted for the handles that use it."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._mutex = threading.Lock()
        self._handles = 0
        self._linger = DEFAULT_LINGER
        self._share: int | None = None

    def enter(self, timeout: float, linger: float) -> ServerRun:
        deadline = time.monotonic() + timeout
        with self._exclusively(deadline):
            if self._handles == 0:
                self._linger = linger
            try:
                run = self._ensure(deadline)
                self._handles += 1
                return run
            finally:
                self._drop_unused_share()

    def ensure(self, timeout: float) -> ServerRun:
        deadline = time.monotonic() + timeout
        with self._exclusively(deadline):
            return self._ensure(deadline)

    def leave(self) -> None:
        with self._mutex:
            self._handles -= 1
            self._drop_unused_share()

    def abandon_after_fork(self) -> None:
        """Closes the child's copy of the share without unlocking, which would unlock the parent's."""
        if self._share is not None:
            os.close(self._share)
            self._share = None

    @contextlib.contextmanager
    def _exclusively(self, deadline: float) -> Iterator[None]:
        """Against the other threads of this process by the mutex, against other processes by boot.lock."""
        if not self._mutex.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise self._busy()
        try:
            with locked(self.files.boot_lock, deadline) as is_ours:
                if not is_ours:
                    raise self._busy()
                yield
        finally:
            self._mutex.release()

    def _ensure(self, deadline: float) -> ServerRun:
        # Shares are taken under boot.lock only, so while a starter holds it, nobody new can look like a user.
        self._take_share(deadline)
        # With the share no supervisor can be stopping the server: it would need users.lock for itself.
        run_id = _ask(self.files.socket)
        return self._start(deadline) if run_id is None else ServerRun(run_id, self._started_clean(run_id))

    def _take_share(self, deadline: float) -> None:
        if self._share is not None:
            if is_same_file(self._share, self.files.users_lock):
                return
            drop_lock(self._share)  # somebody deleted the file: the next supervisor watches another one
            self._share = None
        share = open_lock(self.files.users_lock)
        if not wait_lock(share, fcntl.LOCK_SH, deadline):
            os.close(share)
            raise RedisUnavailableError(
                f"the embedded server in {self.files.directory} has been stopping for too long; "
                f"end the processes named in {self.files.server_lock}, {OTHER_WAY}"
            )
        self._share = share

    def _drop_unused_share(self) -> None:
        if self._handles == 0 and self._share is not None:
            drop_lock(self._share)
            self._share = None

    def _start(self, deadline: float) -> ServerRun:
        """Waits for what is left of the last server to be gone, and starts the next."""
        while is_locked(self.files.server_lock):
            if run_id := _ask(self.files.socket):  # it was only slow
                return ServerRun(run_id, self._started_clean(run_id))
            if time.monotonic() > deadline:
                raise RedisUnavailableError(
                    f"the embedded server in {self.files.directory} is alive and does not answer; "
                    f"end the processes named in {self.files.server_lock} and see {self.files.log}, {OTHER_WAY}"
                )
            time.sleep(ASK_INTERVAL)
        clean = self._handles == 0 and self._is_alone(deadline)
        self._spawn_supervisor(find_server_binary(), deadline)
        run = ServerRun(self._wait_for_answer(deadline), clean)
        self._record(run)
        return run

    def _is_alone(self, deadline: float) -> bool:
        """Whether no other process holds a share, which it could only have of a server that died.

        A conversion of an `flock` gives the old lock up even if it fails, hence the share is taken again in any case.
        No supervisor can slip in: the old one is gone, and the new one does not exist yet.
        """
        assert self._share is not None  # noqa: S101 - for the type checker: `_ensure` took it
        alone = try_lock(self._share, fcntl.LOCK_EX)
        if not wait_lock(self._share, fcntl.LOCK_SH, deadline):
            raise self._busy()
        return alone

    def _spawn_supervisor(self, binary: ServerBinary, deadline: float) -> None:
        if self.files.log.exists():
            self.files.log.replace(self.files.log.with_suffix(".log.1"))
        command = [sys.executable, "-I", "-S", str(SUPERVISOR), str(self.files.directory), str(binary.path)]
        with self.files.log.open("ab") as log:
            try:
                # It forks and returns at once: a child of ours would stay a zombie until somebody waits for it.
                subprocess.run(  # noqa: S603 - our own script, without a shell
                    [*command, str(self._linger)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=max(0.1, deadline - time.monotonic()),
                    check=False,
                )
            except OSError as error:
                raise self._not_started(f"cannot run {sys.executable or 'Python'}: {error.strerror}") from error
            except subprocess.TimeoutExpired as error:
                raise self._not_started("its supervisor took too long") from error

    def _wait_for_answer(self, deadline: float) -> str:
        while True:
            if run_id := _ask(self.files.socket):
                return run_id
            if not is_locked(self.files.server_lock):
                raise self._not_started("it ended at once")
            if time.monotonic() > deadline:
                raise self._not_started("it does not answer yet")
            time.sleep(ASK_INTERVAL)

    def _record(self, run: ServerRun) -> None:
        """Tells those who join later how this run began. If we die before it, they take it for unclean."""
        written = self.files.start_record.with_suffix(".new")
        written.write_text(json.dumps({"run_id": run.run_id, "clean": run.clean}))
        written.replace(self.files.start_record)

    def _started_clean(self, run_id: str) -> bool:
        try:
            record = json.loads(self.files.start_record.read_text())
            return bool(record["run_id"] == run_id and record["clean"] is True)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _busy(self) -> RedisUnavailableError:
        return RedisUnavailableError(
            f"another process has been starting the embedded server in {self.files.directory} for too long; "
            f"see {self.files.log}, {OTHER_WAY}"
        )

    def _not_started(self, why: str) -> RedisUnavailableError:
        with contextlib.suppress(OSError):
            if last_lines := self.files.log.read_text(errors="replace").splitlines()[-3:]:
                why = f"{why}; its log ends: {' / '.join(last_lines)}"
        return RedisUnavailableError(
            f"the embedded server in {self.files.directory} did not start: {why}; see {self.files.log}, {OTHER_WAY}"
        )


def _ask(path: Path) -> str | None:
    """The server's run id, or None if it does not answer: the one question that needs no client library."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ASK_TIMEOUT)
            connection.connect(str(path))
            connection.sendall(b"INFO server\r\n")
            answer = b""
            while b"\r\nrun_id:" not in answer or not answer.endswith(b"\r\n"):
                received = connection.recv(65536)
                if not received:
                    return None
                answer += received
    except OSError:
        return None
    return answer.partition(b"\r\nrun_id:")[2].partition(b"\r\n")[0].decode("ascii", "replace") or None


_memberships: dict[Path, _Membership] = {}
_memberships_lock = threading.Lock()


def _reset_after_fork() -> None:
    """A forked child joins for itself: the parent's share, and a mutex that some thread held, must not reach it."""
    global _memberships_lock
    _memberships_lock = threading.Lock()
    for membership in _memberships.values():
        membership.abandon_after_fork()
    _memberships.clear()
    forget_what_was_said()


os.register_at_fork(after_in_child=_reset_after_fork)
