"""What has been told already: each thing once, again while it lasts, its end, and never a flood."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from aiogpulock import clock
from aiogpulock.alerts.notice import Notice
from aiogpulock.models import Alert, AlertLevel

Key = tuple[str, str, str]

MOST_PER_WINDOW = 20
"""Notices of one level in `RATE_WINDOW` seconds; what is more urgent does not wait behind the rest."""
RATE_WINDOW = 300.0
MOST_REMEMBERED = 10_000


@dataclass(slots=True)
class _Known:
    """One alert, and what people know of it."""

    seen: float
    alert: Alert
    told: float | None = None
    own: bool = False
    """Nobody else can see it."""
    held_back: bool = False


class Ledger:
    """De-duplicates by type, lock and holder. `repeat_after`: seconds until the same is told again. Not thread-safe.

    `spoken_until` of a call: somebody else tells people, and had told all that there was until then, on this clock.
    Nothing is told here; but what that one can not have told yet is remembered as untold, should it be gone.
    """

    def __init__(self, repeat_after: float, *, now: Callable[[], float] = clock.now) -> None:
        self.repeat_after = repeat_after
        self._now = now
        self._events: dict[Key, _Known] = {}
        self._open: dict[Key, _Known] = {}
        """Conditions that last, or whose end is still to be told."""
        self._rates = {level: _Rate(now) for level in get_args(AlertLevel)}

    def event(self, alert: Alert, *, spoken_until: float | None = None) -> list[Notice]:
        """Something happened."""
        key, now = _key(alert), self._now()
        if key not in self._events:
            self._forget(now)
        known = self._events.setdefault(key, _Known(now, alert))
        known.alert = alert
        if not self._is_due(known, now, self.repeat_after, spoken_until):
            return []
        return self._raised(known, now, "raised")

    def conditions(
        self,
        active: Iterable[Alert],
        *,
        own: Iterable[Alert] = (),
        complete: bool = True,
        spoken_until: float | None = None,
    ) -> list[Notice]:
        """All that is the case now: what is new, what lasts, and what has ended since the last call.

        `own`: what nobody else can see, so it is told here whoever speaks. Not `complete`: of what is not in `active`
        nothing is known, and nothing has ended.
        """
        alone = {_key(alert): alert for alert in own}
        now, current = self._now(), {_key(alert): alert for alert in active} | alone
        notices: list[Notice] = []
        for key in (self._open.keys() - current.keys()) if complete else ():
            known = self._open[key]
            if known.told is not None and (known.own or spoken_until is None):
                if not (ended := self._notices(known, "resolved")):
                    continue  # its end is told when there is room
                notices += ended
            del self._open[key]
        for key, alert in current.items():
            known = self._open.setdefault(key, _Known(now, alert))
            known.alert, known.own = alert, key in alone
            if self._is_due(known, now, max(self.repeat_after, 1.0), None if known.own else spoken_until):
                notices += self._raised(known, now, "raised" if known.told is None else "repeated")
        return notices

    def _is_due(self, known: _Known, now: float, repeat_after: float, spoken_until: float | None) -> bool:
        overdue = known.told is not None and now - known.told >= repeat_after
        if spoken_until is None:
            return known.told is None or overdue
        if overdue or (known.told is None and known.seen <= spoken_until):
            known.told = now  # by whoever speaks
        return False

    def _raised(self, known: _Known, now: float, kind: Literal["raised", "repeated"]) -> list[Notice]:
        notices = self._notices(known, kind)
        if notices:
            known.told = now
        return notices

    def _notices(self, known: _Known, kind: Literal["raised", "repeated", "resolved"]) -> list[Notice]:
        """One, or none if there is no room: then it does not count as told."""
        rate = self._rates[known.alert.level]
        if not rate.allows():
            rate.held_back += not known.held_back
            known.held_back = True
            return []
        rate.held_back -= known.held_back and rate.held_back > 0  # it comes late, and is not kept from anybody
        known.held_back = False
        return [Notice(alert=known.alert, kind=kind, at=time.time(), held_back=rate.take_held_back())]

    def _forget(self, now: float) -> None:
        if len(self._events) >= MOST_REMEMBERED:
            recent = {key: known for key, known in self._events.items() if now - known.seen < self.repeat_after}
            self._events = recent if len(recent) < MOST_REMEMBERED else {}


class _Rate:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._sent: deque[float] = deque()
        self.held_back = 0

    def allows(self) -> bool:
        now = self._now()
        while self._sent and now - self._sent[0] >= RATE_WINDOW:
            self._sent.popleft()
        if len(self._sent) >= MOST_PER_WINDOW:
            return False
        self._sent.append(now)
        return True

    def take_held_back(self) -> int:
        held_back, self.held_back = self.held_back, 0
        return held_back


def _key(alert: Alert) -> Key:
    return alert.type, alert.lock_key, alert.holder
