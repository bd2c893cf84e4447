"""What has been told already: each thing once, again while it lasts, its end, and never a flood."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from aiogpulock import clock
from aiogpulock.alerts.notice import Notice
from aiogpulock.models import Alert

Key = tuple[str, str, str]

MOST_PER_WINDOW = 20
"""Notices of one urgency in `RATE_WINDOW` seconds; what is critical does not wait behind warnings."""
RATE_WINDOW = 300.0
MOST_REMEMBERED = 10_000


class Ledger:
    """De-duplicates by type, lock and holder. `repeat_after`: seconds until the same is told again. Not thread-safe."""

    def __init__(self, repeat_after: float, *, now: Callable[[], float] = clock.now) -> None:
        self.repeat_after = repeat_after
        self._now = now
        self._events: dict[Key, float] = {}
        self._open: dict[Key, tuple[float, Alert, bool]] = {}
        """Conditions that last: when they were last told, what, and whether people got it."""
        self._rates = {True: _Rate(now), False: _Rate(now)}

    def event(self, alert: Alert) -> list[Notice]:
        """Something happened."""
        key, now = _key(alert), self._now()
        told = self._events.get(key)
        if told is not None and now - told < self.repeat_after:
            return []
        self._forget(now)
        self._events[key] = now
        return self._notices(alert, "raised")

    def conditions(self, active: Iterable[Alert], *, speak: bool = True) -> list[Notice]:
        """All that is the case now: what is new, what lasts, and what has ended since the last call.

        Without `speak` somebody else has told all this, and nothing is to be told.
        """
        now, current = self._now(), {_key(alert): alert for alert in active}
        notices: list[Notice] = []
        for key in self._open.keys() - current.keys():
            _, alert, known = self._open.pop(key)
            notices += self._notices(alert, "resolved") if known and speak else []
        for key, alert in current.items():
            told = self._open.get(key)
            if told is None or now - told[0] >= max(self.repeat_after, 1.0):
                fresh = self._notices(alert, "raised" if told is None else "repeated") if speak else []
                known = bool(fresh) or not speak or (told is not None and told[2])
                self._open[key] = now, alert, known
                notices += fresh
        return notices

    def _notices(self, alert: Alert, kind: Literal["raised", "repeated", "resolved"]) -> list[Notice]:
        rate = self._rates[alert.level == "warning"]
        if not rate.allows():
            return []
        return [Notice(alert=alert, kind=kind, at=time.time(), held_back=rate.take_held_back())]

    def _forget(self, now: float) -> None:
        if len(self._events) >= MOST_REMEMBERED:
            self._events = {key: told for key, told in self._events.items() if now - told < self.repeat_after}
        if len(self._events) >= MOST_REMEMBERED:
            self._events.clear()


class _Rate:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._sent: deque[float] = deque()
        self._held_back = 0

    def allows(self) -> bool:
        now = self._now()
        while self._sent and now - self._sent[0] >= RATE_WINDOW:
            self._sent.popleft()
        if len(self._sent) >= MOST_PER_WINDOW:
            self._held_back += 1
            return False
        self._sent.append(now)
        return True

    def take_held_back(self) -> int:
        held_back, self._held_back = self._held_back, 0
        return held_back


def _key(alert: Alert) -> Key:
    return alert.type, alert.lock_key, alert.holder
