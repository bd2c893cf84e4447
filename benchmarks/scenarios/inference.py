"""An inference service: several server processes, one GPU, many clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from benchmarks.arena import Answer, DoesNotRunError, contest
from benchmarks.contender import Hold, Order
from benchmarks.measure import by_entry, overlaps, spread
from benchmarks.peers import OURS, Peer, floor
from benchmarks.results import Bars, Column, Result, Row, Table
from benchmarks.scenarios import Stage

TITLE = "Inference service"

PROCESSES, CLIENTS, BATCH, BATCH_SECONDS = 4, 200, 16, 0.02


def run(stage: Stage) -> Result:
    """200 clients in 4 processes, each with its next request as soon as it has an answer.

    Each process serves batches of up to 16, which take 20 ms, under the lock. The baseline is one process that has no
    lock but asyncio's.
    """
    seconds = stage.pick(6.0, 1.0)
    rows = [_serve(stage, floor("asyncio_lock"), seconds, processes=1)]
    rows += [_serve(stage, peer, seconds, PROCESSES) for peer in (OURS, *stage.peers)]
    whole = rows[0].values[0]
    for row in rows:
        share = 100 * row.values[0] / whole if isinstance(row.values[0], float) and isinstance(whole, float) else None
        row.values.insert(1, share)
    columns = [
        Column("requests per second", "n"), Column("of one process", "%"), Column("latency p50", "s"),
        Column("latency p99", "s"), Column("least and most batches per process"), Column("two at once", "n"),
    ]  # fmt: skip
    table = Table(f"{CLIENTS} clients, {PROCESSES} processes, batches of {BATCH_SECONDS * 1000:.0f} ms", columns, rows)
    return Result("inference", TITLE, run.__doc__ or "", [table], [], [
        Bars("inference", "Inference service: latency of a request (p50, p99)", table.title, "latency p50",
             whisker="latency p99"),
    ])  # fmt: skip


def _serve(stage: Stage, peer: Peer, seconds: float, processes: int) -> Row:
    stage.say(peer.title)
    tasks = PROCESSES // processes
    try:
        with stage.arena.guests(peer, processes, "inference", waiters=tasks) as crew:
            contest(crew, Order(seconds=10))  # first use connects
            answers = contest(crew, Order(tasks=tasks, rounds=10**6, hold=BATCH_SECONDS, seconds=seconds))
    except DoesNotRunError as error:
        return Row(peer.title, [str(error), *[None] * 4])
    return _row(peer, answers, seconds)


def _row(peer: Peer, answers: Sequence[Answer], seconds: float) -> Row:
    latencies = [latency for answer in answers for latency in _latencies(answer.holds, clients=CLIENTS // len(answers))]
    batches = [len(answer.holds) for answer in answers]
    _, p50, p99 = spread(latencies)
    return Row(
        peer.title,
        [len(latencies) / seconds, p50, p99, f"{min(batches)} to {max(batches)}", float(overlaps(answers))],
    )


def _latencies(holds: Sequence[Hold], clients: int) -> list[float]:
    """What the clients of one process waited: each batch takes the longest waiting, who then ask again at once."""
    ordered = by_entry(holds)
    if not ordered:
        return []
    asked = deque([ordered[0].asked] * clients)
    latencies = []
    for hold in ordered:
        served = [asked.popleft() for _ in range(min(BATCH, len(asked)))]
        latencies += [hold.leaving - since for since in served]
        asked.extend([hold.leaving] * len(served))
    return latencies
