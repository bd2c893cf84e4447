"""The campaign itself, for seconds: it passes on what is shipped, and reports what is violated."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults import soak
from tests.faults.arena import Arena
from tests.faults.campaign import run_fault
from tests.faults.fault import Fault
from tests.faults.of_the_server import InboxKill
from tests.faults.processes import KillHolder
from tests.register import RegisterClient

pytestmark = pytest.mark.integration


class Planted(Fault):
    """Nothing happens, but one client of the register believes to hold for ever."""

    name, what = "planted", "a client that believes to hold"

    def __init__(self, **entry: Any) -> None:
        self._entry = entry

    def cycle(self, arena: Arena) -> float:
        _, entry = arena.capture()
        self._rogue = RegisterClient(arena.judge.path)
        token = entry["token"] + self._entry["ahead"]
        self._rogue.call("enter", "rogue", token, until=self._entry["until"], pid=1)
        freed_at = arena.judge.free(entry["holder"])
        return float(arena.next(freed_at, bound=self.bound)["at"] - freed_at)

    def end(self, arena: Arena) -> None:
        self._rogue.close()


class Silent(Fault):
    """Every worker is stopped: nobody enters any more."""

    name, what, bound = "silent", "no progress", 0.3

    def cycle(self, arena: Arena) -> float:
        _, entry = arena.capture()
        for worker in arena.workers.values():
            worker.stop()
        try:
            return float(arena.next(entry["at"] + 0.001, bound=self.bound)["at"])
        finally:
            for worker in arena.workers.values():
                worker.cont()
            arena.judge.free(entry["holder"])


@pytest.mark.parametrize("fault", [KillHolder, InboxKill])
def test_three_cycles_of_a_fault_violate_nothing(fault: type[Fault]) -> None:
    result = run_fault(fault(), cycles=3, seed=1)
    assert result.violations == []
    assert (result.cycles, len(result.recoveries)) == (3, 3)
    assert result.bound == 1.0


def test_an_overlap_of_two_self_believed_holders_is_reported() -> None:
    result = run_fault(Planted(ahead=0.5, until=2.0**40), cycles=1, seed=1)
    assert any(violation.startswith("overlap") for violation in result.violations)


def test_a_token_that_went_back_is_reported() -> None:
    result = run_fault(Planted(ahead=-1, until=2.0**40), cycles=1, seed=1)
    assert any(violation.startswith("regression") for violation in result.violations)
    assert result.stale >= 1


def test_no_progress_is_reported_as_a_lost_wake_up() -> None:
    result = run_fault(Silent(), cycles=1, seed=1)
    assert any("lost wake-up" in violation for violation in result.violations)


def test_waiters_that_stay_without_a_queue_are_reported() -> None:
    class Littering(Fault):
        name, what = "littering", "a seat of nobody"

        def cycle(self, arena: Arena) -> float:
            arena.client.hset("{gpu_lock:1}:waiters", "nobody", "inbox 1000 1000 1 task")
            return 0.0

    result = run_fault(Littering(), cycles=1, seed=1)
    assert result.violations == ["left: keys ['{gpu_lock:1}:waiters']"]


def test_a_declared_fault_that_does_not_bite_is_reported() -> None:
    class Harmless(KillHolder):
        must_bite = "stale"

    result = run_fault(Harmless(), cycles=1, seed=1)
    assert [violation for violation in result.violations if violation.startswith("did not bite")]


def test_three_seconds_without_faults_leave_nothing_behind() -> None:
    samples, violations, holds, emergencies = soak.soak(3, workers=2)
    assert violations == []
    assert holds > 50
    assert emergencies == 0
    assert samples
