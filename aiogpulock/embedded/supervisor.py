"""Owns the embedded server's process: starts it, sleeps while it has users, stops it when the last one has left.

Run as `python -I -S supervisor.py DIRECTORY BINARY LINGER_SECONDS` by the process that holds boot.lock;
standard library only, since nothing of the starting program may be needed once it is gone. The started process returns
when the supervisor proper has server.lock; stdout and stderr are the log.

A killed user leaves no trace: the kernel drops its share of users.lock. A killed server ends the supervisor, a killed
supervisor ends the server, and server.lock stays taken until both are gone: a second server on the same path would
steal the socket silently, with the old connections left on the old one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

LOOK_INTERVAL = 1.0  # seconds between two looks at the files
SOCKET_TIMEOUT = 10.0  # seconds until a server without a socket is given up
STOP_TIMEOUT = 3.0  # seconds from SIGTERM to SIGKILL
PR_SET_PDEATHSIG = 1


def main(directory: Path, binary: str, linger: float) -> int:
    os.umask(0o077)
    # The program that started us may have blocked signals in this thread; a mask survives exec.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    server_lock = os.open(directory / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(server_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another server holds server.lock", file=sys.stderr)  # noqa: T201 - stderr is the log
        return 1
    if os.fork() == 0:
        os.setsid()
        os.chdir("/")
        Supervisor(directory, binary, server_lock).run(linger)
    return 0  # the child has the lock too; nobody has to wait for a process that lives as long as the server


class Supervisor:
    def __init__(self, directory: Path, binary: str, server_lock: int) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.users_path = directory / "users.lock"
        self.users_lock = os.open(self.users_path, os.O_RDWR | os.O_CREAT, 0o600)
        # A lock on the directory tells systemd-tmpfiles to leave its old files alone.
        self.directory_lock = os.open(directory, os.O_RDONLY)
        fcntl.flock(self.directory_lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self.socket.unlink(missing_ok=True)  # a killed server's; server.lock says that nobody listens on it
        self.server = start_server(directory, binary, server_lock)
        os.ftruncate(server_lock, 0)
        os.pwrite(server_lock, f"supervisor {os.getpid()}\nserver {self.server}\n".encode(), 0)
        self.socket_id: tuple[int, int] | None = None

    def run(self, linger: float) -> NoReturn:
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda _signum, _frame: self.leave())
        signal.signal(signal.SIGCHLD, self.look)
        self.wait_for_socket()
        # Signals interrupt the blocking flock below, run `look`, and let it go on.
        signal.signal(signal.SIGALRM, self.look)
        signal.setitimer(signal.ITIMER_REAL, LOOK_INTERVAL, LOOK_INTERVAL)
        while True:
            fcntl.flock(self.users_lock, fcntl.LOCK_EX)
            if linger > 0:
                fcntl.flock(self.users_lock, fcntl.LOCK_UN)
                time.sleep(linger)
                try:
                    fcntl.flock(self.users_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
            # Kept while the server stops: a newcomer waits for it, and then finds neither a server nor a lock.
            self.leave()

    def wait_for_socket(self) -> None:
        """Deleted before it was ever seen here, ms after it came, the socket is missed at the timeout only."""
        deadline = time.monotonic() + SOCKET_TIMEOUT
        while self.socket_id is None:
            self.socket_id = identity(self.socket)
            self.look()
            if time.monotonic() > deadline:
                self.leave()
            time.sleep(0.005)

    def look(self, _signum: int = 0, _frame: FrameType | None = None) -> None:
        """Leaves if the server is dead, or if somebody deleted or replaced the files by which users find it."""
        if os.waitpid(self.server, os.WNOHANG)[0]:
            os._exit(1)
        if self.socket_id is None:
            return
        users = os.fstat(self.users_lock)
        if identity(self.socket) != self.socket_id or identity(self.users_path) != (users.st_dev, users.st_ino):
            self.leave()

    def leave(self) -> NoReturn:
        """Stops the server and ends; the kernel then drops the locks, all at once."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        deadline = time.monotonic() + STOP_TIMEOUT
        os.kill(self.server, signal.SIGTERM)
        while not os.waitpid(self.server, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(self.server, signal.SIGKILL)
            time.sleep(0.002)
        if self.socket_id is not None and identity(self.socket) == self.socket_id:
            self.socket.unlink(missing_ok=True)
        os._exit(0)


def identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def start_server(directory: Path, binary: str, server_lock: int) -> int:
    """Forks and becomes the server in the child, which keeps server.lock open as long as it lives."""
    options = {
        "port": "0",
        "unixsocket": str(directory / "s"),
        "unixsocketperm": "700",
        "dir": str(directory),
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    arguments = [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    supervisor = os.getpid()
    server = os.fork()
    if server:
        return server
    try:
        os.set_inheritable(server_lock, True)
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != supervisor:  # it died before prctl could tell
                os._exit(1)
        os.execv(binary, arguments)  # noqa: S606 - a path that find_server_binary chose, without a shell
    except OSError as error:
        os.write(2, f"cannot start {binary}: {error}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
