"""Where the time of a hand-off goes: the steps that traced processes note."""

from __future__ import annotations

import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.arena import Arena, Contender, contest, take_turns
from benchmarks.contender import Order
from benchmarks.measure import spread
from benchmarks.peers import load_peer
from benchmarks.results import Column, Row, Table
from benchmarks.traced import trace_of

STEPS = (
    (0, "leaving", ""),
    (0, "sent", "the holder's client, from the end of the body until the release is sent"),
    (1, "heard", "the server, and its message, until the waiter's process has read it"),
    (1, "sent", "the waiter's client, until the claim is sent"),
    (1, "answered", "the server, and its answer, until the waiter's process has read it"),
    (1, "entered", "the waiter's client, until its body begins"),
)
"""Whose step (0: the holder's, 1: the waiter's), its name, and what the time before it is spent for."""
WHOLE = "all of it"
NOTE = "Each line is a median of its own. The trace takes some tens of microseconds of all of it."


def handoff_steps(arena: Arena, turns: int, pause: float) -> Table:
    """Of this library and of the floor."""
    ours, floor = (_spent(arena, of, turns, pause) for of in ("ours", "floors.push_and_claim"))
    rows = [Row(what, [spread(ours[what]).p50, spread(floor[what]).p50, float(len(ours[what]))]) for what in ours]
    columns = [Column("p50", "s"), Column("p50 of push and claim", "s"), Column("samples", "n")]
    return Table("a hand-off, step by step", columns, rows, NOTE)


def _spent(arena: Arena, of: str, turns: int, pause: float) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        crew, paths = _traced_crew(arena, Path(folder), of)
        take_turns(crew, turns, lambda: pause + random.uniform(0, pause))
        arena.dismiss(crew)
        steps = sorted((at, name, party) for party, path in enumerate(paths) for at, name in _steps(path))
    spent: defaultdict[str, list[float]] = defaultdict(list)
    starts = [number for number, (_, name, _) in enumerate(steps) if name == "leaving"]
    for start, end in pairwise(starts):
        times = _times(steps[start:end])
        if times is not None:
            for (_, _, what), (before, after) in zip(STEPS[1:], pairwise(times), strict=True):
                spent[what].append(after - before)
            spent[WHOLE].append(times[-1] - times[0])
    return spent


def _times(steps: list[tuple[float, str, int]]) -> list[float] | None:
    """When the steps of one hand-off were taken; None if it went another way (no message, a claim that came first)."""
    holder = steps[0][2]
    found: list[float] = []
    for who, name, _ in STEPS:
        at = next((at for at, each, party in steps if each == name and (party != holder) == bool(who)
                   and at >= (found[-1] if found else 0.0)), None)  # fmt: skip
        if at is None:
            return None
        found.append(at)
    return found


def end_steps(arena: Arena, ends: Sequence[str], blocks: int, times: int) -> Table:
    """What an end of the body adds to a hand-off, before its release is sent and after. The ends take turns."""
    found: dict[str, list[tuple[float, float]]] = {end: [] for end in ends}
    for _ in range(blocks):
        for end in ends:
            found[end] += _ended(arena, end, times)
    rows = []
    for end, splits in found.items():
        before, after = zip(*splits, strict=True)
        rows.append(Row(f"body ends: {end}", [spread(before).p50, spread(after).p50, float(len(splits))]))
    columns = [Column("p50 until the release is sent", "s"), Column("p50 from then on", "s"), Column("samples", "n")]
    return Table("how a body ends, traced", columns, rows)


def _ended(arena: Arena, end: str, times: int) -> list[tuple[float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        (holder, waiter), paths = _traced_crew(arena, Path(folder), "ours")
        contest([holder, waiter], Order())
        hand_offs = []
        for _ in range(times):
            holder.tell(Order(hold=0.05, end=end, tell=True))
            holder.entered()
            waiter.tell(Order(tell=True))
            entered = waiter.entered()
            hand_offs.append((holder.released(), entered))
            waiter.answer()
        contest([holder], Order())  # it writes its trace when it leaves
        arena.dismiss([holder, waiter])
        sent = [at for at, name in _steps(paths[0]) if name == "sent"]
    return [_split(leaving, entered, sent) for leaving, entered in hand_offs]


def _split(leaving: float, entered: float, sent: Sequence[float]) -> tuple[float, float]:
    first = min(at for at in sent if at > leaving)
    return first - leaving, entered - first


def _traced_crew(arena: Arena, folder: Path, of: str) -> tuple[list[Contender], list[Path]]:
    """Two processes, and their traces."""
    crew = arena.crew(load_peer("traced"), 2, of, options={"folder": str(folder), "of": of})
    return crew, [trace_of(folder, party) for party in range(2)]


def _steps(path: Path) -> list[tuple[float, str]]:
    return [(at, name) for at, name in map(json.loads, path.read_text().splitlines())]
