"""Processes of `tests.gpu.holder` and `tests.gpu.rounds`, told what to do line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start_stranger() -> int:
    """The pid of a living process that somebody else has started; it ends by itself after a minute."""
    command = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    return int(subprocess.run([sys.executable, "-c", command], stdout=subprocess.PIPE, check=True).stdout)


class Told:
    """A process that answers each line of stdin by one JSON line."""

    def __init__(self, module: str, *arguments: str, **env: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.gpu.{module}", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def begin(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def begin_to(self, do: str, **arguments: Any) -> None:
        self.begin(json.dumps({"do": do, **arguments}))

    def do(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.begin_to(do, **arguments)
        return self.answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)
