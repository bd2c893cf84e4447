"""The faults, one class each: what one cycle does, and how soon the lock must move on."""

from __future__ import annotations

from typing import Any, ClassVar

from aiogpulock import clock
from tests.faults.arena import Arena
from tests.servers import RealServer

CLAIM_WINDOW, LEASE = 0.5, 1.5
SLACK = 3.0
"""Seconds added to each bound: machines that run tests are busy."""


class Fault:
    """One kind of fault. `cycle` does it once, and answers the seconds until the next holder was in."""

    name: ClassVar[str]
    what: ClassVar[str]
    bound: ClassVar[float] = SLACK
    """Seconds until the next grant, once the lock can be granted again."""
    declared: ClassVar[bool] = False
    """Out of the promise: overlaps are counted apart, and must be seen."""
    workers: ClassVar[int] = 3
    server_args: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[dict[str, Any]] = {}
    config: ClassVar[dict[str, Any]] = {}

    def begin(self, arena: Arena) -> None:
        arena.config = dict(self.config)

    def cycle(self, arena: Arena) -> float:
        raise NotImplementedError

    def end(self, arena: Arena) -> None:
        """What must have been seen over all cycles."""

    def server(self) -> RealServer:
        return RealServer(self.server_args)


class KillHolder(Fault):
    name, what = "kill-holder", "SIGKILL of the holder"

    def cycle(self, arena: Arena) -> float:
        victim, _ = arena.capture()
        arena.pause(0.02)
        killed_at = victim.kill()
        entered = arena.next(killed_at, bound=self.bound, not_by=victim)
        arena.bury(victim)
        arena.fill()
        return float(entered["at"] - killed_at)


KINDS: dict[str, type[Fault]] = {kind.name: kind for kind in (KillHolder,)}

__all__ = ["CLAIM_WINDOW", "KINDS", "LEASE", "SLACK", "Fault", "clock"]
