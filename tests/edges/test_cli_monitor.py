"""``aiogpulock monitor``: the verb; what it repairs has tests of its own."""

from __future__ import annotations

import re
import signal

import psutil
import pytest
import redis

from tests.edges.shell import Shell, ended, read_until
from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.servers import RealServer

QUICK = {"AIOGPULOCK_MONITOR_MONITOR_INTERVAL": "0.3"}


def leave_a_dead_holder(shell: Shell) -> None:
    holder = shell.start("run", "--name", "asr", "--", "sh", "-c", "echo in; exec sleep 100")
    read_until(holder, "in")
    below = {child.pid for child in psutil.Process(holder.pid).children(recursive=True)}
    holder.kill()
    wait_until(
        lambda: not below & {process.pid for process in shell.marked()}, description="nothing of it is left", timeout=30
    )


def test_a_round_tells_and_repairs(shell: Shell, redis_cleanup: redis.Redis) -> None:
    leave_a_dead_holder(shell)
    dry = shell.run("monitor", "--once", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8} gpu_lock:0: found dead: process \d+ on \S+ has ended\n", dry.stdout)
    assert redis_cleanup.exists("gpu_lock:0")

    done = shell.run("monitor", "--once")
    assert re.fullmatch(r"\S+ \S+ gpu_lock:0: .*process \d+ on \S+ has ended\n", done.stdout)
    assert "found dead" not in done.stdout
    assert not redis_cleanup.exists("gpu_lock:0")


def test_a_round_in_vain_ends_with_1(shell: Shell, redis_cleanup: redis.Redis) -> None:
    leave_a_dead_holder(shell)
    redis_cleanup.config_set("min-replicas-to-write", 1)
    try:
        refused = shell.run("monitor", "--once")
    finally:
        redis_cleanup.config_set("min-replicas-to-write", 0)
    assert (refused.returncode, "gpu_lock:0 could not be repaired" in refused.stderr) == (1, True)
    assert "Traceback" not in refused.stderr
    assert shell.run("monitor", "--once").returncode == 0


def test_it_starts_without_redis_and_says_so(shell: Shell, own_server: RealServer) -> None:
    own_server.stop()
    monitor = shell.start("monitor", env={**QUICK, "AIOGPULOCK_REDIS_URL": own_server.url})
    assert monitor.stderr is not None
    told = next(line for line in monitor.stderr if "watching" in line)
    assert own_server.url in told
    read_until(monitor, "redis_disconnected: ")
    own_server.start()
    read_until(monitor, "redis_disconnected: resolved")
    monitor.send_signal(signal.SIGTERM)
    ended(monitor)


def test_what_is_told_is_no_command_of_the_terminal(shell: Shell, redis_cleanup: redis.Redis) -> None:
    monitor = shell.start("monitor", env=QUICK)
    wait_until(
        lambda: bool(redis_cleanup.exists("{gpu_lock}:log:told")), description="its first round is over", timeout=30
    )
    RawLock(redis_cleanup).call("note", "1", "\x1b[2Jowned", "warning", "asr", "h1", "box:7", "it happened", "")
    redis_cleanup.zadd("{gpu_lock}:index", {"0": 1})
    redis_cleanup.expire("{gpu_lock}:index", 60)
    assert "\x1b" not in read_until(monitor, "it happened")
    monitor.send_signal(signal.SIGTERM)
    ended(monitor)


def test_it_goes_round_until_it_is_ended(shell: Shell, redis_cleanup: redis.Redis) -> None:
    monitor = shell.start("monitor", env=QUICK)
    assert monitor.stderr is not None
    assert re.fullmatch(r"watching unix://\S+ every 0\.3 s\n", monitor.stderr.readline())
    leave_a_dead_holder(shell)
    read_until(monitor, "gpu_lock:0: ")
    monitor.send_signal(signal.SIGINT)
    assert ended(monitor)[0] == 130


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(shell: Shell, redis_cleanup: redis.Redis, end: signal.Signals) -> None:
    monitor = shell.start("monitor", env=QUICK)
    wait_until(
        lambda: bool(redis_cleanup.exists("{gpu_lock}:log:told")), description="its first round is over", timeout=30
    )
    monitor.send_signal(end)
    code, *told = ended(monitor)
    assert code == -signal.SIGTERM
    assert not any("Traceback" in text for text in told)


def test_enabled_is_respected(shell: Shell) -> None:
    off = shell.run("monitor", env={"AIOGPULOCK_MONITOR_ENABLED": "false"})
    assert (off.returncode, off.stdout) == (0, "")
    told = "gpu_lock_monitor.enabled is false (environment variable AIOGPULOCK_MONITOR_ENABLED)"
    assert off.stderr == f"the monitor is switched off: {told}\n"


def test_a_single_round_without_redis_has_its_status(shell: Shell) -> None:
    away = {"REDIS_URL": "redis://127.0.0.1:1", "AIOGPULOCK_REDIS_CONNECT_TIMEOUT": "0.2"}
    done = shell.run("monitor", "--once", env=away)
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1
