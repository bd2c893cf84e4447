"""A real terminal with a real interactive bash in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import termios
import time
from types import TracebackType
from typing import Self

from tests.edges.shell import COMMAND, PATIENCE

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]")


class Terminal:
    """80 columns. `aiogpulock` is the command under test."""

    def __init__(self, env: dict[str, str], columns: int = 80) -> None:
        self.raw = ""
        pid, self._master = pty.fork()
        if pid == 0:
            settings = {"PS1": "$ ", "TERM": "xterm", "HISTFILE": "/dev/null", "BASH_SILENCE_DEPRECATION_WARNING": "1"}
            environment = {name: value for name, value in env.items() if name != "COLUMNS"} | settings
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], environment)
        self.pid = pid
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.type(f'aiogpulock() {{ {shlex.join(COMMAND)} "$@"; }}\n')

    def __enter__(self) -> Self:
        return self

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str, timeout: float = PATIENCE) -> str:
        """Read on until the pattern shows up after what was read before; answers what was read, without escapes."""
        deadline, read = time.monotonic() + timeout, ""
        while not re.search(pattern, _ESCAPE.sub("", read), re.DOTALL):
            if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"the terminal never showed {pattern!r}; it showed {read!r}")
            part = os.read(self._master, 4096).decode("utf-8", "replace")
            read += part
            self.raw += part
        return _ESCAPE.sub("", read)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._master)
