"""Many waiters: does a hand-off cost more when more wait?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.arena import DoesNotRunError, contest, kind
from benchmarks.contender import Order
from benchmarks.peers import OURS, Peer
from benchmarks.results import Column, Lines, Result, Row, Table, Target, at_most, shown
from benchmarks.scenarios import Stage

TITLE = "Many waiters"

CROWDS = ((2, 10), (2, 100), (2, 1000), (8, 10), (8, 100), (8, 1000), (2, 10_000), (8, 10_000))
"""Processes and waiters, in the order in which the time is spent."""
PROCESSES = (2, 8)
RUNS = 3
PEER_SECONDS, OUR_SECONDS = 60.0, 600.0
"""For all runs of all sizes; ours are all done within that."""


class Figures(NamedTuple):
    """Of one crowd, per hand-off where not said otherwise."""

    served: int
    waiters: int
    seconds: float
    requests: float
    cpu: float
    """Of the server."""
    connections: float
    """In all, while everybody waits."""
    trouble: str
    """The first error that a waiter met."""

    @property
    def complete(self) -> bool:
        return self.served == self.waiters


Crowd = tuple[int, int]
Found = dict[Crowd, list[Figures] | str]
"""The runs of each size; a word if there was none."""


def descriptors(quick: bool) -> int:
    """A connection for each waiter of a peer, on the server's side."""
    return max(waiters for _, waiters in _crowds(quick)) + 200


def _crowds(quick: bool) -> list[Crowd]:
    return [crowd for crowd in CROWDS if not quick or crowd[1] in (100, 1000)]


def run(stage: Stage) -> Result:
    """All wait for one holder; when it releases, each holds the lock once and releases at once.

    Each size is tried up to three times, and the median is told. This library does all of them. Each peer has 60 s for
    all sizes together, the larger ones last, and tries again with what is left of them; what it has not served by then
    is told.
    """
    crowds = _crowds(stage.quick)
    found = {OURS: _course(stage, OURS, crowds, OUR_SECONDS)}
    for peer in stage.peers:
        found[peer] = _course(stage, peer, crowds, stage.pick(PEER_SECONDS, 1.2))
    times = [_times(processes, crowds, found) for processes in PROCESSES]
    efforts = [_efforts(processes, crowds, found) for processes in PROCESSES]
    chart = Lines(
        "waiters", "Time per hand-off (2 processes)", times[0].title,
        "waiters (a line ends where the time was over)", " waiters",
    )  # fmt: skip
    return Result("waiters", TITLE, run.__doc__ or "", times + efforts, list(_targets(found)), [chart])


def _course(stage: Stage, peer: Peer, crowds: list[Crowd], seconds: float) -> Found:
    """What one contestant does in its time."""
    found: Found = dict.fromkeys(crowds, "not begun")
    until = time.monotonic() + seconds
    for _ in range(stage.pick(RUNS, 1)):
        for crowd in crowds:
            left, before = until - time.monotonic(), found[crowd]
            runs = before if isinstance(before, list) else []
            if left < 1 or (runs and not runs[0].complete):
                continue
            try:
                figures = _serve(stage, peer, *crowd, seconds=left)
            except DoesNotRunError as error:
                if peer is OURS:
                    raise
                found[crowd] = runs or f"does not run: {error}"
            else:
                found[crowd] = [*runs, figures] if figures.complete or not runs else runs
    return found


def _serve(stage: Stage, peer: Peer, processes: int, waiters: int, seconds: float) -> Figures:
    """`seconds` is for all of it."""
    stage.say(f"{peer.title}: {waiters} waiters in {processes} processes")
    arena, lock, until = stage.arena, f"waiters-{processes}-{waiters}", time.monotonic() + seconds
    with (
        arena.guests(peer, 1, lock) as (holder,),
        arena.guests(peer, processes, lock, waiters=waiters // processes) as crew,
    ):
        contest(crew, Order(seconds=10))  # first use connects
        holder.tell(Order(hold=-1, seconds=seconds, tell=True))
        holder.entered()
        for contender in crew:
            contender.tell(Order(tasks=waiters // processes, seconds=max(1.0, until - time.monotonic())))
        arena.wait_until_quiet(most=min(2 + waiters / 500, max(0.5, (until - time.monotonic()) / 3)))
        before = arena.usage()
        holder.go_on()
        answers = [contender.answer(seconds + 30) for contender in crew]
        holds = sorted(hold.left for answer in answers for hold in answer.holds)
        trouble = next((answer.errors[0] for answer in answers if answer.errors), "")
        released, usage = holder.released(), arena.usage().since(before)
        per_hold = 1 / len(holds) if holds else math.nan
        elapsed = (holds[-1] if holds else time.monotonic()) - released
        return Figures(
            len(holds), waiters // processes * processes, elapsed * per_hold, usage.requests * per_hold,
            usage.cpu * per_hold, float(before.connections), kind(trouble),
        )  # fmt: skip


def _median(runs: list[Figures] | str) -> Figures | None:
    """Of two, the faster one."""
    if isinstance(runs, str):
        return None
    return sorted(runs, key=lambda each: each.seconds)[(len(runs) - 1) // 2]


def _times(processes: int, crowds: list[Crowd], found: dict[Peer, Found]) -> Table:
    mine = sorted(crowd for crowd in crowds if crowd[0] == processes)
    rows = []
    for peer, runs in found.items():
        counts = [len(each) for crowd in mine if isinstance(each := runs[crowd], list)]
        least, most = min(counts, default=0), max(counts, default=0)
        rows.append(Row(peer.title, [*(_time(runs[crowd]) for crowd in mine),
                                     f"{least} to {most}" if least < most else f"{most}"]))  # fmt: skip
    columns = [*(Column(f"{waiters:,} waiters", "s") for _, waiters in mine), Column("runs")]
    return Table(f"time per hand-off, {processes} processes", columns, rows)


def _time(runs: list[Figures] | str) -> float | str:
    figures = _median(runs)
    if figures is None or figures.complete:
        return figures.seconds if figures else str(runs)
    trouble = f" ({figures.trouble})" if figures.trouble else ""
    return f"did not finish, {figures.served:,} of {figures.waiters:,}{trouble}"


EFFORTS: dict[str, tuple[str, Callable[[Figures], float]]] = {
    "requests": ("n", lambda figures: figures.requests),
    "CPU of the server": ("s", lambda figures: figures.cpu),
    "connections": ("n", lambda figures: figures.connections),
}


NOTE = (
    "By the number of waiters. Requests and CPU are per hand-off, where all were served; connections are all that are "
    "open while everybody waits."
)


def _efforts(processes: int, crowds: list[Crowd], found: dict[Peer, Found]) -> Table:
    mine = [crowd for crowd in sorted(crowds) if crowd[0] == processes and crowd[1] >= 100]
    columns, rows = [], []
    for name, (unit, _) in EFFORTS.items():
        columns += [Column(f"{name}, {waiters:,}", unit) for _, waiters in mine]  # type: ignore[arg-type]
    for peer, runs in found.items():
        medians = [_median(runs[crowd]) for crowd in mine]
        rows.append(Row(peer.title, [_effort(name, each) for name in EFFORTS for each in medians]))
    return Table(f"what a hand-off takes, {processes} processes", columns, rows, NOTE)


def _effort(name: str, figures: Figures | None) -> float | None:
    if figures is None or not (figures.complete or name == "connections"):
        return None
    return EFFORTS[name][1](figures)


def _targets(found: dict[Peer, Found]) -> Iterator[Target]:
    for processes in PROCESSES:
        yield from _flat(processes, found[OURS])
    for processes in PROCESSES:
        yield from _half_of_the_best(processes, found)


def _flat(processes: int, ours: Found) -> Iterator[Target]:
    most = max(waiters for _, waiters in ours)
    few, many = _median(ours[processes, 100]), _median(ours[processes, most])
    assert few is not None
    assert many is not None
    efforts = {"time": lambda figures: figures.seconds} | {name: of for name, (_, of) in EFFORTS.items()}
    for name, of in efforts.items():
        yield at_most(f"{name}: {most:,} waiters against 100, in {processes} processes", of(many) / of(few), 1.2, "x")


def _half_of_the_best(processes: int, found: dict[Peer, Found]) -> Iterator[Target]:
    at_1000 = {
        peer: figures.seconds
        for peer, runs in found.items()
        if (figures := _median(runs[processes, 1000])) is not None and figures.complete
    }
    best = min(at_1000.keys() - {OURS}, key=lambda peer: at_1000[peer], default=None)
    if best is not None:
        limit, measured = at_1000[best] / 2, at_1000[OURS]
        what = f"time: 1,000 waiters in {processes} processes against half of the best peer, {best.title}"
        yield Target(what, f"< {shown(limit, 's')}", shown(measured, "s"), measured < limit)
