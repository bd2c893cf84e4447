"""The campaign itself, for seconds: it passes on what is shipped, and reports what is violated."""

from __future__ import annotations

from typing import Any

import pytest

from aiogpulock.waiting import WaitingRoom
from tests.faults import soak
from tests.faults.__main__ import complaints
from tests.faults.arena import PATIENCE, SETTINGS, Arena
from tests.faults.campaign import Result, run_fault
from tests.faults.fault import LONG_LEASE, Fault
from tests.faults.kinds import KINDS
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


class Drawing(Fault):
    """Notes what a cycle draws: in the campaign, in the judge and in the workers."""

    name, what, workers = "drawing", "nothing", 1

    def __init__(self) -> None:
        self.drawn: list[object] = []

    def cycle(self, arena: Arena) -> float:
        client = RegisterClient(arena.judge.path)
        stays = [
            round(client.call("enter", f"visitor {n}", 2**60 + n, until=0.0, pid=1)["leave_in"], 9) for n in range(2)
        ]
        client.close()
        (worker,) = arena.workers.values()
        seeded = worker.said_since("seeded", 0.0)["seed"]
        self.drawn += [arena.random.random(), stays, seeded]
        return 0.0


def test_a_cycle_that_is_run_again_alone_draws_the_same() -> None:
    first, again = Drawing(), Drawing()
    assert run_fault(first, cycles=1, seed=1, first=3).cycles == 1
    run_fault(again, cycles=1, seed=1, first=3)
    assert first.drawn == again.drawn
    assert first.drawn[-1] == "1/drawing/3/0"


def test_a_loss_that_is_told_late_is_waited_for() -> None:
    class Ended(Fault):
        name, what = "ended", "somebody else ends the lease, and the holder learns it by its next beat"

        def cycle(self, arena: Arena) -> float:
            victim, entry = arena.capture()
            arena.lock.reap(arena.lock.value or "", "reaped", "process_gone")
            self.check_kept(arena, victim, entry)
            return 0.0

    result = run_fault(Ended(), cycles=1, seed=1)
    assert any(violation.startswith("lease lost") for violation in result.violations)


def test_a_holder_that_goes_on_past_its_own_deadline_is_reported() -> None:
    class Deaf(Fault):
        name, what = "deaf", "a holder that nobody tells"

        def cycle(self, arena: Arena) -> float:
            client = RegisterClient(arena.judge.path)
            client.call("enter", "deaf", 2**60, until=1.0, pid=1)
            for _ in range(10):
                client.call("write", "deaf", 2**60, until=1.0)
            client.close()
            return 0.0

    result = run_fault(Deaf(), cycles=1, seed=1)
    assert [violation for violation in result.violations if violation.startswith("no loss: ")]


def test_a_campaign_that_falls_over_says_in_which_cycle_and_ends_with_the_telling_line() -> None:
    class Broken(Fault):
        name, what = "broken", "a mistake of the campaign"

        def cycle(self, arena: Arena) -> float:
            raise RuntimeError("out of order")

    result = run_fault(Broken(), cycles=2, seed=1, first=5)
    assert result.cycles == 1
    (violation,) = result.violations
    assert violation.startswith("fell over: ")
    assert violation.endswith("in cycle 5")
    *_, told, again = complaints([result, Result("other")], seed=1).splitlines()
    assert "RuntimeError: out of order" in told
    assert again.startswith("again: python -m tests.faults --fault broken --seed 1")


def test_whoever_a_bug_forgot_is_missed_before_a_timer_of_the_library_comes_to_help() -> None:
    longest = max(PATIENCE, *(kind.bound for kind in KINDS.values()))
    assert longest < SETTINGS["fallback_timeout"] * (1 - WaitingRoom.JITTER)
    assert longest < LONG_LEASE["heartbeat"]["timeout"]


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


def test_a_lease_that_is_lost_without_a_fault_is_reported() -> None:
    class Ended(Fault):
        name, what, workers = "ended", "an operator ends a lease", 1

        def cycle(self, arena: Arena) -> float:
            victim, entry = arena.capture()
            assert soak.unasked(arena) == []
            arena.lock.reap(arena.lock.value or "", "forced", "forced")
            assert victim.find("lost", timeout=PATIENCE, token=entry["token"])
            assert soak.unasked(arena) == ["without a fault: lost, forced"]
            return 0.0

    assert run_fault(Ended(), cycles=1, seed=1).violations == []


def test_three_seconds_without_faults_leave_nothing_behind() -> None:
    samples, violations, holds, emergencies = soak.soak(3, workers=2)
    assert violations == []
    assert holds > 50
    assert emergencies == 0
    assert samples
