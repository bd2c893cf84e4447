"""``aiogpulock doctor``: what is wrong, what to do, and the exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import redis

from tests.acl import KEYS_AND_CHANNELS, LEAST_PRIVILEGES, PUB_SUB
from tests.edges.shell import Shell, driver_variables
from tests.gpu.conftest import driver_folder as driver_folder
from tests.gpu.conftest import sim as sim
from tests.nvml_sim import Simulation, uuid
from tests.servers import RealServer


def examine(shell: Shell, **environment: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit status, and (level, message) of each check; of several findings of one check the last."""
    done = shell.run("doctor", "--json", env=environment)
    assert done.stderr == ""
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return done.returncode, {finding["check"]: (finding["level"], finding["message"]) for finding in findings}


def test_a_sound_place_is_found_sound(
    shell: Shell, redis_cleanup: redis.Redis, driver_folder: Path, sim: Simulation
) -> None:
    driver = driver_variables(driver_folder, sim)
    status, found = examine(shell, **driver)

    assert status == 0
    assert {check for check, (level, _) in found.items() if level == "ok"} >= {
        *("settings", "crash", "server", "trial", "eviction", "clock", "nvml", "gpu"),
    }
    assert found["gpu"][1] == f"1 Simulated GPU: locked as {uuid(1)} (identity auto)"
    assert re.match(r"(Valkey|Redis) \d.* at unix:.*, named by environment variable REDIS_URL", found["server"][1])
    assert redis_cleanup.keys("*doctor*") == []
    assert redis_cleanup.zrange("{gpu_lock}:index", 0, -1) == []
    shown = shell.run("doctor", env=driver)
    assert re.search(r"^ok +trial +a trial lock was taken in \d+ ms and given back", shown.stdout, re.MULTILINE)


def test_what_threatens_locks_is_told(shell: Shell, own_server: RealServer) -> None:
    with own_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.acl_setuser("gpu", enabled=True, passwords=["+pw"])
        client.execute_command("ACL", "SETUSER", "gpu", *LEAST_PRIVILEGES.split())
        client.set("gpu_lock:7", "locked_by_somebody")
        url = own_server.url.replace("unix://", "unix://gpu:pw@")
        status, found = examine(shell, REDIS_URL=own_server.url)
        assert status == 0
        assert found["eviction"][0] == "warning"
        assert "Set it to noeviction" in found["eviction"][1]
        assert found["nvml"] == (
            "info",
            "gpu_memory.nvml is off: GPUs are locked by their number, no memory is checked",
        )
        assert found["locks"][0] == "warning"
        assert found["locks"][1].endswith("If its program is gone: `aiogpulock release 7`")

        assert examine(shell, REDIS_URL=url)[1]["trial"][0] == "ok"
        client.execute_command("ACL", "SETUSER", "gpu", *(f"-{name}" for name in PUB_SUB))
        status, found = examine(shell, REDIS_URL=url)
        assert status == 0
        assert found["wake-ups"][0] == "warning"
        assert "+subscribe" in found["wake-ups"][1]

        client.execute_command("ACL", "SETUSER", "gpu", *KEYS_AND_CHANNELS.split(), "-evalsha", "-eval")
        status, found = examine(shell, REDIS_URL=url)
        assert status == 1
        assert found["trial"][0] == "problem"
        assert "evalsha" in found["trial"][1]


def test_what_the_log_would_say_is_a_finding(shell: Shell) -> None:
    status, found = examine(shell, AIOGPULOCK_POL_INTERVAL="1")
    assert status == 0
    assert found["log"][0] == "warning"
    assert "did you mean AIOGPULOCK_POLL_INTERVAL?" in found["log"][1]


def test_each_exit_status(shell: Shell) -> None:
    away = {"REDIS_URL": "redis://u:geheim@127.0.0.1:1", "AIOGPULOCK_REDIS_CONNECT_TIMEOUT": "0.2"}
    status, found = examine(shell, **away)
    assert status == 69
    assert found["server"][0] == "problem"
    assert "geheim" not in str(found)

    status, found = examine(shell, AIOGPULOCK_POLL_INTERVAL="soon")
    assert (status, list(found)) == (78, ["settings"])

    status, found = examine(shell, AIOGPULOCK_GPU_MEMORY_NVML="required", LD_LIBRARY_PATH="")
    assert (status, found["nvml"][0]) == (1, "problem")
