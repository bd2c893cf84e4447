"""`run` on a terminal: its waiting line, Ctrl-C, and job control."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import redis

from aiogpulock.cli.notices import NO_DRIVER
from tests.edges.shell import Shell, ended, read_until
from tests.edges.terminal import Terminal
from tests.helpers import wait_until

COUNT = """
import signal, time
received = []
signal.signal(signal.SIGINT, lambda *_: received.append(1))
print("re" + "ady", flush=True)
while not received:
    time.sleep(0.01)
end = time.monotonic() + 1
while time.monotonic() < end:
    time.sleep(0.01)
print("SIGINT:", len(received))
"""
CTRL_C, CTRL_Z = "\x03", "\x1a"


def test_the_line_tells_place_expected_wait_and_holder(shell: Shell, redis_cleanup: redis.Redis) -> None:
    assert shell.run("run", "--", "sh", "-c", "sleep 0.2").returncode == 0  # so there is a history
    nasty = "train\x1b[2J\u202e.py " + 60 * "x"
    holder = shell.start("run", "--name", nasty, "--", "sh", "-c", "echo in; exec sleep 100")
    read_until(holder, "in")
    dead = shell.start("run", "--", "true")
    wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, description="it waits")
    dead.kill()
    dead.wait()
    with Terminal(shell.env) as terminal:
        terminal.type("aiogpulock run -- echo my turn\n")
        line = terminal.until(r"waiting for gpu 0 · [^\r]*…")
        shown = re.findall(r"waiting for gpu 0 · [^\r]*…", line)[-1]

        assert re.match(r'waiting for gpu 0 · 1st of 1 · ~\d+s · held by \S+@\S+ pid \d+ "train', shown)
        assert len(shown) < 80
        assert "\x1b[2J" not in terminal.raw
        assert "\u202e" not in terminal.raw
        holder.terminate()
        terminal.until(r"my turn\r\n\$ ")
    ended(holder)
    redis_cleanup.delete("{gpu_lock:0}:queue", "{gpu_lock:0}:waiters")  # else the seat of the dead expires after 90 s


def test_ctrl_c_ends_the_command_once_and_the_loop_around_it(
    shell: Shell, redis_cleanup: redis.Redis, tmp_path: Path
) -> None:
    with Terminal(shell.env) as terminal:
        (tmp_path / "count.py").write_text(COUNT)
        terminal.type(f"aiogpulock run -- {sys.executable} count.py\n")
        terminal.until("ready")
        terminal.type(CTRL_C)
        terminal.until(r"SIGINT: 1\r")  # the terminal told it; run must not tell it again

        terminal.type("for i in 1 2 3; do aiogpulock run -- sh -c 'echo r''ound; exec sleep 100'; done; echo st=$?\n")
        terminal.until("round")
        terminal.type(CTRL_C)
        terminal.until(r"\$ ")
        terminal.type("echo sta''tus=$?\n")
        assert "round" not in terminal.until("status=130")


def test_ctrl_z_stops_it_and_fg_goes_on(shell: Shell, redis_cleanup: redis.Redis) -> None:
    with Terminal(shell.env) as terminal:
        terminal.type("aiogpulock run -- sh -c 'echo r''eady; read line; echo \"got $line\"'\n")
        terminal.until("ready")
        terminal.type(CTRL_Z)
        terminal.until(r"Stopped.*\n\$ ")
        terminal.type("fg\n")
        terminal.until(r"fg\r\n.*\r\n")
        terminal.type("hello\n")
        terminal.until(r"got hello\r\n\$ ")


def test_a_missing_driver_is_one_short_line_and_for_people_only(shell: Shell, redis_cleanup: redis.Redis) -> None:
    no_driver = {"AIOGPULOCK_GPU_MEMORY_NVML": "auto", "LD_LIBRARY_PATH": ""}
    done = shell.run("run", "--", "echo", "done", env=no_driver)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    killed = shell.start("run", "--", "sh", "-c", "echo in; exec sleep 100", env=no_driver)
    read_until(killed, "in")
    killed.kill()  # so the next one would have to look at the GPU
    after_a_crash = shell.run("run", "--", "true", env=no_driver)
    assert (after_a_crash.returncode, after_a_crash.stderr) == (0, "")
    strict = shell.run("run", "--", "true", env=no_driver | {"AIOGPULOCK_GPU_MEMORY_POLICY": "hold"})
    assert "nothing verifies their memory" in strict.stderr
    with Terminal(shell.env | no_driver) as terminal:
        terminal.type("aiogpulock run -- echo do''ne\n")
        lines = [line for line in terminal.until(r"done\s+\$ ").splitlines() if "NVIDIA" in line]
    assert len(lines) == 1, "one line, of 80 columns or little more"
    assert lines[0].endswith(NO_DRIVER)
