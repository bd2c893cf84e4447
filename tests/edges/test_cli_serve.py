"""``aiogpulock serve``: the verb; what is served has tests of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
import redis

from tests.edges.shell import ROOT, Shell, ended
from tests.helpers import wait_until
from tests.raw_scripts import RawLock


def place_of(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    return next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_it_is_told_to_end(shell: Shell, redis_cleanup: redis.Redis, end: signal.Signals) -> None:
    server = shell.start("serve", "--port", "0")
    place = place_of(server)
    with urllib.request.urlopen(f"{place}/livez") as answer:
        assert json.load(answer) == {"status": "alive"}
    wait_until(
        lambda: bool(redis_cleanup.exists("{gpu_lock}:log:told")), description="its monitor's first round", timeout=30
    )
    server.send_signal(end)
    assert ended(server)[0] in (0, -15, 143)


def test_monitor_and_log_level_are_options(shell: Shell, redis_cleanup: redis.Redis) -> None:
    RawLock(redis_cleanup).hold("stale", lease=1)
    redis_cleanup.zadd("{gpu_lock}:index", {"0": 1})
    redis_cleanup.expire("{gpu_lock}:index", 60)
    watching = {"AIOGPULOCK_MONITOR_ENABLED": "false", "AIOGPULOCK_MONITOR_MONITOR_INTERVAL": "0.2"}
    silent = shell.start("serve", "--port", "0", "--no-monitor", env={"AIOGPULOCK_MONITOR_MONITOR_INTERVAL": "0.2"})
    place_of(silent)
    looking = shell.start("serve", "--port", "0", "--log-level", "debug", env=watching)
    place = place_of(looking)
    assert redis_cleanup.exists("gpu_lock:0")

    freeing = shell.start("serve", "--port", "0", "--monitor", "--log-level", "warning", env=watching)
    wait_until(lambda: not redis_cleanup.exists("gpu_lock:0"), description="the dead holder to be replaced")
    taken = shell.run("serve", "--port", place.rpartition(":")[2])
    assert (taken.returncode, "address already in use" in taken.stderr) == (1, True)
    for server in (silent, looking, freeing):
        server.terminate()
    told = [ended(server)[2] for server in (silent, looking, freeing)]
    assert [("INFO" in text, "zombie_lock_cleaned" in text) for text in told] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def test_without_its_extra_it_says_what_to_install() -> None:
    program = """
import sys
sys.modules["starlette"] = None
sys.argv = ["aiogpulock", "serve"]
from aiogpulock.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"aiogpulock: .*pip install 'aiogpulock\[server\]'\n", done.stderr)


def test_wrong_settings_are_78(shell: Shell) -> None:
    done = shell.run("serve", "--redis-url", "nonsense")
    assert done.returncode == 78
    assert done.stderr.startswith("aiogpulock: gpu_lock.redis.url: got 'nonsense'")
