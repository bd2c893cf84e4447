"""What the library weighs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aiogpulock.embedded import join
from benchmarks.arena import contest, last_line
from benchmarks.contender import Order
from benchmarks.peers import OURS, ROOT
from benchmarks.results import Column, Result, Row, Table, Unit
from benchmarks.scenarios import Stage

TITLE = "Footprint"


def run(stage: Stage) -> Result:
    """Import time beside what it imports; memory per waiter; the wheel; the embedded server."""
    rows = _imports(stage) + _memory(stage) + _wheel(stage) + _embedded(stage)
    titles: dict[Unit, str] = {"s": "times", "B": "sizes"}
    tables = [
        Table(title, [Column("value", unit)], [row for row, of in rows if of == unit]) for unit, title in titles.items()
    ]
    return Result("footprint", TITLE, run.__doc__ or "", tables, [])


Rows = list[tuple[Row, str]]


def _imports(stage: Stage) -> Rows:
    stage.say("imports")
    programs = {
        "python, nothing imported": "pass",
        "import aiogpulock": "import aiogpulock",
        "import aiogpulock, and name gpu_lock": "from aiogpulock import gpu_lock",
        "import redis.asyncio (for comparison)": "import redis.asyncio",
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(stage.pick(15, 5)):
        for name, program in programs.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            seconds[name].append(time.perf_counter() - started)
    return [(Row(name, [statistics.median(samples)]), "s") for name, samples in seconds.items()]


def _memory(stage: Stage) -> Rows:
    waiters = stage.pick(10_000, 1000)
    stage.say(f"memory of {waiters} waiters")
    with (
        stage.arena.guests(OURS, 1, "memory") as (holder,),
        stage.arena.guests(OURS, 1, "memory", waiters=waiters) as (crowd,),
    ):
        contest([crowd], Order())
        holder.tell(Order(hold=-1, tell=True))
        holder.entered()
        before = crowd.resident
        crowd.tell(Order(tasks=waiters))
        stage.arena.wait_until_quiet(most=20)
        after = crowd.resident
        holder.go_on()
        crowd.answer(60)
    return [(Row(f"memory per waiter ({waiters:,} in one process)", [(after - before) / waiters]), "B")]


def _wheel(stage: Stage) -> Rows:
    stage.say("the wheel")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise RuntimeError(f"the wheel was not built: {last_line(built.stderr)}")
        (wheel,) = Path(folder).glob("*.whl")
        return [(Row("the wheel", [float(wheel.stat().st_size)]), "B")]


def _embedded(stage: Stage) -> Rows:
    stage.say("embedded server")
    first, second = [], []
    for _ in range(stage.pick(7, 3)):
        with tempfile.TemporaryDirectory(prefix="agl-", dir="/tmp") as folder:
            started = time.perf_counter()
            server = join(directory=Path(folder) / "v1", linger=0.0)
            first.append(time.perf_counter() - started)
            started = time.perf_counter()
            join(directory=Path(folder) / "v1", linger=0.0).close()
            second.append(time.perf_counter() - started)
            server.close()
            time.sleep(0.3)  # the server stops by itself, then its directory may go
    return [
        (Row("embedded server: start, until it answers", [statistics.median(first)]), "s"),
        (Row("embedded server: join one that runs", [statistics.median(second)]), "s"),
    ]
