"""An inference service: several server processes, one GPU, many clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.arena import Answer, DoesNotRunError, contest
from benchmarks.contender import Order
from benchmarks.measure import by_entry, overlaps
from benchmarks.peers import OURS, Peer, floor
from benchmarks.results import Column, Dots, Result, Row, Table
from benchmarks.scenarios import Stage

TITLE = "Inference service"

PROCESSES, CLIENTS, BATCH, BATCH_SECONDS = 4, 200, 16, 0.02
COLUMNS = [
    Column("requests per second", "n"), Column("latency p50", "s"), Column("latency p99", "s"),
    Column("longest", "s"), Column("least and most batches per process"), Column("two at once", "n"),
]  # fmt: skip


def run(stage: Stage) -> Result:
    """200 clients of 4 processes, each with its next request as soon as it has an answer.

    Each process serves batches of up to 16, which take 20 ms, under the lock. The baseline is one process that has no
    lock but asyncio's. The locks are real, and so are the times of the batches; the clients are computed from these
    times: 50 for each process, a batch takes those who wait the longest, and they ask again when it ends.

    A client that still waits at the end is counted with what it has waited by then. "≥" marks a figure that is such a
    lower bound: that client waited on.
    """
    seconds = stage.pick(6.0, 1.0)
    rows = [_serve(stage, floor("asyncio_lock"), seconds, processes=1)]
    rows += [_serve(stage, peer, seconds, PROCESSES) for peer in (OURS, *stage.peers)]
    whole = rows[0].values[0]
    for row in rows:
        share = 100 * row.values[0] / whole if isinstance(row.values[0], float) and isinstance(whole, float) else None
        row.values.append(share)
    columns = [*COLUMNS, Column("of the throughput of one process", "%")]
    table = Table(f"{CLIENTS} clients, {PROCESSES} processes, batches of {BATCH_SECONDS * 1000:.0f} ms", columns, rows)
    return Result("inference", TITLE, run.__doc__ or "", [table], [], [
        Dots("inference", "Inference service: latency of a request", table.title, "latency p50", "latency p99",
             sort="further"),
    ])  # fmt: skip


def _serve(stage: Stage, peer: Peer, seconds: float, processes: int) -> Row:
    stage.say(peer.title)
    tasks = PROCESSES // processes
    try:
        with stage.arena.guests(peer, processes, "inference", waiters=tasks) as crew:
            contest(crew, Order(seconds=10))  # first use connects
            answers = contest(crew, Order(tasks=tasks, rounds=10**6, hold=BATCH_SECONDS, seconds=seconds))
    except DoesNotRunError as error:
        if peer not in stage.peers:
            raise
        return Row.absent(peer.title, str(error), COLUMNS)
    if peer is OURS and overlaps(answers):
        raise AssertionError("two bodies at once")
    return _row(peer, answers, seconds)


def _row(peer: Peer, answers: Sequence[Answer], seconds: float) -> Row:
    waits = sorted(wait for answer in answers for wait in _waits(answer, clients=CLIENTS // len(answers)))
    batches = [len(answer.holds) for answer in answers]
    ranks = (len(waits) // 2, len(waits) * 99 // 100, len(waits) - 1)
    served = sum(wait.served for wait in waits)
    values: list[float | str | None] = [served / seconds, *(waits[rank].seconds for rank in ranks)]
    values += [f"{min(batches)} to {max(batches)}", float(overlaps(answers))]
    return Row(peer.title, values, [1 + number for number, rank in enumerate(ranks) if not waits[rank].served])


class Wait(NamedTuple):
    """What one client waited for one answer, or has waited by the end if it was not served."""

    seconds: float
    served: bool


def _waits(answer: Answer, clients: int) -> list[Wait]:
    """What the clients of one process waited: each batch takes the longest waiting, who then ask again at once."""
    asked = deque([answer.began] * clients)
    waits = []
    for hold in by_entry(answer.holds):
        served = [asked.popleft() for _ in range(BATCH)]
        waits += [Wait(hold.leaving - since, True) for since in served]
        asked.extend([hold.leaving] * len(served))
    return waits + [Wait(answer.ended - since, False) for since in asked]
