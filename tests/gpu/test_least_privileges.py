"""The Redis user that docs/deploy.md describes may do all that the lock does beside a GPU, and is refused nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiogpulock import DeviceQuarantinedError, GpuLockManager, GpuLockMonitor
from tests.acl import LEAST_PRIVILEGES, MONITORS
from tests.nvml_sim import GiB, Simulation, uuid
from tests.servers import RealServer

DEPLOY = Path(__file__).parents[2] / "docs/deploy.md"


def test_the_documentation_quotes_the_rule() -> None:
    text = " ".join(DEPLOY.read_text("utf-8").split())
    assert f"``` ACL SETUSER gpu on >password {LEAST_PRIVILEGES} ```" in text
    assert f"`{MONITORS}`" in text


async def test_that_user_may_do_all_that_is_done_beside_a_gpu(own_server: RealServer, sim: Simulation) -> None:
    with own_server.client() as admin:
        rules = f"{LEAST_PRIVILEGES} {MONITORS}".split()
        admin.execute_command("ACL", "SETUSER", "gpu", "reset", "on", ">pw", *rules)
        admin.acl_log_reset()
        url = own_server.url.replace("unix://", "unix://gpu:pw@")
        async with GpuLockManager(url, gpu_memory={"nvml": "auto", "settle_time": 0.1}, restart_grace=0) as manager:
            monitor = GpuLockMonitor(manager)
            async with manager.lock(0, gpu_memory={"policy": "quarantine"}):
                sim.use(0, GiB)
            with pytest.raises(DeviceQuarantinedError):
                await manager.lock(0).acquire()
            assert await manager.lift_quarantine("GPU-a0000000")
            async with manager.lock(uuid(0), gpu_memory={"require_free": "1GiB"}):
                assert not (await monitor.round()).error
            await manager.parts.finder.restore()
            assert {event.event for event in await manager.history(0)} >= {"memory", "lifted"}
            assert (await manager.health_check()).redis_connected
            without_driver = GpuLockManager(url, gpu_memory={"nvml": "off"}, restart_grace=0)
            async with without_driver, without_driver.lock("GPU-a0000000") as lease:
                assert lease.gpu.id == uuid(0)
            await monitor.close()
        assert [entry["object"] for entry in admin.acl_log()] == []
