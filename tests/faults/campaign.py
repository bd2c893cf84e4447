"""Runs cycles of one fault, and counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import quantiles

from tests.faults.arena import Arena, Stuck
from tests.faults.fault import Fault


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
            arena.fill()
            arena.await_ready()
            for number in range(first, first + cycles):
                arena.random.seed(f"{seed}/{fault.name}/{number}")
                try:
                    result.recoveries.append(fault.cycle(arena))
                except Stuck as stuck:
                    result.violations.append(f"cycle {number}: lost wake-up: {stuck}")
                    break
                finally:
                    result.cycles += 1
            report = arena.finish()
        finally:
            arena.close()
            fault.end(arena)
    judged = report["violations"]
    if fault.must_bite == "overlaps":
        declared = [each for each in judged if each.startswith(("overlap", "regression: wrote"))]
        judged = [each for each in judged if each not in declared]
        report["overlaps"] += len(declared)
    if fault.must_bite and cycles and not report[fault.must_bite]:
        judged.append(f"did not bite: no {fault.must_bite} seen, though this fault is declared to cause them")
    if fault.patient and (refused := arena.count("refused")):
        judged.append(f"gave up: {refused} acquisitions ended with an error")
    result.violations += judged + arena.violations
    result.violations += [
        f"broken: {event['traceback']}"
        for worker in arena._all
        for event in worker.events
        if event["event"] == "broken"
    ]
    result.declared, result.stale, result.entries = report["overlaps"], report["stale"], report["entries"]
    result.lost, result.seconds = arena.count("lost"), time.monotonic() - started
    return result
