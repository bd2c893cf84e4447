"""The keeper: a small process between `run` and its command, so that the command never outlives its lease.

    run (speaks to Redis)  ──socket──  keeper  ──fork──  the command  ──  whatever that starts

It is forked before `run` has a thread, and forks the command's process at once, which waits at a gate. So the pids of
all three are known before the lock is asked for, and are registered with the request: a crash frees the lock only when
none of them is left. The keeper adopts what the command's children leave behind, hence it ends all of it when

- the lease is over by the clock: `run` tells the deadline with each beat, so this holds also while `run` is stopped;
- `run` says that the lease is lost;
- `run` is gone, SIGKILL included: the socket ends;
- the command itself has ended and left processes behind.

If the keeper is killed too, the kernel kills the command (parent-death signal). Messages are one JSON object a line.
Standard library only, and no event loop: what it needs must work while everything else does not.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from aiogpulock import clock
from aiogpulock.cli.exits import NOT_EXECUTABLE, NOT_FOUND
from aiogpulock.cli.process_tree import adopt_orphans, descendants, die_with_parent, send, show_as
from aiogpulock.errors import GpuLockError

FORWARDED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
_JOB_CONTROL = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
LOOK_EVERY = 2.0
"""Seconds between two looks at the clock: a timer of the kernel stands still while the machine is suspended."""


class Kept(NamedTuple):
    """The keeper as `run` sees it."""

    pid: int
    command_pid: int
    socket: socket.socket


def start_keeper(command: Sequence[str], mask: set[signal.Signals]) -> Kept:
    """Fork the keeper and the process of `command`. `mask`: the signals that the command is to have blocked.

    Raises `GpuLockError` where no process can be had.
    To be called before any thread is started, in the main thread: a parent-death signal follows the forking thread.
    """
    ours, theirs = socket.socketpair()
    try:
        pid = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        raise GpuLockError(f"the command was not started: {error.strerror}") from None
    if pid == 0:
        with _no_way_back():
            ours.close()
            _Keeper(theirs, command, mask).keep()
    theirs.close()
    with ours.makefile("rb", buffering=0) as reader:
        said = reader.readline()
    if not said:
        ours.close()
        os.waitpid(pid, 0)
        raise GpuLockError("the command was not started: its keeper ended, and has said why")
    return Kept(pid, json.loads(said)["command"], ours)


@contextlib.contextmanager
def _no_way_back() -> Any:
    """A forked process never returns into its parent's program."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"aiogpulock: keeper: {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


class _Keeper:
    def __init__(self, channel: socket.socket, command: Sequence[str], mask: set[signal.Signals]) -> None:
        self._channel = channel
        self._buffer = b""
        self._connected = True
        self._deadline = float("inf")
        """By `clock.now`; what runs must be over soon after."""
        self._grace = self._last_grace = 0.0
        self._kill_at: float | None = None
        """Set once the end has begun."""
        self._status: int | None = None
        self._left = 0
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | _JOB_CONTROL)  # it ends when `run` ends, not before
        show_as("aiogpulock-keep")
        adopt_orphans()
        wake_read, self._wake_write = os.pipe()
        self._poll = select.poll()
        self._wake_read = wake_read
        for descriptor in (wake_read, channel.fileno()):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        os.set_blocking(self._wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        gate, self._gate = os.pipe()
        keeper = os.getpid()
        self._command = os.fork()
        if self._command == 0:
            with _no_way_back():
                die_with_parent(keeper)
                channel.close()
                os.close(self._gate)
                _become(command, gate, mask)
        os.close(gate)
        self._say(command=self._command)

    def keep(self) -> None:
        """Until nothing of the command is left."""
        while True:
            self._poll.poll(self._pause() * 1000)
            self._reap()
            self._listen()
            alive = self._alive()
            if not alive and self._status is not None:
                self._say(status=self._status, left=self._left)
                return
            self._enforce(alive)

    def _pause(self) -> float:
        now = clock.now()
        if self._kill_at is None:
            return min(max(0.0, self._deadline - now), LOOK_EVERY)
        # Once killed, what may not be signalled (another user's) or hangs in the driver is waited for.
        return self._kill_at - now if self._kill_at > now else 0.05

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._command:
                    self._status = os.waitstatus_to_exitcode(ended[1])

    def _alive(self) -> list[int]:
        if self._status is None and self._kill_at is None:
            return [self._command]  # all is well: no need to look at every process of the machine
        found = descendants(os.getpid())
        return found if self._status is not None or self._command in found else [self._command, *found]

    def _enforce(self, alive: list[int]) -> None:
        if not self._connected:
            self._end(0.0)
        elif self._status is not None and self._kill_at is None:
            self._left = len(alive)
            self._end(self._grace)
        elif clock.now() >= self._deadline:
            self._end(self._last_grace)
        if self._kill_at is not None and clock.now() >= self._kill_at:
            send(self._alive(), signal.SIGKILL)

    def _end(self, grace: float) -> None:
        """SIGTERM now, to what is stopped too; SIGKILL after `grace` seconds, or with the lease if that is sooner."""
        began, kill_at = self._kill_at is None, min(clock.now() + grace, self._deadline + self._last_grace)
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        if began and grace > 0:
            send(self._alive(), signal.SIGTERM, signal.SIGCONT)

    # messages

    def _listen(self) -> None:
        if self._connected:
            self._receive()
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _receive(self) -> None:
        try:
            while data := self._channel.recv(65536):
                self._buffer += data
        except BlockingIOError:
            return
        except ConnectionResetError:  # `run` died with a message of ours unread
            pass
        self._connected = False
        self._poll.unregister(self._channel)

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"go": environment, "deadline": deadline, "grace": grace, "last_grace": last_grace}:
                self._deadline, self._grace, self._last_grace = deadline, grace, last_grace
                os.write(self._gate, json.dumps(environment).encode() + b"\n")
                os.close(self._gate)
            case {"deadline": deadline}:
                self._deadline = deadline
            case {"signal": signum}:
                if self._status is None:
                    send([self._command], signum)
            case {"end": grace}:
                self._end(grace)

    def _say(self, **message: int) -> None:
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(message).encode() + b"\n")


def _become(command: Sequence[str], gate: int, mask: set[signal.Signals]) -> NoReturn:
    """Wait at the gate, then be the command; no gate-keeper, no command."""
    with os.fdopen(gate, "rb") as opened:
        order = opened.readline()
    if not order:
        os._exit(0)
    environment = {**os.environ, **json.loads(order)}
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored outlasts exec
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        try:
            os.execvpe(command[0], list(command), environment)  # noqa: S606 - what the user asked for
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # As execvp(3) does with a script that names no interpreter.
            os.execvpe("/bin/sh", ["sh", _path_of(command[0]), *command[1:]], environment)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"aiogpulock: {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE)


def _path_of(program: str) -> str:
    if "/" in program:
        return program
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return next((path for folder in folders if os.access(path := str(Path(folder) / program), os.X_OK)), program)
