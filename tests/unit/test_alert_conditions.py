"""Which alerts a round is worth, and when each is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aiogpulock.alerts.ledger import MOST_PER_WINDOW, RATE_WINDOW, Ledger
from aiogpulock.config import AlertSettings, MonitorSettings
from aiogpulock.models import Alert, LockSnapshot
from aiogpulock.monitor import Repair, Round
from aiogpulock.monitor.conditions import conditions, events, own_conditions, own_events
from aiogpulock.monitor.plan import Cause
from aiogpulock.monitor.round import FailedRepair
from aiogpulock.rates import RateWindow, Totals
from aiogpulock.zombies import Zombie, ZombieKind

MONITOR, ALERTS = MonitorSettings(), AlertSettings()


def held(**changed: Any) -> LockSnapshot:
    """A lease as `status` shows it."""
    lock = LockSnapshot(
        gpu_id="0", key="gpu_lock:0", at=1000.0, value="locked_by_asr:h", foreign=False, foreign_for=None, phase="held",
        holder_id="h", task_name="asr", host="host", pid=1, process=None, user=None, fencing_token=7, age=1.0,
        lease=60.0, deadline_in=59.0, deadline_ms=1, expires_in=599.0, dirty=False, waiters=0, dead_waiters=0,
        stray_waiters=False, queue=(), stats={},
    )  # fmt: skip
    return msgspec.structs.replace(lock, **changed)


def types(seen: Round) -> list[tuple[str, str]]:
    return [(alert.type, alert.level) for alert in conditions(seen, MONITOR, ALERTS)]


def rated(**recent: int) -> list[tuple[str, str]]:
    """The conditions after a window in which these counters grew, over a long history without faults."""
    window = RateWindow(300)
    before = Totals(attempts=10_000, acquisitions=10_000)
    window.rates(0, {"gpu_lock:0": before})
    after = {name: getattr(before, name) + recent.get(name, 0) for name in Totals.__struct_fields__}
    return types(Round(at=0, rates=window.rates(200, {"gpu_lock:0": Totals(**after)})))


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ({"attempts": 20, "acquisitions": 20, "emergency_releases": 1}, []),  # 0.05 is not more than 0.05
        ({"attempts": 20, "acquisitions": 20, "emergency_releases": 2}, [("high_emergency_release_rate", "critical")]),
        ({"attempts": 19, "acquisitions": 19, "emergency_releases": 19}, []),  # too few samples
        ({"attempts": 20, "timeouts": 2}, []),
        ({"attempts": 20, "timeouts": 3}, [("high_timeout_rate", "warning")]),
        ({"attempts": 1, "ownership_violations": 1}, [("ownership_violations", "warning")]),
        ({"release_script_errors": 1}, [("lua_script_errors", "critical")]),
    ],
)
def test_rates_are_those_of_the_window_and_need_samples(
    recent: dict[str, int], expected: list[tuple[str, str]]
) -> None:
    assert rated(**recent) == expected


def test_a_bad_past_is_no_alert_when_the_monitor_starts() -> None:
    bad = Totals(attempts=1000, acquisitions=100, timeouts=900, emergency_releases=100, release_script_errors=1)
    window = RateWindow(300)
    first = window.rates(0, {"gpu_lock:0": bad})
    assert types(Round(at=0, rates=first)) == []
    late = window.rates(30, {"gpu_lock:0": bad, "gpu_lock:1": bad})  # it could not be read before
    assert types(Round(at=0, rates=late)) == []
    worse = {name: getattr(bad, name) + 25 for name in Totals.__struct_fields__}
    told = types(Round(at=0, rates=window.rates(60, {"gpu_lock:0": bad, "gpu_lock:1": Totals(**worse)})))
    assert ("high_timeout_rate", "warning") in told


def test_each_unreadable_lock_is_an_alert_of_its_own() -> None:
    told = conditions(Round(at=0, unreadable={"gpu_lock:1": "odd", "gpu_lock:2": "odd"}), MONITOR, ALERTS)
    assert [(alert.type, alert.lock_key) for alert in told] == [
        ("lock_unreadable", "gpu_lock:1"),
        ("lock_unreadable", "gpu_lock:2"),
    ]


def test_without_redis_only_that_is_known() -> None:
    [alert] = [
        *conditions(Round(at=0, error="no route"), MONITOR, ALERTS),
        *own_conditions(Round(at=0, error="no route")),
    ]
    assert (alert.type, alert.level) == ("redis_disconnected", "critical")


def zombie(kind: ZombieKind, *waiters: str) -> Zombie:
    return Zombie(
        key="gpu_lock:0", value="locked_by_asr:h", ttl=9.0, kind=kind, holder="asr", detail="dead", waiters=waiters
    )


def test_a_dead_waiter_mutes_no_dead_holder(ledger: Ledger) -> None:
    seen = Round(at=0, zombies=(zombie("heartbeat_stale"), zombie("dead_waiters")))
    told = ledger.conditions(conditions(seen, MONITOR, ALERTS))
    assert [(notice.alert.type, notice.alert.level) for notice in told] == [
        ("zombie_locks_detected", "critical"),
        ("zombie_locks_detected", "warning"),
    ]


def test_what_only_the_host_of_a_process_can_know_is_its_own() -> None:
    def given_up(cause: Cause, *gone: str) -> FailedRepair:
        repair = Repair(
            gpu_id="0", key="gpu_lock:0", action="reap", cause=cause, value=None, holder=None, reason="process_gone",
            detail="", gone=gone,
        )  # fmt: skip
        return FailedRepair(repair, "refused", 9, True)

    here = Round(
        at=0,
        zombies=(zombie("process_gone"), zombie("dead_waiters", "w")),
        failed=(given_up("process_gone"), given_up("dead_waiters", "w")),
    )
    everywhere = Round(
        at=0,
        zombies=(zombie("heartbeat_stale"), zombie("dead_waiters")),
        failed=(given_up("heartbeat_stale"), given_up("dead_waiters")),
    )
    for seen, common, own in ((here, 0, 2), (everywhere, 2, 0)):
        assert (len(types(seen)), len([*own_conditions(seen)])) == (common, own)
        assert (len([*events(seen, MONITOR)]), len([*own_events(seen)])) == (common, own)


@pytest.mark.parametrize(
    ("age", "kind"),
    [
        (299, None),
        (300, "lock_warning"),
        (600, "lock_soft_timeout"),
        (900, "lock_hard_timeout"),
        (9e9, "lock_hard_timeout"),
    ],
)
def test_the_age_of_a_lock_is_told_by_level(age: float, kind: str | None) -> None:
    told = list(events(Round(at=0, locks=(held(age=age),)), MONITOR))
    assert [(alert.type, alert.level, alert.holder) for alert in told] == ([(kind, "warning", "h")] if kind else [])


def test_silence_is_told_of_holders_that_beat_and_not_of_those_without_a_heartbeat() -> None:
    long_lease = held(lease=300.0, deadline_in=220.0, expires_in=520.0)
    without_beats = held(lease=600.0, deadline_in=500.0, expires_in=500.0)
    assert types(Round(at=0, locks=(long_lease,))) == [("holder_silent", "warning")]
    assert types(Round(at=0, locks=(without_beats,))) == []


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(3600, now=clock)


GONE = Alert("redis_disconnected", "critical", "", "gone")


def test_a_condition_is_told_when_it_begins_while_it_lasts_and_when_it_ends(ledger: Ledger, clock: Clock) -> None:
    told = []
    for now, active in ((0, [GONE]), (30, [GONE]), (3600, [GONE]), (3630, []), (3660, [])):
        clock.now = now
        told.append([notice.kind for notice in ledger.conditions(active)])
    assert told == [["raised"], [], ["repeated"], ["resolved"], []]


def test_an_event_is_told_again_after_the_time_only(ledger: Ledger, clock: Clock) -> None:
    told = []
    for now in (0, 3599, 3600):
        clock.now = now
        told.append(len(ledger.event(GONE)))
    assert told == [1, 0, 1]


def dead(number: int) -> Alert:
    return Alert("zombie_locks_detected", "critical", f"gpu_lock:{number}", "dead")


def test_what_the_rate_limit_kept_back_is_counted_and_its_end_not_told(ledger: Ledger, clock: Clock) -> None:
    flood = [dead(number) for number in range(25)]
    for _ in range(3):
        told = ledger.conditions(flood)
        assert len(told) in (MOST_PER_WINDOW, 0)
    clock.now = RATE_WINDOW
    ended = ledger.conditions([])
    assert [notice.kind for notice in ended] == ["resolved"] * MOST_PER_WINDOW
    assert [notice.held_back for notice in ended][:2] == [5, 0]


def test_a_p0_waits_behind_nothing_else(ledger: Ledger) -> None:
    ledger.conditions([dead(number) for number in range(25)])
    (told,) = ledger.event(Alert("gpu_lock_critical_failure", "P0", "gpu_lock:99", "stays held"))
    assert told.alert.level == "P0"


def test_what_was_kept_back_does_not_count_as_told(ledger: Ledger, clock: Clock) -> None:
    flood = [dead(number) for number in range(25)]
    first = ledger.conditions(flood)
    events = [Alert("loop_stalled", "warning", f"gpu_lock:{number}", "blocked") for number in range(25)]
    told = [notice for event in events for notice in ledger.event(event)]
    assert len(told) == MOST_PER_WINDOW

    clock.now = RATE_WINDOW
    late = ledger.conditions(flood)
    again = [notice for event in events for notice in ledger.event(event)]

    assert {notice.alert.lock_key for notice in first + late} == {alert.lock_key for alert in flood}
    assert [notice.kind for notice in late] == ["raised"] * 5
    assert sum(notice.held_back for notice in late) == 4  # as the first of them was told, four more had to wait
    assert {notice.alert.lock_key for notice in told + again} == {alert.lock_key for alert in events}
    assert len(again) == 5


def test_an_end_that_was_kept_back_is_told_when_there_is_room(ledger: Ledger, clock: Clock) -> None:
    flood = [dead(number) for number in range(MOST_PER_WINDOW)]
    assert len(ledger.conditions(flood)) == MOST_PER_WINDOW
    assert ledger.conditions([]) == []
    clock.now = RATE_WINDOW
    assert [notice.kind for notice in ledger.conditions([])] == ["resolved"] * MOST_PER_WINDOW
    assert ledger.conditions([]) == []


def test_while_redis_is_away_nothing_else_has_ended(ledger: Ledger) -> None:
    ledger.conditions([dead(1)])
    assert [notice.alert.type for notice in ledger.conditions([GONE], complete=False)] == ["redis_disconnected"]
    assert [(notice.kind, notice.alert.type) for notice in ledger.conditions([dead(1)])] == [
        ("resolved", "redis_disconnected")
    ]


def test_what_nobody_else_can_see_is_told_whoever_speaks(ledger: Ledger, clock: Clock) -> None:
    clock.now = 10
    told = ledger.conditions([dead(1)], own=[dead(2)], spoken_until=15)
    assert [notice.alert.lock_key for notice in told] == ["gpu_lock:2"]
    clock.now = 20
    assert [(notice.kind, notice.alert.lock_key) for notice in ledger.conditions([dead(1)], spoken_until=15)] == [
        ("resolved", "gpu_lock:2")
    ]


def test_who_takes_over_tells_what_the_other_one_can_not_have_told(ledger: Ledger, clock: Clock) -> None:
    stall = Alert("lock_warning", "warning", "gpu_lock:9", "held for long")
    clock.now = 10
    assert ledger.conditions([dead(1)], spoken_until=5) == []
    assert ledger.event(stall, spoken_until=5) == []
    clock.now = 20
    assert ledger.conditions([dead(1), dead(2)], spoken_until=15) == []  # the other one has told of 1, and not of 2
    assert ledger.event(stall, spoken_until=15) == []
    clock.now = 30
    assert [notice.alert.lock_key for notice in ledger.conditions([dead(1), dead(2)])] == ["gpu_lock:2"]
    assert ledger.event(stall) == []
    assert {notice.alert.lock_key for notice in ledger.conditions([])} == {"gpu_lock:1", "gpu_lock:2"}
