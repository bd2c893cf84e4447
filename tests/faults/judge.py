"""A fencing register that also judges: ``python -m tests.faults.judge PATH``.

Whoever believes to hold the lock enters with its token and with `until`, the time up to which it believes so: the
local deadline of its lease, on the clock that all processes of a machine share. It repeats both with each write. From
that the judge tells violations from what is declared: a holder that was inside past its own `until` was frozen.

The judge also says how long each holder stays, and keeps one captive on request, so that a fault hits a holder.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import random
import sys
from typing import Any, ClassVar

from aiogpulock import clock
from tests.helpers import process_state
from tests.register import RegisterClient, RegisterProcess

HOLD: tuple[float, float] = (0.001, 0.008)
"""Seconds that a holder stays, from and to."""

KEEP = 20_000
"""Entries to look back on."""

PAST = 10
"""Writes past its own deadline by which a holder shows that it was never told. It writes every 3 ms while its loop
runs, and a loop that runs learns of the deadline at once: so the machine may be as busy as it likes."""

Message = dict[str, Any]


class Inside:
    """One self-believed holder."""

    def __init__(self, message: Message, reader: asyncio.StreamReader, leave_at: float) -> None:
        self.holder: str = message["holder"]
        self.token: int = message["token"]
        self.pid: int = message["pid"]
        self.until: float = message["until"]
        self.leave_at = leave_at
        self.overstayed = False
        """Others were let in while it was here: that counts once."""
        self.past = 0
        """Writes past its own deadline."""
        self._reader = reader

    @property
    def alive(self) -> bool:
        """The end of its connection may come behind a write that is not read yet: the process itself is asked."""
        ended = self._reader.at_eof() or self._reader.exception() is not None
        return not ended and process_state(self.pid) not in "ZX"

    def entry(self, at: float) -> Message:
        return {"holder": self.holder, "token": self.token, "pid": self.pid, "at": at}


class Judge:
    def __init__(self) -> None:
        self.inside: dict[str, Inside] = {}
        self.entries: list[Message] = []
        self.entered = 0
        self.highest = 0
        self.stale = 0
        self.overlaps = 0
        """Declared ones, each older holder once: its own deadline had passed."""
        self.violations: list[str] = []
        self._cycle: int | None = None
        self._random = random.Random()
        self._captor: asyncio.Future[Message] | None = None
        self._captive_pid = 0
        self._moved = asyncio.Condition()

    # what holders say

    async def enter(self, message: Message, reader: asyncio.StreamReader) -> Message:
        now = clock.now()
        new = Inside(message, reader, now + self._random.uniform(*HOLD))
        for other in self.inside.values():
            if other.overstayed or not other.alive:
                continue
            other.overstayed = True
            if other.until > now:
                self._violated(
                    f"overlap: {new.token} of pid {new.pid} entered while {other.token} of pid {other.pid} "
                    f"believed to hold for {other.until - now:.3f} s more"
                )
            else:
                self.overlaps += 1
        accepted = new.token > self.highest
        if accepted:
            self.highest = new.token
        else:
            self._stale("entered", message, now)
        self.inside[new.holder] = new
        entry = new.entry(now)
        self.entries.append(entry)
        self.entered += 1
        if len(self.entries) > KEEP:
            del self.entries[: KEEP // 2]
        captive = self._captor is not None and not self._captor.done() and self._captive_pid in (0, new.pid)
        if self._captor is not None and captive:
            new.leave_at = float("inf")
            self._captor.set_result(entry)
        async with self._moved:
            self._moved.notify_all()
        return {"accepted": accepted, "leave_in": min(3600.0, new.leave_at - now), "captive": captive}

    async def write(self, message: Message, reader: asyncio.StreamReader) -> Message:
        now, holder = clock.now(), self.inside.get(message["holder"])
        accepted = bool(message["token"] >= self.highest)
        if not accepted:
            self._stale("wrote", message, now)
        if holder is not None:
            holder.until = message["until"]
            holder.past += 0 < holder.until <= now
            if holder.past == PAST:
                self._violated(f"no loss: {holder.token} of pid {holder.pid} wrote {PAST} times past its own deadline")
        return {"accepted": accepted, "leave": holder is None or holder.leave_at <= now}

    def _stale(self, did: str, message: Message, now: float) -> None:
        self.stale += 1
        if message["until"] > now:
            self._violated(
                f"regression: {did} {message['token']} after {self.highest}, believing to hold for "
                f"{message['until'] - now:.3f} s more"
            )

    def _violated(self, what: str) -> None:
        self.violations.append(what if self._cycle is None else f"{what}, in cycle {self._cycle}")

    async def exit(self, message: Message, reader: asyncio.StreamReader) -> Message:
        self.inside.pop(message["holder"], None)
        async with self._moved:
            self._moved.notify_all()
        return {}

    # what the campaign says

    async def cycle(self, message: Message, reader: asyncio.StreamReader) -> Message:
        """The next cycle begins: stays are drawn by its seed, and violations name it."""
        self._cycle = message["number"]
        self._random.seed(message["seed"])
        return {}

    async def capture(self, message: Message, reader: asyncio.StreamReader) -> Message:
        """The next holder to enter, of that pid if one is named, stays until it is freed. Answers its entry."""
        self._captive_pid = message["pid"]
        self._captor = asyncio.get_running_loop().create_future()
        return await self._within(message["timeout"], self._captor)

    async def free(self, message: Message, reader: asyncio.StreamReader) -> Message:
        """Let every holder leave when it writes next; answers when the holder named is out, and the time then."""
        for inside in self.inside.values():
            inside.leave_at = 0.0

        async def out() -> Message:
            async with self._moved:
                await self._moved.wait_for(lambda: message["holder"] not in self.inside)
            return {"at": clock.now()}

        return await self._within(message["timeout"], out())

    async def next(self, message: Message, reader: asyncio.StreamReader) -> Message:
        """The first entry after a time, by another process than `not_pid`."""

        def found() -> Message | None:
            first = bisect.bisect_left(self.entries, message["after"], key=lambda entry: entry["at"])
            return next((entry for entry in self.entries[first:] if entry["pid"] != message["not_pid"]), None)

        async def entered() -> Message:
            async with self._moved:
                await self._moved.wait_for(lambda: found() is not None)
            return found() or {}

        return await self._within(message["timeout"], entered())

    async def report(self, message: Message, reader: asyncio.StreamReader) -> Message:
        return {
            "entries": self.entered,
            "stale": self.stale,
            "overlaps": self.overlaps,
            "violations": self.violations,
            "inside": [inside.pid for inside in self.inside.values()],
        }

    async def _within(self, seconds: float, awaitable: Any) -> Message:
        """The answer, or an empty one when it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                answer: Message = await awaitable
                return answer
        except TimeoutError:
            return {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        entered: set[str] = set()
        with contextlib.suppress(ConnectionError):  # killed with an answer unread
            while line := await reader.readline():
                message = json.loads(line)
                if message["do"] == "enter":
                    entered.add(message["holder"])
                writer.write(json.dumps(await getattr(self, message["do"])(message, reader)).encode() + b"\n")
        for holder in entered:
            self.inside.pop(holder, None)
        async with self._moved:
            self._moved.notify_all()
        writer.close()


class JudgeProcess(RegisterProcess):
    """The judge as the campaign uses it. Times are those of `clock.now`; an answer that took too long is empty."""

    PROGRAM: ClassVar[str] = "tests.faults.judge"

    @property
    def client(self) -> RegisterClient:
        return self._client

    def cycle(self, number: int, seed: str) -> None:
        self._client.call("cycle", number=number, seed=seed)

    def capture(self, pid: int = 0, timeout: float = 30.0) -> Message:
        return self._client.call("capture", pid=pid, timeout=timeout)

    def free(self, holder: str, timeout: float = 5.0) -> float:
        """When it was out; now if it did not leave in time."""
        return float(self._client.call("free", holder, timeout=timeout).get("at", clock.now()))

    def next(self, after: float, not_pid: int = 0, timeout: float = 30.0) -> Message:
        return self._client.call("next", after=after, not_pid=not_pid, timeout=timeout)


async def _main(path: str) -> None:
    server = await asyncio.start_unix_server(Judge().serve, path)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
