"""What a lock costs that nobody else wants."""

from __future__ import annotations

import dataclasses

from benchmarks.arena import Arena, Contender, DoesNotRunError, contest
from benchmarks.batches import Field
from benchmarks.contender import Order
from benchmarks.measure import spread
from benchmarks.peers import OURS, Peer, floor
from benchmarks.python_costs import acquire_costs
from benchmarks.record_costs import record_costs
from benchmarks.results import Column, Dots, Result, Row, Table, at_most
from benchmarks.scenarios import Stage

TITLE = "Uncontended acquire and release"
BATCH, FEW = 50, 3
"""Cycles at a time; fewer where one takes longer than `SLOW` seconds."""
SLOW = 0.05
COLUMNS = [
    Column("p50", "s"), Column("p99", "s"), Column("samples", "n"), Column("against two EVALSHA", "x"),
    Column("CPU of the client", "s"), Column("CPU of the server", "s"),
]  # fmt: skip


def run(stage: Stage) -> Result:
    """One process acquires and releases a free lock, again and again. Batches of all contestants alternate."""
    trivial, scripts = floor("two_evalsha"), floor("shipped_scripts")
    cast = [OURS, scripts, trivial, floor("asyncio_lock"), *stage.peers]
    table, courses = _contest(stage, cast, trivial)
    ours, raw, least = (courses[peer].p50 for peer in (OURS, scripts, trivial))
    stage.say("records")
    costs = record_costs(stage.arena.server, stage.pick(2000, 400))
    stage.say("profile")
    profile = acquire_costs(stage.arena.server.url, stage.pick(12.0, 1.0))
    return Result(
        "uncontended",
        TITLE,
        run.__doc__ or "",
        [table, profile, costs],
        [
            at_most(
                "Python's share: against the two shipped scripts, sent raw through the same client",
                ours / raw, 1.20, "x",
            ),
            at_most("against two trivial EVALSHA", ours / least, 1.45, "x"),
        ],
        [Dots("uncontended", TITLE, table.title, "p50", "p99")],
    )  # fmt: skip


@dataclasses.dataclass
class Cycles:
    """A `Course`: one contestant's cycles of acquire and release. CPU in seconds, of all of them."""

    crew: list[Contender] = dataclasses.field(default_factory=list)
    """One process."""
    seconds: list[float] = dataclasses.field(default_factory=list)
    client: float = 0.0
    server: float = 0.0

    @property
    def p50(self) -> float:
        return spread(self.seconds).p50


def _contest(stage: Stage, cast: list[Peer], least: Peer) -> tuple[Table, dict[Peer, Cycles]]:
    field = Field(stage, cast, Cycles, COLUMNS)
    field.start(lambda peer, course: _start(stage, peer, course))
    for number in range(stage.pick(24, 2)):
        field.batch(number, lambda peer, course: _batch(stage.arena, course))
    field.dismiss()
    rows = [_row(peer, course, field.courses[least].p50) for peer, course in field.courses.items()]
    return Table("one acquire and release", COLUMNS, rows + field.absent), field.courses


def _start(stage: Stage, peer: Peer, course: Cycles) -> None:
    course.crew = stage.arena.crew(peer, 1, "uncontended")
    contest(course.crew, Order(rounds=BATCH, seconds=stage.pick(6.0, 0.3)))  # warm


def _batch(arena: Arena, course: Cycles) -> None:
    before = arena.usage()
    rounds = FEW if course.seconds and course.seconds[0] > SLOW else BATCH
    (answer,) = contest(course.crew, Order(rounds=rounds))
    if not answer.holds:
        raise DoesNotRunError(answer.errors[0] if answer.errors else "it acquired nothing")
    course.server += arena.usage().since(before).cpu
    course.client += answer.cpu
    course.seconds += [hold.left - hold.asked for hold in answer.holds]


def _row(peer: Peer, course: Cycles, least: float) -> Row:
    count, p50, p99 = spread(course.seconds)
    return Row(peer.title, [p50, p99, float(count), p50 / least, course.client / count, course.server / count])
