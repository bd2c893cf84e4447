"""What a server must be before locks are kept in it, and what is said of one that may lose them."""

from __future__ import annotations

import pytest

from aiogpulock import GpuLockManager, ServerTooOldError
from aiogpulock.server_check import check_version, parse_info, server_findings
from tests.servers import RealServer


@pytest.mark.parametrize("version", ["6.2.14", "6.9", "2.8.0"])
def test_an_old_server_is_refused_and_told_what_to_do(version: str) -> None:
    with pytest.raises(ServerTooOldError, match=rf"has version {version}: 7.0 or newer is needed. Upgrade"):
        check_version({"redis_version": version}, "here")


@pytest.mark.parametrize("version", ["7.0.0", "7.2.4", "8.0", "10.1.1", "255.255.255", "unknown", ""])
def test_a_new_server_and_one_that_hides_its_version_are_taken(version: str) -> None:
    check_version({"redis_version": version}, "here")


def test_info_is_read_field_by_field() -> None:
    assert parse_info("# Server\r\nredis_version:7.0.1\r\nurl:a:b\r\n\r\n") == {"redis_version": "7.0.1", "url": "a:b"}


async def use(url: str) -> None:
    async with GpuLockManager(url, restart_grace=0) as manager, manager.lock(0):
        pass


async def test_a_plain_server_is_not_warned_of(own_server: RealServer, caplog: pytest.LogCaptureFixture) -> None:
    await use(own_server.url)
    assert caplog.records == []


async def test_a_server_that_may_evict_locks_is_warned_of(
    own_server: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    with own_server.client() as admin:
        admin.config_set("maxmemory-policy", "volatile-lru")
    await use(own_server.url)
    assert "maxmemory-policy volatile-lru and may evict live locks" in caplog.text


async def test_a_user_without_info_is_warned_and_served(
    own_server: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "u", "on", ">secret-pw", "~*", "&*", "+@all", "-info")
    await use(own_server.tcp_url.replace("//", "//u:secret-pw@"))
    assert "Add +info to its ACL" in caplog.text
    assert "secret-pw" not in caplog.text


@pytest.mark.parametrize(
    ("info", "found"),
    [
        ({}, []),
        ({"role": "master", "connected_slaves": "0", "aof_enabled": "1"}, []),
        ({"maxmemory_policy": "allkeys-lru"}, [("eviction", "warning")]),
        ({"redis_mode": "cluster"}, [("cluster", "warning")]),
        ({"role": "slave"}, [("replication", "critical")]),
        ({"role": "master", "connected_slaves": "2"}, [("replication", "info")]),
        ({"role": "master", "connected_slaves": "2", "min_slaves_good_slaves": "2"}, []),
        ({"aof_enabled": "0"}, [("persistence", "info")]),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, [("persistence", "critical")]),
        ({"aof_enabled": "0", "rdb_last_bgsave_status": "err"}, [("persistence", "critical")]),
    ],
)
def test_what_a_server_says_of_itself_is_weighed(info: dict[str, str], found: list[tuple[str, str]]) -> None:
    assert [(finding.check, finding.level) for finding in server_findings(info, "here")] == found


async def test_a_replica_is_found_and_told_of(server: RealServer, own_server: RealServer) -> None:
    with own_server.client() as replica:
        replica.execute_command("REPLICAOF", "127.0.0.1", server.port)
        async with GpuLockManager(own_server.url) as manager:
            report = await manager.health_check()
        replica.execute_command("REPLICAOF", "NO", "ONE")
    assert [finding.check for finding in report.findings if finding.level == "critical"] == ["replication"]
    assert report.status == "unhealthy"
