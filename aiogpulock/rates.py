"""How often things go wrong: rates over a window, from the counters that all processes share in Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from aiogpulock.incidents import ExceptionStats
from aiogpulock.models import LockSnapshot


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The shared counters, summed over all locks, since they began."""

    attempts: int = 0
    """Requests for a lock."""
    acquisitions: int = 0
    timeouts: int = 0
    """Requests whose `max_wait_time` ran out."""
    normal_release_failures: int = 0
    emergency_releases: int = 0
    release_script_errors: int = 0
    ownership_violations: int = 0

    @classmethod
    def of(cls, locks: Iterable[LockSnapshot]) -> Totals:
        every = [lock.stats for lock in locks]
        return cls(**{name: sum(stats.get(name, 0) for stats in every) for name in cls.__struct_fields__})

    def since(self, earlier: Totals) -> Totals:
        names = self.__struct_fields__
        return Totals(**{name: getattr(self, name) - getattr(earlier, name) for name in names})

    @property
    def exception_stats(self) -> ExceptionStats:
        names = ExceptionStats.__struct_fields__
        return ExceptionStats(**{name: getattr(self, name) for name in names})

    @property
    def exceptions(self) -> int:
        return sum(getattr(self, name) for name in ExceptionStats.__struct_fields__)


class ExceptionRates(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, per acquisition or attempt: 0.05 is one in twenty."""

    exception_rate: float
    """The four exception counters together, per acquisition."""
    emergency_release_rate: float
    """Per acquisition."""
    timeout_rate: float
    """Per attempt."""
    total_locks: int
    """Acquisitions since the counters began."""
    window: float | None
    """Seconds that the rates cover; None: all the time since the counters began."""
    samples: int
    """Acquisitions that the rates are made of."""
    attempts: int
    """Attempts that the rates are made of."""
    recent: ExceptionStats
    """The four exception counters over the same time."""


class RateWindow:
    """Rates over the last `window` seconds, as far back as somebody has looked; until then over all time."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._seen: deque[tuple[float, Totals]] = deque()

    def rates(self, at: float, totals: Totals) -> ExceptionRates:
        """Take the totals as they are at `at` (seconds, any clock), and answer the rates up to then."""
        if self._seen and totals.attempts < self._seen[-1][1].attempts:
            self._seen.clear()  # the counters began anew: Redis lost its data
        while len(self._seen) > 1 and self._seen[1][0] <= at - self._window:
            self._seen.popleft()
        began, base = self._seen[0] if self._seen else (None, Totals())
        if not self._seen or at - self._seen[-1][0] >= self._window / 100:  # however often somebody looks
            self._seen.append((at, totals))
        return _rates(totals, totals.since(base), None if began is None else at - began)


def _rates(totals: Totals, recent: Totals, window: float | None) -> ExceptionRates:
    return ExceptionRates(
        exception_rate=_ratio(recent.exceptions, recent.acquisitions),
        emergency_release_rate=_ratio(recent.emergency_releases, recent.acquisitions),
        timeout_rate=_ratio(recent.timeouts, recent.attempts),
        total_locks=totals.acquisitions,
        window=window,
        samples=recent.acquisitions,
        attempts=recent.attempts,
        recent=recent.exception_stats,
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole > 0 else float(part > 0)
