"""How long it takes from one body to the next, in another process."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.arena import Contender, DoesNotRunError, contest
from benchmarks.contender import Order
from benchmarks.measure import hand_offs, spread
from benchmarks.peers import OURS, Peer, floor
from benchmarks.results import Bars, Column, Result, Row, Table, Target, at_most, shown
from benchmarks.scenarios import Stage
from benchmarks.script_times import script_times

TITLE = "Hand-off between two processes"

CALM = Order(rounds=40, hold=0.003, rest=0.001)
"""The holder works and then rests, so that the other waits, and nobody competes for the processor."""
GREEDY = Order(rounds=40, hold=0.001)
"""Whoever releases asks again at once: a lock that is not fair stays where it is."""
SLOW = 0.02
"""Seconds per hand-off beyond which a contestant gets smaller batches."""


@dataclass
class Course:
    """One contestant's samples."""

    crew: list[Contender]
    seconds: list[float] = field(default_factory=list)
    """Of hand-offs from one process to the other."""
    greedy: list[bool] = field(default_factory=list)
    cpu: float = 0.0
    server: float = 0.0
    holds: int = 0


def run(stage: Stage) -> Result:
    """Two processes take turns, each holding the lock for 3 ms. Batches of all contestants alternate.

    A second run, in which each asks again at once, shows how many hand-offs cross over to the other process.
    """
    push = floor("push_and_claim")
    courses, absent = _start(stage, [OURS, push, *stage.peers])
    for batch in range(stage.pick(12, 1)):
        stage.say(f"batch {batch + 1}")
        for peer, course in courses.items():
            _calm(stage, course)
            if peer is not push:
                _greedy(course)
    stage.say("server time of the scripts")
    scripts = script_times(stage.arena.server, lambda: contest(courses[OURS].crew, CALM._replace(seconds=10)))
    stage.arena.dismiss([contender for course in courses.values() for contender in course.crew])
    p50 = {peer: spread(course.seconds).p50 for peer, course in courses.items()}
    table = _table(courses, absent, p50[push])
    fair = {peer: p50[peer] for peer in stage.peers if peer in courses and _crossing(courses[peer]) > 90}
    best = min(fair, key=lambda peer: fair[peer], default=None)
    targets = [at_most("against push and claim, the floor", p50[OURS] / p50[push], 1.15, "x")]
    if best is not None:
        text = f"against the fastest fair peer, {best.title}"
        limit, measured = f"< {shown(fair[best], 's')}", shown(p50[OURS], "s")
        targets.append(Target(text, limit, measured, p50[OURS] < fair[best]))
    return Result("handoff", TITLE, run.__doc__ or "", [table, scripts], targets, [
        Bars("handoff", TITLE, table.title, "p50", whisker="p99"),
        Bars("fairness", "Hand-offs that reach the other process", table.title, "cross over", log=False),
    ])  # fmt: skip


def _start(stage: Stage, cast: list[Peer]) -> tuple[dict[Peer, Course], list[Row]]:
    courses: dict[Peer, Course] = {}
    absent: list[Row] = []
    for peer in cast:
        stage.say(f"start {peer.title}")
        try:
            course = Course(stage.arena.crew(peer, 2, "handoff"))
            contest(course.crew, CALM._replace(rounds=2, seconds=15))
        except DoesNotRunError as error:
            absent.append(Row(peer.title, [str(error), *[None] * 5]))
        else:
            courses[peer] = course
    return courses, absent


def _calm(stage: Stage, course: Course) -> None:
    before = stage.arena.usage()
    answers = contest(course.crew, _fitting(CALM, course))
    course.server += stage.arena.usage().since(before).cpu
    course.seconds += [hand_off.seconds for hand_off in hand_offs(answers) if hand_off.crossed]
    course.cpu += sum(answer.cpu for answer in answers)
    course.holds += sum(len(answer.holds) for answer in answers)


def _greedy(course: Course) -> None:
    course.greedy += [hand_off.crossed for hand_off in hand_offs(contest(course.crew, _fitting(GREEDY, course)))]


def _fitting(order: Order, course: Course) -> Order:
    slow = bool(course.seconds) and spread(course.seconds).p50 > SLOW
    return order._replace(rounds=order.rounds // 8, seconds=2) if slow else order._replace(seconds=10)


def _crossing(course: Course) -> float:
    """Per cent of the hand-offs that reach the other process though the first one asks again at once."""
    return 100 * sum(course.greedy) / len(course.greedy) if course.greedy else float("nan")


def _table(courses: dict[Peer, Course], absent: list[Row], least: float) -> Table:
    rows = []
    for peer, course in courses.items():
        seconds, holds = spread(course.seconds), max(1, course.holds)
        rows.append(Row(peer.title, [seconds.p50, seconds.p99, seconds.p50 / least, _crossing(course),
                                     course.cpu / holds, course.server / holds]))  # fmt: skip
    columns = [
        Column("p50", "s"), Column("p99", "s"), Column("against the floor", "x"), Column("cross over", "%"),
        Column("CPU of both processes", "s"), Column("CPU of the server", "s"),
    ]  # fmt: skip
    return Table("from one body to the next", columns, rows + absent, "CPU per hold, all of it: waiting included.")
