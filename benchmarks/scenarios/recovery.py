"""How long until the next one is in, after something went wrong."""

from __future__ import annotations

from benchmarks.arena import Arena, DoesNotRunError
from benchmarks.cases import (
    CASES,
    CLAIM_WINDOW,
    DEATHS,
    ENDS,
    FALLBACK,
    LEASE,
    PHASE,
    SETTLE,
    Restart,
    abreast,
    server_restart,
)
from benchmarks.measure import highest_median, spread
from benchmarks.peers import OURS, Peer
from benchmarks.results import Column, Dots, Result, Row, Table, Target, at_most
from benchmarks.scenarios import Stage
from benchmarks.steps import end_steps

TITLE = "Recovery times"

LONG = ("holder killed elsewhere", "first in line frozen", "message lost")
"""Seconds of mere waiting, for this library: they do not disturb each other."""
BLOCKS = 3
"""Of the ends of a body."""
ABREAST, TIMES = 4, 3
"""Cases at a time beside the peers, and how often each is run."""
QUICK = "not in a quick run"


def run(stage: Stage) -> Result:
    """A holder, a waiter, and something that goes wrong; the time until the next body begins.

    Leases last 3 s here, for everybody: what waits for a lease to end grows with it.

    The first table and the targets are of this library alone. In the others it takes part like everybody else, and
    several do so at a time.
    """
    with Arena(stage.arena.failures) as arena:
        samples = _alone(stage, arena)
        stage.say("how a body ends, traced")
        ends = end_steps(arena, ENDS, stage.pick(3, 1), stage.pick(20, 3))
        stage.say("side by side")
        beside = _side_by_side(stage, arena)
        stage.say("restart of the server")
        restarts = server_restart(arena, [OURS, *stage.pick(stage.peers, [])])
    times = stage.pick(TIMES, 1)
    deaths, others = _deaths(beside, times), _others(beside, restarts, times)
    tables = [_in_detail(samples), deaths, others, ends]
    title = f"A holder is killed on this host (leases of {LEASE:.0f} s, partly elapsed)"
    return Result("recovery", TITLE, run.__doc__ or "", tables, _targets(samples, restarts[OURS]), [
        Dots("recovery", title, deaths.title, "holder killed here"),
    ])  # fmt: skip


def _alone(stage: Stage, arena: Arena) -> dict[str, list[float]]:
    """This library, nobody else. The ends of a body take turns, since they are compared."""
    found: dict[str, list[float]] = {}
    few = stage.pick(4, 1)
    for name, rounds, times in (
        ("holder killed here", stage.pick(4, 1), stage.pick(25, 2)),
        ("first in line killed", 1, stage.pick(10, 1)),
    ):
        for _ in range(rounds):
            stage.say(f"{OURS.title}: {name}")
            found[name] = found.get(name, []) + CASES[name](arena, OURS, times)
    stage.say(f"{OURS.title}: {', '.join(LONG)}")
    with abreast(arena, len(LONG)) as pool:
        found |= zip(LONG, pool.map(lambda name: CASES[name](arena, OURS, few), LONG), strict=True)
    for _ in range(stage.pick(BLOCKS, 1)):
        for end in ENDS:
            name = f"body ends: {end}"
            stage.say(f"{OURS.title}: {name}")
            found[name] = found.get(name, []) + CASES[name](arena, OURS, stage.pick(30, 5))
    return found


Medians = dict[str, float | str]
"""What one contestant needs in each case (p50), or why there is nothing to tell."""


def _side_by_side(stage: Stage, arena: Arena) -> dict[Peer, Medians]:
    """They mostly wait for time to pass, so several do it at a time."""
    cast = [OURS, *stage.peers]
    with abreast(arena, stage.pick(ABREAST, len(cast))) as pool:
        begun = {peer: {name: pool.submit(_figure, stage, arena, peer, name) for name in CASES} for peer in cast}
        return {peer: {name: case.result() for name, case in cases.items()} for peer, cases in begun.items()}


def _figure(stage: Stage, arena: Arena, peer: Peer, name: str) -> float | str:
    if reason := _left_out(stage, peer, name):
        return reason
    try:
        return spread(CASES[name](arena, peer, stage.pick(TIMES, 1))).p50
    except DoesNotRunError as error:
        if peer is OURS:
            raise
        return str(error)


def _left_out(stage: Stage, peer: Peer, name: str) -> str:
    """Why this is not measured."""
    if name == "holder killed elsewhere" and peer is not OURS:
        return "the same as here"
    if name == "message lost" and not peer.messages:
        return "cannot: it polls" if peer.polls else "cannot: it sends no messages"
    if name == "body ends: cancelled" and peer.threads:
        return "cannot: a thread is not cancelled"
    return QUICK if stage.quick and name != "holder killed here" else ""


def _in_detail(ours: dict[str, list[float]]) -> Table:
    rows = []
    for name in CASES:
        count, p50, p99 = spread(ours[name])
        rows.append(Row(name, [p50, p99, float(count)]))
    columns = [Column("p50", "s"), Column("p99", "s"), Column("times", "n")]
    return Table("until the next body begins, this library", columns, rows)


def _deaths(beside: dict[Peer, Medians], times: int) -> Table:
    rows = [Row(peer.title, [medians[name] for name in DEATHS]) for peer, medians in beside.items()]
    return Table(f"a process dies, p50 of {times}", [Column(name, "s") for name in DEATHS], rows, NOTE)


NOTE = (
    "Peers without a queue have no first in line: any waiter that looks next gets the lock. No peer knows of hosts: to "
    "them, elsewhere is the same as here. Where nobody renews a lease, its rest is waited for: a holder is "
    f"killed {SETTLE} to {SETTLE + PHASE} s after it took the lock, evenly spaced, so {LEASE - SETTLE - PHASE:.1f} to "
    f"{LEASE - SETTLE:.1f} s are left, and then its waiter has to look."
)


def _others(beside: dict[Peer, Medians], restarts: dict[Peer, Restart], times: int) -> Table:
    names = [name for name in CASES if name not in DEATHS]
    rows = []
    for peer, medians in beside.items():
        restart = restarts.get(peer, Restart(False, QUICK, QUICK))
        rows.append(Row(peer.title, [*(medians[name] for name in names), restart.held, restart.free]))
    columns = [
        *(Column(name, "s") for name in names),
        Column("server restarted empty"), Column("free lock after a restart", "s"),
    ]  # fmt: skip
    return Table(f"other cases, p50 of {times}", columns, rows, RESTART_NOTE)


RESTART_NOTE = (
    "The server is restarted once. A free lock is asked for when it answers again: this library grants nothing until "
    "a holder from before the restart would have been heard of."
)


def _targets(ours: dict[str, list[float]], restart: Restart) -> list[Target]:
    limits = {
        "holder killed here": ("SIGKILL on the same host", 0.05),
        "holder killed elsewhere": ("SIGKILL elsewhere", LEASE + 0.25),
        "first in line killed": ("dead waiter at the head, socket closed", 0.05),
        "first in line frozen": ("dead waiter at the head, frozen", CLAIM_WINDOW + 0.25),
        "message lost": ("lost message: its backstop and its jitter", 1.1 * FALLBACK),
    }
    targets = [
        at_most(f"{what}, {_worst(len(ours[name]))}", spread(ours[name]).p99, limit, "s")
        for name, (what, limit) in limits.items()
    ]
    normal = highest_median(ours["body ends: normal"])
    for end in ENDS[1:]:
        what = f"body ends: {end}, p50, against the p50 of a normal end (the top of its 95 % interval)"
        targets.append(at_most(what, spread(ours[f"body ends: {end}"]).p50, normal, "s"))
    targets.append(
        Target("server restarted empty: the holder keeps its lease", "no second body", restart.held, restart.kept)
    )
    return targets


def _worst(samples: int) -> str:
    """What the 99th percentile of so many is."""
    return "p99" if samples >= 100 else f"largest of {samples}"
