"""Runs cycles of one fault, and counts."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from statistics import quantiles

from tests.faults.arena import Arena, Stuck
from tests.faults.fault import Fault
from tests.faults.judge import Message

ENOUGH = 3
"""Violations after which a fault is not tried further."""


@dataclass
class Result:
    """What came of one fault. Times in seconds."""

    fault: str
    cycles: int = 0
    violations: list[str] = field(default_factory=list)
    declared: int = 0
    """Overlaps that the promise excludes: the older holder was frozen past its deadline, or its data was deleted."""
    stale: int = 0
    """Writes by stale holders that the register rejected."""
    lost: int = 0
    """Leases whose holder was told of the loss."""
    entries: int = 0
    recoveries: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def bound(self) -> float:
        """The 95 % upper bound of the violations per cycle, when there was none."""
        return 3 / self.cycles if self.cycles else 1.0

    def percentile(self, percent: int) -> float:
        if len(self.recoveries) < 2:
            return self.recoveries[0] if self.recoveries else float("nan")
        return quantiles(self.recoveries, n=100, method="inclusive")[percent - 1]


def run_fault(fault: Fault, *, cycles: int, seed: int, first: int = 0) -> Result:
    """`cycles` cycles, numbered from `first`: each draws from its own seed, so that one can be run again alone."""
    result, started = Result(fault.name), time.monotonic()
    with fault.server() as server:
        arena = Arena(f"{seed}", workers=fault.workers, server=server, settings=fault.settings)
        arena.config = dict(fault.config)
        try:
            fault.begin(arena)
            _run_cycles(fault, arena, range(first, first + cycles), seed, result)
            report = arena.finish()
        finally:
            arena.close()
            fault.end(arena)
    result.violations += _violations(fault, arena, report, result)
    result.declared, result.stale, result.entries = report["overlaps"], report["stale"], report["entries"]
    result.lost, result.seconds = arena.count("lost"), time.monotonic() - started
    return result


def _run_cycles(fault: Fault, arena: Arena, numbers: range, seed: int, result: Result) -> None:
    try:
        arena.fill()
        arena.await_ready()
        for number in numbers:
            result.cycles += 1
            arena.begin_cycle(number, f"{seed}/{fault.name}/{number}")
            result.recoveries.append(fault.cycle(arena))
            if len(arena.violations) >= ENOUGH:
                break
    except Stuck as stuck:
        arena.violated(f"lost wake-up: {stuck}")
    except Exception:  # nothing else of the campaign is to be lost with it
        arena.violated(f"fell over: {traceback.format_exc()}")


def _violations(fault: Fault, arena: Arena, report: Message, result: Result) -> list[str]:
    """What the judge, the arena and the workers complain of. Overlaps of a fault that is to cause them are counted."""
    judged: list[str] = report["violations"]
    if fault.must_bite == "overlaps":
        report["overlaps"] += sum(each.startswith("overlap") for each in judged)
        judged = [each for each in judged if not each.startswith(("overlap", "regression: wrote"))]
    # Each cycle makes it happen: how many there are is no matter of luck.
    if fault.must_bite and (bites := report[fault.must_bite]) < (done := len(result.recoveries)):
        judged.append(f"did not bite: {bites} {fault.must_bite} in {done} cycles, each of which must cause one")
    if fault.patient and (
        refused := [event["error"] for event in (*arena.said("refused"), *arena.said("unreachable"))]
    ):
        judged.append(f"gave up: {len(refused)} acquisitions ended with an error: {', '.join(sorted({*refused}))}")
    return judged + arena.violations + [f"broken: {event['traceback']}" for event in arena.said("broken")]
