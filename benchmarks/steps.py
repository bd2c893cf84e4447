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
from benchmarks.contender import Order, Setup
from benchmarks.measure import spread
from benchmarks.peers import load
from benchmarks.results import Column, Row, Table

STEPS = (
    (0, "leaving", ""),
    (0, "release sent", "the holder's client, from the end of the body until it sends the release"),
    (1, "grant heard", "the server's script and its message, until the waiter's process has read it"),
    (1, "acquire sent", "the waiter's client, until it sends the claim"),
    (1, "acquire answered", "the claim, until its answer is read"),
    (1, "entered", "the waiter's client, until its body begins"),
)
"""Whose step (0: the holder's, 1: the waiter's), its name, and what the time before it is spent for."""


def handoff_steps(arena: Arena, turns: int, pause: float) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        crew, paths = _traced_crew(arena, Path(folder))
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
            spent["all of it"].append(times[-1] - times[0])
    rows = [Row(what, [spread(samples).p50, float(len(samples))]) for what, samples in spent.items()]
    note = "Each line is a median of its own. The trace itself takes some microseconds of each."
    return Table("a hand-off, step by step", [Column("p50", "s"), Column("samples", "n")], rows, note)


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


def end_steps(arena: Arena, ends: Sequence[str], times: int) -> Table:
    """What an end of the body adds to a hand-off: the time before its release is sent, and after."""
    rows = []
    for end in ends:
        with tempfile.TemporaryDirectory() as folder:
            (holder, waiter), paths = _traced_crew(arena, Path(folder))
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
            sent = [at for at, name in _steps(paths[0]) if name == "release sent"]
        before, after = zip(*(_split(leaving, entered, sent) for leaving, entered in hand_offs), strict=True)
        rows.append(Row(f"body ends: {end}", [spread(before).p50, spread(after).p50, float(times)]))
    columns = [Column("p50 until the release is sent", "s"), Column("p50 from then on", "s"), Column("samples", "n")]
    return Table("how a body ends, traced", columns, rows)


def _split(leaving: float, entered: float, sent: Sequence[float]) -> tuple[float, float]:
    first = min(at for at in sent if at > leaving)
    return first - leaving, entered - first


def _traced_crew(arena: Arena, folder: Path) -> tuple[list[Contender], list[Path]]:
    paths = [folder / f"{party}.json" for party in range(2)]
    peer = load("traced")
    return [arena.start(peer, Setup(arena.server.url, "traced", options={"trace": str(path)})) for path in paths], paths


def _steps(path: Path) -> list[tuple[float, str]]:
    return [(at, name) for at, name in map(json.loads, path.read_text().splitlines())]
