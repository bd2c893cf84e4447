"""What a server must be, and what it should be, before locks are kept in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from aiogpulock.errors import AuthenticationError, ServerTooOldError
from aiogpulock.redis_client import RedisClient

logger = logging.getLogger(__name__)

OLDEST = (7, 0)
"""Redis 7.0: the first whose scripts keep to the caller's permissions and replicate their effects only."""


class Finding(msgspec.Struct, frozen=True):
    """Something about the server or its locks that an operator should know."""

    check: Literal[
        "server", "eviction", "cluster", "replication", "persistence", "clock", "scan", "index", "lock", "quarantine"
    ]
    level: Literal["info", "warning", "critical"]
    message: str


def parse_info(text: str) -> dict[str, str]:
    """The fields of an INFO reply."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


async def restart_grace_left(client: RedisClient, grace: float, clean_run: str) -> float:
    """Seconds until the scripts grant anything on a server that has just started; 0 where nothing was to be lost."""
    try:
        info = parse_info((await client.execute("INFO", "server")).decode("utf-8", "replace"))
    except AuthenticationError:
        return 0.0  # the scripts cannot see a restart either
    if info.get("run_id") == clean_run:
        return 0.0
    up = max(0, int(info.get("uptime_in_seconds", "0")) - 1)  # a difference of whole seconds: up to 1 s too long
    return max(0.0, grace - up)


async def check_server(client: RedisClient) -> None:
    """Raise `ServerTooOldError`, or warn about what can lose locks. Raises what `RedisClient.execute` raises."""
    try:
        info = parse_info((await client.execute("INFO")).decode("utf-8", "replace"))
    except AuthenticationError as error:
        if "info" not in str(error).lower():
            raise
        logger.warning(
            "Redis at %s does not allow INFO to this user: version, eviction policy and restarts of the server "
            "cannot be checked. Add +info to its ACL",
            client.where,
        )
        return
    check_version(info, client.where)
    for finding in server_findings(info, client.where):
        if finding.level != "info":
            logger.warning("%s", finding.message)


def server_findings(info: dict[str, str], where: str) -> list[Finding]:
    """What the server's own report says of how safe locks are there."""
    return [finding for check in _CHECKS for finding in check(info, where)]


def _eviction(info: dict[str, str], where: str) -> Iterator[Finding]:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding(
            "eviction",
            "warning",
            f"Redis at {where} has maxmemory-policy {policy} and may evict live locks. Set it to noeviction",
        )


def _cluster(info: dict[str, str], where: str) -> Iterator[Finding]:
    if info.get("redis_mode") == "cluster":
        text = f"Redis at {where} is a cluster node: locks work only while all their slots are on this node"
        yield Finding("cluster", "warning", text)


def _replication(info: dict[str, str], where: str) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield Finding("replication", "critical", f"Redis at {where} is a replica and refuses writes: name the primary")
    elif info.get("connected_slaves", "0") != "0" and "min_slaves_good_slaves" not in info:
        yield Finding(
            "replication",
            "info",
            f"Redis at {where} confirms writes that no replica has: a failover can lose the last ones. "
            "Set min-replicas-to-write 1 and a small min-replicas-max-lag",
        )


def _persistence(info: dict[str, str], where: str) -> Iterator[Finding]:
    failed = [
        name
        for name in ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status")
        if info.get(name, "ok") != "ok"
    ]
    if failed:
        text = f"Redis at {where} failed to save its data ({', '.join(failed)}) and may refuse writes: look at its disk"
        yield Finding("persistence", "critical", text)
    elif info.get("aof_enabled") == "0":
        yield Finding(
            "persistence",
            "info",
            f"Redis at {where} keeps no append-only file: after a restart holders re-assert their leases, "
            "and queues form anew",
        )


_CHECKS = (_eviction, _cluster, _replication, _persistence)


def check_version(info: dict[str, str], where: str) -> None:
    """Raise `ServerTooOldError` before Redis 7.0. Valkey reports the Redis version that it is compatible with."""
    version = info.get("redis_version", "")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        raise ServerTooOldError(
            f"Redis at {where} has version {version}: 7.0 or newer is needed. Upgrade it, or use Valkey"
        )
