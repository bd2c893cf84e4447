"""Starts workers by fork from a process that has imported everything: 10 ms each, not half a second.

``python -m tests.faults.zygote FD`` reads requests from a unix socket and answers each with the pid of the worker.
It has one thread and no event loop, so that its children begin clean.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from typing import Any, BinaryIO

import tests.faults.contender
from tests.helpers import process_state, wait_until
from tests.workers import ROOT, Event, Worker


class Forked:
    """A worker of the zygote, with what `Worker` uses of `subprocess.Popen`. Not our child: signals go by pidfd."""

    def __init__(self, pid: int, stdin: BinaryIO, stdout: BinaryIO) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1

    def send_signal(self, signum: int) -> None:
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signum)
            except ProcessLookupError:
                self._forget()

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
            self._forget()
        return 0

    def _forget(self) -> None:
        os.close(self._pidfd)
        self._pidfd = -1


class Zygote:
    """The campaign's end of it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.faults.zygote", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])

    def worker(self, config: dict[str, Any], env: dict[str, str]) -> ForkedWorker:
        return ForkedWorker(self, config, env)

    def fork(self, config: dict[str, Any], env: dict[str, str], stderr: int) -> Forked:
        stdin, our_stdin = os.pipe()
        our_stdout, stdout = os.pipe()
        request = json.dumps({"config": config, "env": env}).encode()
        # The length first: a request may be larger than one read.
        socket.send_fds(self._socket, [len(request).to_bytes(4, "big")], [stdin, stdout, stderr])
        self._socket.sendall(request)
        os.close(stdin)
        os.close(stdout)
        pid = int.from_bytes(self._socket.recv(4), "big")
        if not pid:
            raise RuntimeError("the zygote has ended")
        return Forked(pid, os.fdopen(our_stdin, "wb"), os.fdopen(our_stdout, "rb"))

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


class ForkedWorker(Worker):
    def __init__(self, zygote: Zygote, config: dict[str, Any], env: dict[str, str]) -> None:
        self._zygote = zygote
        super().__init__("contender", config, env)

    def _spawn(self, config: dict[str, Any], env: dict[str, str]) -> Any:
        return self._zygote.fork(config, env, self._stderr.fileno())

    def let_go(self) -> None:
        """The end of its commands: it ends in order."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def said_since(self, event: str, since: float, timeout: float = 30.0) -> Event:
        """The first event of this kind at that time or later."""
        return (
            wait_until(
                lambda: next((e for e in list(self.events) if e["event"] == event and e["at"] >= since), None),
                description=f"{event!r} of worker {self.pid}",
                timeout=timeout,
                interval=0.002,
            )
            or {}
        )

    def stop(self) -> None:
        """SIGSTOP; returns when the process is stopped."""
        self.signal(signal.SIGSTOP)
        while process_state(self.pid) not in "TtZX":
            select.select([], [], [], 0.001)


def _child(config: dict[str, Any], env: dict[str, str], fds: list[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    os.environ.update(env)
    status = 0
    try:
        asyncio.run(tests.faults.contender.main(config))
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _read(requests: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := requests.recv(size - len(data))):
        data += part
    return data


def main(fd: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the campaign's; its end is ours
    with socket.socket(fileno=fd) as requests:
        while True:
            size, fds, _, _ = socket.recv_fds(requests, 4, 3)
            if not size:
                return
            request = json.loads(_read(requests, int.from_bytes(size, "big")))
            pid = os.fork()
            if pid == 0:
                requests.close()
                _child(request["config"], request["env"], list(array.array("i", fds)))
            for each in fds:
                os.close(each)
            requests.sendall(pid.to_bytes(4, "big"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
