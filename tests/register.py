"""A fencing register in a process of its own: what a database that compares tokens would be.

``python -m tests.register PATH`` listens on a unix socket. A holder enters and exits with its token; a token below the
highest one seen is rejected and counted. Two holders inside at once are an overlap. A holder whose connection ends is
out: its process is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from tests.helpers import wait_until

ROOT = Path(__file__).parents[1]


class _Register:
    def __init__(self) -> None:
        self.inside: dict[str, int] = {}
        self.tokens: list[int] = []
        self.highest = 0
        self.stale = 0
        self.overlaps: list[tuple[str, list[str]]] = []

    def answer(self, do: str, holder: str, token: int) -> dict[str, Any]:
        if do == "report":
            return {"tokens": self.tokens, "stale": self.stale, "overlaps": self.overlaps, "inside": self.inside}
        if do == "exit":
            self.inside.pop(holder, None)
            return {"accepted": True}
        if do == "enter":
            if self.inside:
                self.overlaps.append((holder, list(self.inside)))
            self.inside[holder] = token
        accepted = token >= self.highest
        if accepted:
            self.highest = token
            self.tokens.append(token)
        else:
            self.stale += 1
        return {"accepted": accepted}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        entered: set[str] = set()
        with contextlib.suppress(ConnectionError):  # killed with an answer unread
            while line := await reader.readline():
                message = json.loads(line)
                if message["do"] == "enter":
                    entered.add(message["holder"])
                writer.write(json.dumps(self.answer(**message)).encode() + b"\n")
        for holder in entered:
            self.inside.pop(holder, None)
        writer.close()


class RegisterClient:
    """One connection to the register; each call waits for its answer."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")

    def call(self, do: str, holder: str = "", token: int = 0, **more: Any) -> dict[str, Any]:
        self._socket.sendall(json.dumps({"do": do, "holder": holder, "token": token, **more}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._lines.readline())
        return answer

    def enter(self, holder: str, token: int) -> bool:
        return bool(self.call("enter", holder, token)["accepted"])

    def write(self, holder: str, token: int) -> bool:
        """Answers whether the token was not stale."""
        return bool(self.call("write", holder, token)["accepted"])

    def exit(self, holder: str) -> None:
        self.call("exit", holder)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class RegisterProcess:
    """The register as tests use it: started, asked, ended."""

    PROGRAM: ClassVar[str] = "tests.register"

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "r")
        command = [sys.executable, "-m", self.PROGRAM, self.path]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        self._client = RegisterClient(self.path)

    def report(self) -> dict[str, Any]:
        return self._client.call("report")

    @property
    def overlaps(self) -> list[Any]:
        overlaps: list[Any] = self.report()["overlaps"]
        return overlaps

    def wait_until_inside(self, count: int) -> None:
        wait_until(lambda: len(self.report()["inside"]) == count, description=f"{count} holders inside the register")

    def close(self) -> None:
        self._client.close()
        self._process.kill()
        self._process.communicate()


async def _main(path: str) -> None:
    server = await asyncio.start_unix_server(_Register().serve, path)
    print("ready", flush=True)
    # The end of stdin is the end of the tests, however they end.
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
