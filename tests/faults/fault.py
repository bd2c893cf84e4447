"""What a fault is, and what its cycles share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from tests.faults.arena import PATIENCE, SETTINGS, Arena
from tests.faults.judge import Message
from tests.faults.zygote import ForkedWorker
from tests.servers import RealServer

LEASE: float = SETTINGS["heartbeat"]["timeout"]
CLAIM_WINDOW: float = SETTINGS["claim_window"]
SLACK = 10.0
"""Seconds added to each bound: machines that run tests are busy. It hides nobody whom a bug forgot: the timers of the
library that could come to help lie beyond all bounds, or within two seconds."""

LONG_LEASE: dict[str, Any] = {"heartbeat": {"interval": 0.25, "timeout": 60.0}}
"""With these no deadline helps within the bound either: only the event itself does. And no busy machine loses one."""


class Fault:
    """One kind of fault. `cycle` does it once, and answers the seconds until the next holder was in."""

    name: ClassVar[str]
    what: ClassVar[str]
    bound: ClassVar[float] = SLACK
    """Seconds until the next grant, once the lock can be granted again. Beyond it a wake-up counts as lost."""
    must_bite: ClassVar[Literal["", "overlaps", "stale"]] = ""
    """What is declared out of the promise must be seen to happen. With "overlaps" an overlap is no violation."""
    patient: ClassVar[bool] = False
    """It is over so soon that no waiter may give up with an error."""
    workers: ClassVar[int] = 3
    settings: ClassVar[dict[str, Any]] = {}
    config: ClassVar[dict[str, Any]] = {"ping_every": 60.0}
    """For each worker. The inbox's own ping lies beyond all bounds too."""

    def begin(self, arena: Arena) -> None:
        """Before the first worker starts."""

    def cycle(self, arena: Arena) -> float:
        raise NotImplementedError

    def end(self, arena: Arena) -> None:
        """After the last worker ended."""

    def server(self) -> RealServer:
        return RealServer()

    def hand_over(self, arena: Arena, victim: ForkedWorker, entry: Message, *, not_before: float = 0.0) -> float:
        """Free the captive. Answers the seconds until the next holder was in, from then or from `not_before`."""
        freed_at = arena.judge.free(entry["holder"])
        since = max(freed_at, not_before)
        entered = arena.next(freed_at, bound=self.bound + since - freed_at)
        return max(0.0, float(entered["at"]) - since)

    def check_kept(self, arena: Arena, victim: ForkedWorker, entry: Message) -> None:
        """The lease must have lasted: its holder, which was freed, says how it ended."""
        end, whose = victim.find("kept", "lost", timeout=PATIENCE, token=entry["token"]), f"pid {victim.pid}"
        if end is None:
            arena.violated(f"no end: token {entry['token']} of {whose}")
        elif end["event"] == "lost":
            arena.violated(f"lease lost: {end['reason']}, token {entry['token']} of {whose}")
