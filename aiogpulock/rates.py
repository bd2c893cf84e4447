"""How often things go wrong: rates over a window, from the counters that all processes share in Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from aiogpulock.incidents import ExceptionStats
from aiogpulock.models import LockSnapshot


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The shared counters of one lock, or of all of them together, since they began."""

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
    def of(cls, lock: LockSnapshot) -> Totals:
        return cls(**{name: lock.stats.get(name, 0) for name in cls.__struct_fields__})

    @classmethod
    def sum(cls, every: Iterable[Totals]) -> Totals:
        every = list(every)
        return cls(**{name: sum(getattr(one, name) for one in every) for name in cls.__struct_fields__})

    def since(self, earlier: Totals) -> Totals:
        """What came; nothing where a counter began anew."""
        names = self.__struct_fields__
        return Totals(**{name: max(0, getattr(self, name) - getattr(earlier, name)) for name in names})

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
    """Rates over the last `window` seconds, as far back as somebody has looked; until then over all time.

    The differences are those of each lock: one that comes late into view, as it could not be read before, brings its
    whole past with it, and that is no news. It counts from its second look on, and so does a lock that is new.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._locks: Mapping[str, Totals] = {}
        """At the last look."""
        self._came = Totals()
        """Since the first look."""
        self._seen: deque[tuple[float, Totals]] = deque()
        """What had come, by the time of the look."""

    def rates(self, at: float, locks: Mapping[str, Totals]) -> ExceptionRates:
        """Take the counters of each lock as they are at `at` (seconds, any clock), and answer the rates up to then."""
        totals, before = Totals.sum(locks.values()), self._locks
        news = [counters.since(before[lock]) for lock, counters in locks.items() if lock in before]
        self._locks, self._came = locks, Totals.sum([self._came, *news])
        while len(self._seen) > 1 and self._seen[1][0] <= at - self._window:
            self._seen.popleft()
        first = self._seen[0] if self._seen else None
        if not self._seen or at - self._seen[-1][0] >= self._window / 100:  # however often somebody looks
            self._seen.append((at, self._came))
        if first is None:
            return _rates(totals, totals, None)
        began, came = first
        return _rates(totals, self._came.since(came), at - began)


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
