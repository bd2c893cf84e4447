"""What it costs to verify that the GPU's memory came back: a simulated driver, and the library that really asks it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender, contest, take_turns
from benchmarks.contender import Order, Setup
from benchmarks.measure import spread
from benchmarks.peers import OURS
from benchmarks.results import Column, Dots, Result, Row, Table, at_most
from benchmarks.scenarios import Stage
from tests.nvml_sim import Simulation, build

TITLE = "Memory verification"

POLICIES = ("off", "report", "hold", "raise", "quarantine")
TURNS, PAUSE = 51, 0.02
LAG = 0.05
"""Seconds of lag of an event loop that a hung driver may cause: that is, none that it causes."""


def run(stage: Stage) -> Result:
    """Two processes take turns under each policy of `gpu_memory`; batches alternate. A simulated driver answers.

    Then the lag of the event loops is measured while the lock changes hands, first as before, then while the driver's
    memory query hangs.
    """
    with _driver() as (simulation, env):
        crews = {policy: _crew(stage, policy, env) for policy in POLICIES}
        seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        asked, holds = dict.fromkeys(POLICIES, 0), dict.fromkeys(POLICIES, 0)
        turns = stage.pick(TURNS, 15)
        for batch in range(stage.pick(10, 1)):
            stage.say(f"batch {batch + 1}")
            for policy, crew in crews.items():
                before = _driver_calls(simulation)
                seconds[policy] += take_turns(crew, turns, lambda: PAUSE)
                asked[policy] += _driver_calls(simulation) - before
                holds[policy] += turns + 1
        healthy, hung = dict[str, list[float]](), dict[str, list[float]]()
        for policy in ("off", "report", "hold"):
            stage.say(f"the event loops under {policy}")
            healthy[policy] = _lags(stage, crews[policy])
            stage.say(f"a hung driver under {policy}")
            with simulation.hung("memory_v2"):
                hung[policy] = _lags(stage, crews[policy])
        stage.arena.dismiss([contender for crew in crews.values() for contender in crew])
    least = spread(seconds["off"]).p50
    rows = [
        Row(
            policy,
            [
                *spread(samples)[1:],
                float(len(samples)),
                spread(samples).p50 / least,
                asked[policy] / holds[policy],
                *_late(healthy.get(policy), hung.get(policy)),
            ],
        )
        for policy, samples in seconds.items()
    ]
    columns = [
        Column("p50", "s"), Column("p99", "s"), Column("samples", "n"), Column("against off", "x"),
        Column("driver calls per hold", "n"),
        Column("loop late, p99", "s"), Column("loop late, driver hung, p99", "s"),
        Column("loop late, driver hung, most", "s"),
    ]  # fmt: skip
    table = Table("a hand-off under this policy", columns, rows)
    targets = [
        at_most("report, the default: against no check at all", spread(seconds["report"]).p50 / least, 1.15, "x"),
        at_most("lag of the event loop while an NVML call hangs", max(*hung["report"], *hung["hold"]), LAG, "s"),
    ]
    chart = Dots("memory", "Hand-off under each memory policy", table.title, "p50", "p99", mine=True)
    return Result("memory", TITLE, run.__doc__ or "", [table], targets, [chart])


@contextmanager
def _driver() -> Iterator[tuple[Simulation, dict[str, str]]]:
    """A simulated driver, and the environment of processes that are to find it."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        simulation = Simulation(Path(folder) / "state", gpus=len(POLICIES))
        path = os.pathsep.join(filter(None, (folder, os.environ.get("LD_LIBRARY_PATH"))))
        env = {"LD_LIBRARY_PATH": path, "NVML_SIM_STATE": str(simulation.path), "AIOGPULOCK_NVML_PIDS": "same"}
        try:
            yield simulation, env
        finally:
            simulation.close()


def _crew(stage: Stage, policy: str, env: dict[str, str]) -> list[Contender]:
    """Two processes that lock a GPU of their own."""
    stage.say(f"start {policy}")
    options: dict[str, Any] = {"gpu": POLICIES.index(policy), "gpu_memory": {"policy": policy, "settle_time": 1}}
    setup = Setup(stage.arena.server.url, policy, options=options)
    crew = [stage.arena.start(OURS, setup, env) for _ in range(2)]
    contest(crew, Order(rounds=3, hold=PAUSE))
    return crew


def _driver_calls(simulation: Simulation) -> int:
    return sum(int(simulation.call(name).count) for name in ("memory_v1", "memory_v2", "compute", "graphics"))


def _late(healthy: list[float] | None, hung: list[float] | None) -> list[float | None]:
    return [spread(healthy).p99, spread(hung).p99, max(hung)] if healthy and hung else [None, None, None]


def _lags(stage: Stage, crew: list[Contender]) -> list[float]:
    order = Order(rounds=stage.pick(25, 10), hold=PAUSE, seconds=stage.pick(20.0, 4.0), watch_loop=True)
    answers = contest(crew, order)
    return [lag for answer in answers for lag in answer.lags]
