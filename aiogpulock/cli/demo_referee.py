"""The referee of the demo: decides from what the workers report, and knows nothing of locks or of Redis.

All times are seconds on CLOCK_MONOTONIC, which the processes of one host share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stay:
    """One body under the lock, from the first thing that it did to the last."""

    worker: str
    token: int
    asked_at: float
    """When the worker asked for the lock."""
    entered_at: float
    left_at: float = math.inf
    """Infinite: it has not left."""
    killed: bool = False
    """It did not leave: the worker died."""


@dataclass(frozen=True)
class Verdict:
    """What went wrong, one line each; nothing means that exclusion held."""

    overlaps: tuple[str, ...]
    regressions: tuple[str, ...]
    """Fencing tokens that did not rise."""

    @property
    def held(self) -> bool:
        return not self.overlaps and not self.regressions


def judge(stays: Iterable[Stay]) -> Verdict:
    """Whether no two were inside at once, and each fencing token is above the one before. Any order will do."""
    overlaps, regressions = [], []
    last: Stay | None = None  # of those so far, the one that leaves last
    before: Stay | None = None
    for stay in sorted(stays, key=lambda stay: (stay.entered_at, stay.left_at)):
        if last is not None and stay.entered_at < last.left_at:
            left = f"{(last.left_at - stay.entered_at) * 1000:.3f} ms before it left"
            when = "which never left" if math.isinf(last.left_at) else left
            overlaps.append(f"{stay.worker} (token {stay.token}) entered beside {last.worker} ({last.token}), {when}")
        if before is not None and stay.token <= before.token:
            regressions.append(f"{stay.worker} entered with {stay.token} after {before.worker} with {before.token}")
        last = stay if last is None or stay.left_at > last.left_at else last
        before = stay
    return Verdict(tuple(overlaps), tuple(regressions))


def exit_code(verdict: Verdict) -> int:
    """0 if exclusion held, else 1."""
    return 0 if verdict.held else 1


def hand_offs(stays: Iterable[Stay]) -> list[float]:
    """Seconds from a body's end to the next one's start, wherever the next worker was already waiting.

    What follows a killed one is a recovery and no hand-off.
    """
    ordered = sorted(stays, key=lambda stay: stay.entered_at)
    pairs = itertools.pairwise(ordered)
    return [
        after.entered_at - before.left_at
        for before, after in pairs
        if after.asked_at <= before.left_at and not before.killed
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of them do not exceed; not a number if there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class Referee:
    """Writes down who entered and left."""

    def __init__(self) -> None:
        self._inside: dict[str, Stay] = {}
        self._over: list[Stay] = []

    @property
    def stays(self) -> list[Stay]:
        return [*self._over, *self._inside.values()]

    def entries_after(self, instant: float) -> list[Stay]:
        """Who entered since then, the first one first."""
        return sorted((stay for stay in self.stays if stay.entered_at >= instant), key=lambda stay: stay.entered_at)

    def entered(self, worker: str, token: int, *, asked_at: float, at: float) -> None:
        if worker in self._inside:
            self._over.append(self._inside.pop(worker))  # it never left: judged as still inside
        self._inside[worker] = Stay(worker, token, asked_at, at)

    def left(self, worker: str, at: float) -> None:
        if worker in self._inside:
            self._over.append(replace(self._inside.pop(worker), left_at=at))

    def died(self, worker: str, *, killed_at: float, last_sign: float) -> None:
        """A killed worker was inside until the kill at least, and until its last sign of life if that came later."""
        if worker in self._inside:
            self._inside[worker] = replace(self._inside[worker], killed=True)
        self.left(worker, max(killed_at, last_sign))
