"""``aiogpulock top``: on a terminal, in a pipe, with and without GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import redis

from tests.edges.shell import COMMAND, Shell, driver_variables, ended, read_until
from tests.edges.terminal import Terminal
from tests.gpu.conftest import driver_folder as driver_folder
from tests.gpu.conftest import sim as sim
from tests.helpers import wait_until
from tests.nvml_sim import GiB, Simulation

HOLD = "echo in; exec sleep 100"


def test_it_shows_holder_queue_and_memory_until_q(
    shell: Shell, redis_cleanup: redis.Redis, driver_folder: Path, sim: Simulation
) -> None:
    shell.env |= driver_variables(driver_folder, sim)
    holder = shell.start("run", "--name", "train.py", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    waiter = shell.start("run", "--name", "next.py", "--", "true")
    wait_until(lambda: redis_cleanup.keys("*:queue"), description="it waits")
    sim.use(0, 61 * GiB, pid=holder.pid)
    with Terminal(shell.env) as terminal:
        terminal.type("aiogpulock top --interval 0.2; stty -a | grep -o ' icanon'; echo en''d=$?\n")
        seen = terminal.until(r"next\.py .*\n.*\n?")
        assert re.search(r"0 +held +\d+s +train\.py .* 1 +██████░░ 61\.\d/80 GiB", seen)
        assert re.search(r"1 +free +0 +░░░░░░░░ 0\.\d/80 GiB", seen)
        assert "1 waiting for gpu 0" in seen
        sim.use(0, 79 * GiB, pid=holder.pid)
        terminal.until(r"████████ 79\.\d/80 GiB")
        terminal.type("xq")
        assert " icanon" in terminal.until("end=0")  # the terminal is as it was

    once = shell.run("top")
    assert re.search(r"^0 +held ", once.stdout, re.MULTILINE)
    assert "\x1b" not in once.stdout
    holder.terminate()
    ended(holder)
    ended(waiter)


def test_without_a_driver_it_says_so_once(shell: Shell, redis_cleanup: redis.Redis) -> None:
    done = shell.run("top", "--once", env={"AIOGPULOCK_GPU_MEMORY_NVML": "auto", "LD_LIBRARY_PATH": ""})
    assert done.returncode == 0
    assert re.search(r"^no GPU memory: ", done.stdout, re.MULTILINE)
    assert "MEMORY" not in done.stdout


def test_a_signal_leaves_the_terminal_as_it_was(shell: Shell, redis_cleanup: redis.Redis) -> None:
    with Terminal(shell.env) as terminal:
        terminal.type("aiogpulock top; echo en''d=$?\n")
        terminal.until("no GPU memory")
        shell.marked(" ".join((*COMMAND, "top")))[0].terminate()
        terminal.until("end=143")
        assert terminal.raw.rindex("\x1b[?1049l") > terminal.raw.rindex("\x1b[?1049h")  # the other screen is left
