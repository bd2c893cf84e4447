"""What a lock costs that nobody else wants."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.arena import Arena, Contender, DoesNotRunError, contest
from benchmarks.contender import Order, Setup
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


@dataclass
class Course:
    """One contestant's cycles of acquire and release. CPU in seconds, of all of them."""

    contender: Contender
    cycles: list[float] = field(default_factory=list)
    client: float = 0.0
    server: float = 0.0

    @property
    def p50(self) -> float:
        return spread(self.cycles).p50


def _contest(stage: Stage, cast: list[Peer], least: Peer) -> tuple[Table, dict[Peer, Course]]:
    courses, absent = _start(stage, cast)
    running = dict(courses)
    for batch in range(stage.pick(24, 2)):
        stage.say(f"batch {batch + 1}")
        for peer in list(running):
            try:
                _batch(stage.arena, courses[peer])
            except DoesNotRunError as error:
                if peer not in stage.peers:
                    raise
                stage.arena.dismiss([running.pop(peer).contender])
                stage.arena.failures[peer.title, str(error)] += 1
                absent += [] if courses[peer].cycles else [Row.absent(peer.title, str(error), COLUMNS)]
    stage.arena.dismiss([course.contender for course in running.values()])
    rows = [_row(peer, course, courses[least].p50) for peer, course in courses.items() if course.cycles]
    return Table("one acquire and release", COLUMNS, rows + absent), courses


def _start(stage: Stage, cast: list[Peer]) -> tuple[dict[Peer, Course], list[Row]]:
    courses: dict[Peer, Course] = {}
    absent: list[Row] = []
    for peer in cast:
        stage.say(f"start {peer.title}")
        try:
            courses[peer] = Course(stage.arena.start(peer, Setup(stage.arena.server.url, "uncontended")))
            contest([courses[peer].contender], Order(rounds=BATCH, seconds=stage.pick(6.0, 0.3)))  # warm
        except DoesNotRunError as error:
            if peer not in stage.peers:
                raise
            if course := courses.pop(peer, None):
                stage.arena.dismiss([course.contender])
            absent.append(Row.absent(peer.title, str(error), COLUMNS))
    return courses, absent


def _batch(arena: Arena, course: Course) -> None:
    before = arena.usage()
    rounds = FEW if course.cycles and course.cycles[0] > SLOW else BATCH
    (answer,) = contest([course.contender], Order(rounds=rounds))
    if not answer.holds:
        raise DoesNotRunError(answer.errors[0] if answer.errors else "it acquired nothing")
    course.server += arena.usage().since(before).cpu
    course.client += answer.cpu
    course.cycles += [hold.left - hold.asked for hold in answer.holds]


def _row(peer: Peer, course: Course, least: float) -> Row:
    count, p50, p99 = spread(course.cycles)
    return Row(peer.title, [p50, p99, float(count), p50 / least, course.client / count, course.server / count])
