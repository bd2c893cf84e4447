"""Many waiters: does a hand-off cost more when more wait?"""

from __future__ import annotations

import time
from typing import NamedTuple

from benchmarks.arena import DoesNotRunError, contest, descriptor_limit
from benchmarks.contender import Order
from benchmarks.peers import OURS, Peer
from benchmarks.results import Column, Lines, Result, Row, Table, Target, at_most, shown
from benchmarks.scenarios import Stage

TITLE = "Many waiters"

CROWDS = ((2, 10), (2, 100), (2, 1000), (8, 10), (8, 100), (8, 1000), (2, 10_000), (8, 10_000))
"""Processes and waiters, in the order in which a peer's limited time is spent."""


class Figures(NamedTuple):
    """Of one crowd, per hand-off where not said otherwise."""

    served: int
    waiters: int
    seconds: float
    requests: float
    cpu: float
    """Of the server."""
    connections: int
    """In all, while everybody waits."""
    trouble: str
    """The first error that a waiter met."""


def run(stage: Stage) -> Result:
    """All wait for one holder; when it releases, each holds the lock once and releases at once.

    Each peer has 60 s for all sizes together; what it has not served by then is told.
    """
    crowds = [crowd for crowd in CROWDS if not stage.quick or crowd[1] in (100, 1000)]
    needed = max(waiters for _, waiters in crowds) + 200
    if descriptor_limit() < needed:
        raise DoesNotRunError(f"ulimit -n is {descriptor_limit()}: {needed} are needed")
    found = {OURS: _ours(stage, crowds)}
    for peer in stage.peers:
        found[peer] = _within(stage, peer, crowds, seconds=stage.pick(60.0, 1.2))
    tables = [_table(processes, crowds, found) for processes in (2, 8)]
    chart = Lines("waiters", "Time per hand-off (2 processes)", tables[0].title, "waiters", " waiters")
    return Result("waiters", TITLE, run.__doc__ or "", tables, _targets(found), [chart])


Found = dict[tuple[int, int], Figures | str]


def _ours(stage: Stage, crowds: list[tuple[int, int]]) -> Found:
    """The median of several runs of each size, in turns."""
    runs: dict[tuple[int, int], list[Figures]] = {crowd: [] for crowd in crowds}
    for _ in range(stage.pick(3, 1)):
        for crowd in crowds:
            runs[crowd].append(_serve(stage, OURS, *crowd, seconds=60))
    return {crowd: sorted(figures, key=lambda each: each.seconds)[len(figures) // 2] for crowd, figures in runs.items()}


def _within(stage: Stage, peer: Peer, crowds: list[tuple[int, int]], seconds: float) -> Found:
    """The same for a peer, as far as it comes."""
    found: Found = {}
    until = time.monotonic() + seconds
    for crowd in crowds:
        if (left := until - time.monotonic()) < 1:
            found[crowd] = "not begun"
            continue
        try:
            found[crowd] = _serve(stage, peer, *crowd, seconds=left)
        except DoesNotRunError as error:
            found[crowd] = f"does not run: {error}"
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
        (released,) = holder.answer().holds
        usage, served = arena.usage().since(before), max(1, len(holds))
        elapsed = (holds[-1] if holds else time.monotonic()) - released.leaving
        return Figures(
            len(holds), waiters // processes * processes, elapsed / served, usage.requests / served,
            usage.cpu / served, before.connections, trouble.partition(":")[0],
        )  # fmt: skip


def _table(processes: int, crowds: list[tuple[int, int]], found: dict[Peer, Found]) -> Table:
    sizes = sorted(waiters for each, waiters in crowds if each == processes)
    columns = [
        *(Column(f"{waiters:,} waiters", "s") for waiters in sizes),
        Column("requests", "n"), Column("CPU of the server", "s"), Column("connections in all", "n"),
    ]  # fmt: skip
    rows = []
    for peer, figures in found.items():
        at_1000 = figures[processes, 1000]
        rest = at_1000[3:6] if isinstance(at_1000, Figures) else (None, None, None)
        rows.append(Row(peer.title, [*(_time(figures[processes, waiters]) for waiters in sizes), *rest]))
    note = "The last three columns are for 1,000 waiters; requests and CPU are per hand-off."
    return Table(f"time per hand-off, {processes} processes", columns, rows, note)


def _time(figures: Figures | str) -> float | str:
    if isinstance(figures, str):
        return figures
    if figures.served < figures.waiters:
        trouble = f" ({figures.trouble})" if figures.trouble else ""
        return f"did not finish, {figures.served:,} of {figures.waiters:,}{trouble}"
    return figures.seconds


def _targets(found: dict[Peer, Found]) -> list[Target]:
    ours = {crowd: figures for crowd, figures in found[OURS].items() if isinstance(figures, Figures)}
    targets = [
        at_most(
            f"{most:,} waiters against 100, in {processes} processes",
            ours[processes, most].seconds / ours[processes, 100].seconds, 1.2, "x",
        )
        for processes in (2, 8)
        for most in [max(waiters for _, waiters in ours)]
    ]  # fmt: skip
    at_1000 = {
        peer: figures.seconds
        for peer, each in found.items()
        if isinstance(figures := each[2, 1000], Figures) and figures.served == figures.waiters
    }
    best = min(at_1000.keys() - {OURS}, key=lambda peer: at_1000[peer], default=None)
    if best is not None:
        limit, measured = at_1000[best] / 2, at_1000[OURS]
        what = f"1,000 waiters against half of the best peer, {best.title}"
        targets.append(Target(what, f"< {shown(limit, 's')}", shown(measured, "s"), measured < limit))
    return targets
