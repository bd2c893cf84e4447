"""What a lock costs that nobody else wants."""

from __future__ import annotations

from benchmarks.arena import Contender, DoesNotRunError, contest
from benchmarks.contender import Order, Setup
from benchmarks.measure import spread
from benchmarks.peers import OURS, Peer, floor
from benchmarks.python_costs import python_costs
from benchmarks.record_costs import record_costs
from benchmarks.results import Column, Dots, Result, Row, Table, at_most
from benchmarks.scenarios import Stage

TITLE = "Uncontended acquire and release"
BATCH = 50


def run(stage: Stage) -> Result:
    """One process acquires and releases a free lock, again and again. Batches of all contestants alternate."""
    trivial, scripts = floor("two_evalsha"), floor("shipped_scripts")
    cast = [OURS, scripts, trivial, floor("asyncio_lock"), *stage.peers]
    table, figures = _contest(stage, cast, trivial)
    ours, raw, least = (figures[peer.title] for peer in (OURS, scripts, trivial))
    stage.say("records")
    costs = record_costs(stage.arena.server, stage.pick(2000, 400))
    stage.say("profile")
    profile = python_costs(stage.arena.server.url, stage.pick(12.0, 1.0))
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


def _absent(peer: Peer, error: DoesNotRunError) -> Row:
    return Row(peer.title, [str(error), *[None] * 5])


def _contest(stage: Stage, cast: list[Peer], least: Peer) -> tuple[Table, dict[str, float]]:
    arena = stage.arena
    ready: dict[Peer, Contender] = {}
    absent: list[Row] = []
    for peer in cast:
        stage.say(f"start {peer.title}")
        try:
            ready[peer] = arena.start(peer, Setup(arena.server.url, "uncontended"))
            contest([ready[peer]], Order(rounds=BATCH, seconds=stage.pick(6.0, 0.3)))  # warm
        except DoesNotRunError as error:
            absent.append(_absent(peer, error))
    cycles: dict[Peer, list[float]] = {peer: [] for peer in ready}
    cpu: dict[Peer, float] = dict.fromkeys(ready, 0.0)
    server: dict[Peer, float] = dict.fromkeys(ready, 0.0)
    for batch in range(stage.pick(24, 2)):
        stage.say(f"batch {batch + 1}")
        for peer, contender in list(ready.items()):
            before = arena.usage()
            rounds = 3 if cycles[peer] and cycles[peer][0] > 0.05 else BATCH
            try:
                (answer,) = contest([contender], Order(rounds=rounds))
            except DoesNotRunError as error:
                if peer not in stage.peers:
                    raise
                absent.append(_absent(peer, error))
                arena.dismiss([ready.pop(peer)])
                del cycles[peer]
                continue
            server[peer] += arena.usage().since(before).cpu
            cycles[peer] += [hold.left - hold.asked for hold in answer.holds]
            cpu[peer] += answer.cpu
    arena.dismiss(list(ready.values()))
    medians = {peer.title: spread(samples).p50 for peer, samples in cycles.items()}
    rows = [
        Row(peer.title, [*spread(samples)[1:], float(len(samples)), medians[peer.title] / medians[least.title],
                         cpu[peer] / len(samples), server[peer] / len(samples)])
        for peer, samples in cycles.items()
    ]  # fmt: skip
    columns = [
        Column("p50", "s"), Column("p99", "s"), Column("samples", "n"), Column("against two EVALSHA", "x"),
        Column("CPU of the client", "s"), Column("CPU of the server", "s"),
    ]  # fmt: skip
    return Table("one acquire and release", columns, rows + absent), medians
