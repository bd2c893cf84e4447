"""The verbs that look at locks, and the one that takes one away."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from aiogpulock.liveness import boot_id
from tests.acl import LEAST_PRIVILEGES
from tests.edges.shell import Shell, driver_variables, ended, read_until
from tests.edges.terminal import Terminal
from tests.gpu.conftest import driver_folder as driver_folder
from tests.gpu.conftest import sim as sim
from tests.helpers import wait_until
from tests.nvml_sim import GiB, Simulation
from tests.servers import RealServer

HOLD = "echo in; exec sleep 100"
NASTY = "tr\x1b[31main\u202e.py"


def told(shell: Shell, *words: str) -> Any:
    done = shell.run(*words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_status_tells_who_has_what(shell: Shell, redis_cleanup: redis.Redis) -> None:
    nothing = shell.run("status")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (
        0,
        "",
        f"{shell.env['REDIS_URL']}\nno lock was used yet\n",
    )
    assert told(shell, "status") == {"schema": 1, "server": shell.env["REDIS_URL"], "locks": [], "unreadable": {}}

    holder = shell.start("run", "--name", NASTY, "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    redis_cleanup.set("gpu_lock:1", b"locked_by_old\xff program", px=60_000)
    redis_cleanup.zadd("{gpu_lock}:index", {"1": 1})
    seen = told(shell, "status")["locks"]

    assert [(lock["gpu_id"], lock["phase"], lock["pid"], lock["foreign"]) for lock in seen] == [
        ("0", "held", holder.pid, False),
        ("1", None, None, True),
    ]
    lines = shell.run("status").stdout.splitlines()
    assert re.fullmatch(r"GPU +STATE +FOR +TASK +HOLDER +WAITING *", lines[0])
    assert re.fullmatch(rf"0 +held +\d+s +tr.\[31main.\.py +\S+@\S+ pid {holder.pid} +0 *", lines[1])
    assert re.fullmatch(r"1 +foreign +locked_by_old\\xff program +0 *", lines[2])
    assert "\x1b" not in "".join(lines)
    holder.kill()
    wait_until(lambda: len(shell.marked()) == 0, description="nothing of it is left")
    assert re.search(r"^0 +dead ", shell.run("status", "0").stdout, re.MULTILINE)
    assert shell.run("wait").returncode == 0  # whoever asks gets it
    assert shell.run("run", "--", "true").returncode == 0
    redis_cleanup.delete("gpu_lock:1")


def test_a_lock_that_cannot_be_read_is_shown_with_what_to_do(shell: Shell, redis_cleanup: redis.Redis) -> None:
    assert shell.run("run", "--gpu", "1", "--", "true").returncode == 0
    redis_cleanup.rpush("{gpu_lock:0}:holder", "of somebody else")
    redis_cleanup.set("gpu_lock:0", "x", px=60_000)  # in no index
    for words in (("status",), ("status", "0", "1")):
        done = shell.run(*words)
        assert done.returncode == 0
        assert [line.split() for line in done.stdout.splitlines()[1:]] == [["1", "free", "0"], ["0", "unreadable"]]
        assert re.search(r"^aiogpulock: gpu_lock:0 cannot be read: .*: move or delete it$", done.stderr, re.MULTILINE)
        seen = told(shell, *words)
        assert [lock["gpu_id"] for lock in seen["locks"]] == ["1"]
        assert "gpu_lock:0 cannot be read" in seen["unreadable"]["0"]
    assert "gpu_lock:0 cannot be read" in shell.run("top", "--once").stdout
    refused = shell.run("queue", "0")
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1
    redis_cleanup.delete("{gpu_lock:0}:holder", "gpu_lock:0")


def test_queue_and_history_tell_what_is_to_come_and_what_was(shell: Shell, redis_cleanup: redis.Redis) -> None:
    assert shell.run("history").stderr == "gpu 0 has no history yet\n"
    assert shell.run("run", "--name", "first", "--", "sleep", "0.3").returncode == 0
    holder = shell.start("run", "--name", "second", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    empty = shell.run("queue")
    assert (empty.stdout, empty.stderr.splitlines()[-1]) == ("", "nobody waits")
    waiter = shell.start("run", "--name", "third", "--", "true")
    wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, description="it waits")

    queue = shell.run("queue")
    assert re.fullmatch(rf'gpu 0 · held by \S+@\S+ pid {holder.pid} "second" \d+s · usual hold 0s\n', queue.stderr)
    assert re.fullmatch(rf"1 +third +\S+ pid {waiter.pid} +\d+s +~0s *", queue.stdout.splitlines()[1])
    seen = told(shell, "queue")
    assert [entry["pid"] for entry in seen["lock"]["queue"]] == [waiter.pid]
    assert 0.2 < seen["typical_hold"] < 5
    assert len(seen["expected_waits"]) == 1
    assert boot_id() not in shell.run("queue", "--json").stdout + shell.run("status", "--json").stdout

    holder.terminate()
    assert ended(holder)[0] == 143
    assert ended(waiter)[0] == 0
    history = shell.run("history", "--limit", "2")
    assert [line.split()[2:4] for line in history.stdout.splitlines()[1:]] == [
        ["released", "third"],
        ["released", "second"],
    ]
    assert [event["reason"] for event in told(shell, "history")["events"]] == ["normal", "exception", "normal"]


def test_wait_waits_and_takes_nothing(shell: Shell, redis_cleanup: redis.Redis) -> None:
    assert shell.run("wait").returncode == 0
    holder = shell.start("run", "--name", "asr", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    late = shell.run("wait", "--timeout", "0.2")
    assert late.returncode == 75
    assert re.fullmatch(r'aiogpulock: gpu 0 is not free after 0\.2 s: held by \S+ pid \d+ "asr" \d+s\n', late.stderr)

    assert shell.run("wait", "--timeout", "0").returncode == 75
    waiting = shell.start("wait", "0")
    looks = wait_until(lambda: looks_of_a_waiting(redis_cleanup), description="it waits")
    time.sleep(1.5)
    assert looks_of_a_waiting(redis_cleanup) == looks, "nothing happens, nobody looks"
    began = time.monotonic()
    holder.terminate()
    assert ended(waiting) == (0, "", "")
    assert time.monotonic() - began < 15, "it was told: a look comes after 30 s only"
    ended(holder)
    assert redis_cleanup.hget("{gpu_lock:0}:stats", "acquisitions") == "1"
    assert shell.run("wait", "--timeout", "0").returncode == 0


@pytest.mark.parametrize("verb", ["wait", "queue", "history"])
def test_a_gpu_that_is_not_here_is_not_read_as_free(
    verb: str, shell: Shell, redis_cleanup: redis.Redis, driver_folder: Path, sim: Simulation
) -> None:
    shell.env |= driver_variables(driver_folder, sim)
    refused = shell.run(verb, "99")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "aiogpulock: there is no GPU 99 on this host: NVML has 0 and 1\n"
    assert shell.run(verb, "1").returncode == 0
    why = "there is no GPU 99 on this host: NVML has 0 and 1"
    assert shell.run("status", "99", "1").stderr.splitlines()[1:] == [f"aiogpulock: {why}"]
    told = json.loads(shell.run("status", "--json", "99", "1").stdout)
    assert ([lock["gpu_id"][:4] for lock in told["locks"]], told["unreadable"]) == (["GPU-"], {"99": why})

    holder = shell.start("run", "--gpu", "99", "--", "sh", "-c", HOLD, env={"AIOGPULOCK_GPU_MEMORY_NVML": "off"})
    read_until(holder, "in")
    assert shell.run("wait", "99", "--timeout", "0").returncode == 75
    assert shell.run("queue", "99").returncode == 0
    holder.terminate()
    ended(holder)
    assert shell.run("history", "99").returncode == 0


@pytest.mark.parametrize("host", ["this host", "another host"])
def test_wait_does_not_wait_for_those_who_died_in_the_queue(
    host: str, shell: Shell, redis_cleanup: redis.Redis
) -> None:
    holder = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    waiter = shell.start("run", "--", "true", env={"AIOGPULOCK_BOOT_ID": "x"} if host == "another host" else {})
    wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, description="it waits")
    waiter.kill()
    wait_until(lambda: redis_cleanup.pubsub_numsub(inbox_of(redis_cleanup))[0][1] == 0, description="it is deaf")
    assert re.fullmatch(rf" +true .* pid {waiter.pid} .* does not answer *", shell.run("queue").stdout.splitlines()[1])
    assert "does not answer" in shell.run("top", "--once").stdout
    holder.terminate()
    ended(holder)
    assert redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, "its seat is still there"
    free = shell.run("wait", "--timeout", "10")
    assert (free.returncode, free.stderr) == (0, "")
    assert shell.run("run", "-n", "--", "true").returncode == 0
    redis_cleanup.delete("{gpu_lock:0}:queue", "{gpu_lock:0}:waiters")  # else the seat expires after 90 s


def test_wait_does_not_wait_for_one_who_was_granted_the_gpu_and_took_it_not(
    shell: Shell, redis_cleanup: redis.Redis
) -> None:
    holder = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    waiter = shell.start("run", "--", "true")
    wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, description="it waits")
    waiter.send_signal(signal.SIGSTOP)
    holder.terminate()
    ended(holder)
    assert told(shell, "status")["locks"][0]["phase"] == "granted"
    wait_until(
        lambda: told(shell, "status")["locks"][0]["deadline_in"] < 0, timeout=60, description="the grant is over"
    )
    assert shell.run("wait", "--timeout", "0").returncode == 0
    waiter.send_signal(signal.SIGCONT)
    assert ended(waiter)[0] == 0


def inbox_of(client: redis.Redis) -> str:
    """The only one that waits for lock 0."""
    (record,) = (name for name in client.hkeys("{gpu_lock:0}:waiters") if name.startswith("@"))
    return str(record).removeprefix("@")


def looks_of_a_waiting(client: redis.Redis) -> int:
    """How many scripts have run when no more do; 0 until somebody listens to the releases of lock 0."""
    if not client.pubsub_numsub("gpu_lock:gpu_lock:0")[0][1]:
        return 0
    calls, before = 0, -1
    while calls != before:  # the subscription causes a look
        time.sleep(0.3)
        calls, before = scripts_run(client), calls
    return calls


def scripts_run(client: redis.Redis) -> int:
    calls: int = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    return calls


def test_wait_hears_of_a_killed_holder_and_finds_a_key_that_was_deleted(
    shell: Shell, redis_cleanup: redis.Redis
) -> None:
    holder = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    waiting = shell.start("wait")
    wait_until(lambda: looks_of_a_waiting(redis_cleanup), description="it waits")
    began = time.monotonic()
    holder.kill()
    assert ended(waiting) == (0, "", "")
    assert time.monotonic() - began < 15, "its lease is 60 s long"
    assert shell.run("run", "--", "true").returncode == 0

    redis_cleanup.set("gpu_lock:0", "locked_by_old program", px=60_000)
    looks = scripts_run(redis_cleanup)
    waiting = shell.start("wait", env={"AIOGPULOCK_POLL_INTERVAL": "0.2"})
    wait_until(lambda: scripts_run(redis_cleanup) > looks + 3, description="it polls")
    assert redis_cleanup.delete("gpu_lock:0"), "which publishes nothing"
    assert ended(waiting) == (0, "", "")


def test_release_ends_the_holder_that_it_saw(shell: Shell, redis_cleanup: redis.Redis) -> None:
    free = shell.run("release", "0", "--force")
    assert (free.returncode, free.stderr) == (1, "aiogpulock: nobody holds gpu 0\n")
    holder = shell.start("run", "--name", "asr", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    successor = shell.start("run", "--name", "next", "--", "sh", "-c", HOLD)
    wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, description="it waits")

    assert shell.run("release", "0").returncode == 2  # there is no terminal to ask on
    other = shell.run("release", "0", "--force", "--holder", "somebody")
    assert other.returncode == 1
    assert re.fullmatch(r'aiogpulock: gpu 0 is held by .* "asr" \d+s, not by somebody\n', other.stderr)
    with Terminal(shell.env) as terminal:
        terminal.type("aiogpulock release 0 --reason stuck\n")
        asked = terminal.until(r"Take it away\? \[y/N\]: ")
        assert re.search(r'gpu 0 is held by \S+ pid \d+ "asr" \d+s', asked)
        terminal.type("n\n")
        terminal.until("Aborted!")
        terminal.type("aiogpulock release 0 --reason stuck\n")
        terminal.until(r"Take it away\? \[y/N\]: ")
        terminal.type("y\n")
        terminal.until("gpu 0 is released")

    read_until(successor, "in")
    assert ended(holder)[0] == 76
    event = told(shell, "history")["events"][0]
    assert (event["event"], event["task_name"], event["reason"]) == ("forced", "asr", "forced")
    assert event["actor"].endswith("(stuck)")
    successor.terminate()
    ended(successor)


def test_colours_are_for_terminals_that_want_them(shell: Shell, redis_cleanup: redis.Redis) -> None:
    assert shell.run("run", "--", "true").returncode == 0
    with Terminal(shell.env) as terminal:
        terminal.type("aiogpulock status; echo en''d\n")
        terminal.until(r"WAITING.*end")
        assert re.search(r"\x1b\[\d*m", terminal.raw)
        coloured = len(terminal.raw)
        terminal.type("NO_COLOR=1 aiogpulock status; echo en''d\n")
        terminal.until(r"WAITING.*end")
        assert not re.search(r"\x1b\[3\d", terminal.raw[coloured:])


def test_a_pipe_that_ends_is_no_error(shell: Shell, redis_cleanup: redis.Redis) -> None:
    assert shell.run("run", "--", "true").returncode == 0
    with Terminal(shell.env) as terminal:
        terminal.type("aiogpulock history | true; aiogpulock status | head -1; echo en''d\n")
        assert "Traceback" not in terminal.until("end")


@pytest.mark.parametrize(
    "words",
    [
        *(("status",), ("status", "--json"), ("history",), ("config", "show")),
        *(("queue", "--json"), ("top",), ("--help",), ("--version",)),
    ],
)
def test_a_full_disk_is_one_line(words: tuple[str, ...], shell: Shell, redis_cleanup: redis.Redis) -> None:
    assert shell.run("run", "--", "true").returncode == 0
    with Path("/dev/full").open("w") as full:
        process = shell.start(*words, stdout=full)
        assert process.stderr is not None
        told = [line for line in process.stderr.read().splitlines() if line.startswith("aiogpulock:") or "rror" in line]
        assert (process.wait(), told) == (1, ["aiogpulock: stdout: No space left on device"])


def test_who_may_not_read_histories_sees_the_queue_without_them(shell: Shell, own_server: RealServer) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "gpu", "reset", "on", ">pw", *LEAST_PRIVILEGES.split())
    shell.env["REDIS_URL"] = own_server.url.replace("unix://", "unix://gpu:pw@")
    assert shell.run("run", "--", "true").returncode == 0
    holder = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    assert (told(shell, "queue")["typical_hold"], shell.run("queue").returncode) == (None, 0)
    assert "perm" not in shell.run("top").stdout.lower()
    holder.terminate()
    ended(holder)


def test_a_quarantine_is_shown_and_lifted(
    shell: Shell, redis_cleanup: redis.Redis, driver_folder: Path, sim: Simulation
) -> None:
    shell.env |= driver_variables(driver_folder, sim) | {
        "AIOGPULOCK_GPU_MEMORY_POLICY": "quarantine",
        "AIOGPULOCK_GPU_MEMORY_SETTLE_TIME": "0.2",
    }
    leaky = shell.start("run", "--name", "leaky", "--", "sh", "-c", "echo in; exec sleep 100")
    read_until(leaky, "in")
    program = wait_until(lambda: shell.marked("sleep"), description="the command is what it will be")[0]
    sim.use(0, 5 * GiB, pid=program.pid)
    leaky.terminate()
    assert ended(leaky)[0] == 143

    shown = shell.run("status", "0").stdout
    assert re.search(r"^0 +quarantined +\S", shown, re.MULTILINE)
    refused = shell.run("run", "--", "true")
    assert refused.returncode == 75
    assert refused.stderr.count("\n") == 1
    assert shell.run("release", "0", "--force").stderr == "aiogpulock: nobody holds gpu 0\n"
    lifted = shell.run("release", "0", "--quarantine", "--force", "--reason", "checked by hand")
    assert (lifted.returncode, lifted.stderr) == (0, "gpu 0 is released\n")
    assert re.search(r"^0 +free ", shell.run("status", "0").stdout, re.MULTILINE)
    assert shell.run("release", "0", "--quarantine", "--force").returncode == 1
