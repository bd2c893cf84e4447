"""How long it takes from one body to the next, in another process."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from benchmarks.arena import Arena, Contender, contest, take_turns
from benchmarks.batches import Field
from benchmarks.contender import Order
from benchmarks.measure import hand_offs, spread
from benchmarks.peers import OURS, Peer, floor
from benchmarks.results import Bars, Column, Dots, Result, Row, Table, Target, at_most, shown
from benchmarks.scenarios import Stage
from benchmarks.script_times import script_times
from benchmarks.steps import handoff_steps

TITLE = "Hand-off between two processes"

PAUSE, LONG_PAUSE = 0.003, 0.05
"""Seconds that the holder stays while the other waits; for a lock that polls a random part of its interval more."""
TURNS, SLOW_TURNS, QUICK_SLOW_TURNS = 81, 9, 3
"""Of a batch; the latter for long holds, and for a lock that polls seldom."""
SELDOM = 0.05
COLUMNS = [
    Column("p50", "s"), Column("p99", "s"), Column("samples", "n"), Column("against the floor", "x"),
    Column("p50, held 50 ms", "s"), Column("against the floor, held 50 ms", "x"),
    Column("cross over", "%"), Column("of so many hand-offs", "n"),
]  # fmt: skip
FEW = 50
"""Hand-offs that tell nothing of how fair a lock is."""
GREEDY = Order(rounds=10**6, hold=0.001, seconds=0.4)
"""Whoever releases asks again at once: a lock that is not fair stays where it is."""


@dataclasses.dataclass
class Samples:
    """A `Course`: one contestant's samples."""

    crew: list[Contender] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of hand-offs from one process to the other, which waits alone."""
    after_long: list[float] = dataclasses.field(default_factory=list)
    """The same after long holds: by then the processors sleep, and their caches are full of other things."""
    greedy: list[bool] = dataclasses.field(default_factory=list)
    """Of hand-offs that both processes want: whether each reached the other one."""

    @property
    def p50(self) -> float:
        return spread(self.seconds).p50

    @property
    def crossing(self) -> float | None:
        """Per cent; None: too few to tell."""
        return 100 * sum(self.greedy) / len(self.greedy) if len(self.greedy) >= FEW else None


def run(stage: Stage) -> Result:
    """Two processes take turns. One holds the lock, the other one waits for it alone, and after 3 ms it is released.

    In a second run it is held for 50 ms: by then processors sleep and caches are cold, so every contestant needs more.

    A lock that polls is released after a random part of its interval more: what it takes depends on when it looked
    last. Batches of all contestants alternate.

    A third run, in which both ask again at once, shows how many hand-offs cross over to the other process. It counts
    only while both want the lock.
    """
    push = floor("push_and_claim")
    field = Field(stage, [OURS, push, *stage.peers], Samples, COLUMNS)
    field.start(lambda peer, course: _start(stage.arena, peer, course))
    slow_turns = stage.pick(SLOW_TURNS, QUICK_SLOW_TURNS)
    for number in range(stage.pick(8, 1)):
        field.batch(number, lambda peer, course: _batch(course, slow_turns, greedy=peer is not push))
    courses = field.courses
    stage.say("server time of the scripts")
    scripts = script_times(stage.arena.server, lambda: take_turns(courses[OURS].crew, TURNS, lambda: PAUSE))
    field.dismiss()
    stage.say("steps")
    steps = handoff_steps(stage.arena, stage.pick(401, 41), PAUSE)
    table = _table(courses, field.absent, courses[push])
    return Result("handoff", TITLE, run.__doc__ or "", [table, steps, scripts], _targets(courses, push, stage.peers), [
        Dots("handoff", TITLE, table.title, "p50", "p99"),
        Bars("fairness", "Hand-offs that reach the other process", table.title, "cross over"),
    ])  # fmt: skip


def _start(arena: Arena, peer: Peer, course: Samples) -> None:
    course.crew = arena.crew(peer, 2, "handoff")
    contest(course.crew, Order(rounds=2, hold=PAUSE, seconds=15))


def _batch(course: Samples, slow_turns: int, *, greedy: bool) -> None:
    polls = course.crew[0].peer.polls
    turns = slow_turns if polls > SELDOM else TURNS
    course.seconds += take_turns(course.crew, turns, lambda: PAUSE + random.uniform(0, polls))
    course.after_long += take_turns(course.crew, slow_turns, lambda: LONG_PAUSE + random.uniform(0, polls))
    if greedy:
        course.greedy += [
            hand_off.crossed for hand_off in hand_offs(contest(course.crew, GREEDY)) if hand_off.contended
        ]


def _table(courses: dict[Peer, Samples], absent: list[Row], least: Samples) -> Table:
    rows = []
    for peer, course in courses.items():
        seconds, after_long = spread(course.seconds), spread(course.after_long)
        wanted = float(len(course.greedy)) if course.greedy else None
        rows.append(Row(peer.title, [
            seconds.p50, seconds.p99, float(seconds.samples), seconds.p50 / least.p50,
            after_long.p50, after_long.p50 / spread(least.after_long).p50, course.crossing, wanted,
        ]))  # fmt: skip
    return Table("from one body to the next", COLUMNS, rows + absent)


def _targets(courses: dict[Peer, Samples], push: Peer, peers: Sequence[Peer]) -> list[Target]:
    ours = courses[OURS].p50
    targets = [at_most("p50 against push and claim, the floor", ours / courses[push].p50, 1.15, "x")]
    fair = {peer: courses[peer].p50 for peer in peers if peer in courses and (courses[peer].crossing or 0) > 90}
    if fair:
        best = min(fair, key=lambda peer: fair[peer])
        what = f"p50 against the fastest fair peer, {best.title}"
        targets.append(Target(what, f"< {shown(fair[best], 's')}", shown(ours, "s"), ours < fair[best]))
    return targets
