"""Many waiters: does a hand-off cost more when more wait?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from benchmarks.arena import DoesNotRunError, contest, kind
from benchmarks.contender import Order
from benchmarks.peers import OURS, Peer
from benchmarks.python_costs import handoff_costs
from benchmarks.results import Column, Lines, Result, Row, Table, Target, Unit, at_most, shown
from benchmarks.scenarios import Stage

TITLE = "Many waiters"

CROWDS = ((2, 10), (8, 10), (2, 100), (8, 100), (2, 1000), (8, 1000), (2, 10_000), (8, 10_000))
"""Processes and waiters, in the order in which the time is spent."""
QUICK_CROWDS = ((2, 100), (2, 1000))
RUNS = 2
PEER_SECONDS, QUICK_PEER_SECONDS, OUR_SECONDS = 60.0, 2.0, 400.0
"""For all runs of all sizes, the start of the processes included; ours are all done within that."""
COMPARED = 1000
"""Waiters at which all are compared, and this library's clients profiled."""


class Figures(NamedTuple):
    """Of one crowd, per hand-off where not said otherwise."""

    served: int
    waiters: int
    seconds: float
    requests: float
    """Reads of the server: a command each, or a script, or a pipeline."""
    commands: float
    """Those inside the scripts among them."""
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


def _crowds(quick: bool) -> Sequence[Crowd]:
    return QUICK_CROWDS if quick else CROWDS


def _processes(crowds: Iterable[Crowd]) -> list[int]:
    return sorted({processes for processes, _ in crowds})


def run(stage: Stage) -> Result:
    """All wait for one holder; when it releases, each holds the lock once and releases at once.

    Each size is tried up to twice, by all in turn, and the faster run is shown. This library does all of them. Each
    peer has 60 s (a quick run: 2 s) for all sizes together, the start of its processes included, the larger ones last;
    it tries again with what is left of them. What it has not served by then is shown as "n of m".
    """
    crowds = _crowds(stage.quick)
    contestants = {OURS: Contestant(OURS, crowds, OUR_SECONDS)}
    contestants |= {
        peer: Contestant(peer, crowds, stage.pick(PEER_SECONDS, QUICK_PEER_SECONDS)) for peer in stage.peers
    }
    for _ in range(stage.pick(RUNS, 1)):
        for contestant in contestants.values():
            contestant.run(stage)
    found = {peer: contestant.found for peer, contestant in contestants.items()}
    stage.say("profile")
    profile = handoff_costs(stage.arena.server.url, COMPARED, stage.pick(12.0, 1.0))
    times = [_times(processes, crowds, found) for processes in _processes(crowds)]
    efforts = [
        _our_efforts(found[OURS]),
        *(_all_efforts(crowd, found) for crowd in crowds if crowd[1] == stage.pick(COMPARED, 100)),
    ]
    chart = Lines(
        "waiters", "Time per hand-off (2 processes)", times[0].title,
        "waiters (a line ends where the time was over)", " waiters",
    )  # fmt: skip
    return Result("waiters", TITLE, run.__doc__ or "", [*times, *efforts, profile], list(_targets(found)), [chart])


class Contestant:
    """What one contestant does in its seconds."""

    def __init__(self, peer: Peer, crowds: Sequence[Crowd], seconds: float) -> None:
        self.found: Found = dict.fromkeys(crowds, "not begun")
        self._peer = peer
        self._left = seconds

    def run(self, stage: Stage) -> None:
        """Each size once, as far as the time goes; a size that was not served whole is not tried again."""
        for crowd, before in self.found.items():
            runs = before if isinstance(before, list) else []
            if self._peer is OURS and self._left < 1:
                raise DoesNotRunError("its time was over before all waiters were tried")
            if self._left < 1 or (runs and not runs[0].complete):
                continue
            begun = time.monotonic()
            try:
                self._note(crowd, runs, _serve(stage, self._peer, *crowd, seconds=self._left))
            except DoesNotRunError as error:
                if self._peer is OURS:
                    raise
                self.found[crowd] = runs or f"does not run: {error}"
            self._left -= time.monotonic() - begun

    def _note(self, crowd: Crowd, runs: list[Figures], figures: Figures) -> None:
        if self._peer is OURS and not figures.complete:
            raise DoesNotRunError(
                f"{figures.served:,} of {figures.waiters:,} waiters were served in {self._left:.0f} s"
            )
        self.found[crowd] = [*runs, figures] if figures.complete or not runs else runs


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
            usage.commands * per_hold, usage.cpu * per_hold, float(before.connections), kind(trouble),
        )  # fmt: skip


def _best(runs: list[Figures] | str) -> Figures | None:
    return None if isinstance(runs, str) else min(runs, key=lambda each: each.seconds)


def _times(processes: int, crowds: Sequence[Crowd], found: dict[Peer, Found]) -> Table:
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
    figures = _best(runs)
    if figures is None or figures.complete:
        return figures.seconds if figures else str(runs)
    trouble = f" ({figures.trouble})" if figures.trouble else ""
    return f"did not finish, {figures.served:,} of {figures.waiters:,}{trouble}"


EFFORTS: dict[str, tuple[Unit, Callable[[Figures], float]]] = {
    "requests": ("n", lambda figures: figures.requests),
    "commands": ("n", lambda figures: figures.commands),
    "CPU of the server": ("s", lambda figures: figures.cpu),
    "connections": ("n", lambda figures: figures.connections),
}
COLUMNS = [Column(name, unit) for name, (unit, _) in EFFORTS.items()]
NOTE = (
    "Requests, commands (those inside scripts among them) and CPU are per hand-off, where all were served; connections "
    "are all that are open while everybody waits."
)


def _our_efforts(ours: Found) -> Table:
    rows = [
        Row(f"{waiters:,} waiters in {processes} processes", _efforts(_best(runs)))
        for (processes, waiters), runs in sorted(ours.items())
    ]
    return Table("what a hand-off takes, this library", COLUMNS, rows, NOTE)


def _all_efforts(crowd: Crowd, found: dict[Peer, Found]) -> Table:
    processes, waiters = crowd
    rows = [Row(peer.title, _efforts(_best(runs[crowd]))) for peer, runs in found.items()]
    return Table(f"what a hand-off takes, {waiters:,} waiters in {processes} processes", COLUMNS, rows)


def _efforts(figures: Figures | None) -> list[float | str | None]:
    return [
        of(figures) if figures is not None and (figures.complete or name == "connections") else None
        for name, (_, of) in EFFORTS.items()
    ]


def _targets(found: dict[Peer, Found]) -> Iterator[Target]:
    for processes in _processes(found[OURS]):
        yield from _flat(processes, found[OURS])
    for processes in _processes(found[OURS]):
        yield from _half_of_the_best(processes, found)


def _flat(processes: int, ours: Found) -> Iterator[Target]:
    best = {waiters: figures for (among, waiters), runs in ours.items() if among == processes
            and waiters >= 100 and (figures := _best(runs)) is not None}  # fmt: skip
    efforts: dict[str, Callable[[Figures], float]] = {"time": lambda figures: figures.seconds}
    efforts |= {name: of for name, (_, of) in EFFORTS.items()}
    for name, of in efforts.items():
        worst = max(of(figures) for figures in best.values()) / of(best[100])
        yield at_most(
            f"{name}: 100 to {max(best):,} waiters, the most against 100, in {processes} processes", worst, 1.2, "x"
        )


def _half_of_the_best(processes: int, found: dict[Peer, Found]) -> Iterator[Target]:
    at_1000 = {
        peer: figures.seconds
        for peer, runs in found.items()
        if (figures := _best(runs[processes, COMPARED])) is not None and figures.complete
    }
    best = min(at_1000.keys() - {OURS}, key=lambda peer: at_1000[peer], default=None)
    if best is not None:
        limit, measured = at_1000[best] / 2, at_1000[OURS]
        what = f"time: {COMPARED:,} waiters in {processes} processes against half of the best peer, {best.title}"
        yield Target(what, f"< {shown(limit, 's')}", shown(measured, "s"), measured < limit)
