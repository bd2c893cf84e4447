"""What a server must be, and what it should be, before locks are kept in it."""

from __future__ import annotations

import logging
import re

from aiogpulock.errors import AuthenticationError, ServerTooOldError
from aiogpulock.redis_client import RedisClient

logger = logging.getLogger(__name__)

OLDEST = (7, 0)
"""Redis 7.0: the first whose scripts keep to the caller's permissions and replicate their effects only."""


def parse_info(text: str) -> dict[str, str]:
    """The fields of an INFO reply."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


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
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        logger.warning(
            "Redis at %s has maxmemory-policy %s and may evict live locks. Set it to noeviction", client.where, policy
        )
    if info.get("redis_mode") == "cluster":
        logger.warning(
            "Redis at %s is a cluster node: locks work only while all their slots are on this node", client.where
        )


def check_version(info: dict[str, str], where: str) -> None:
    """Raise `ServerTooOldError` before Redis 7.0. Valkey reports the Redis version that it is compatible with."""
    version = info.get("redis_version", "")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        raise ServerTooOldError(
            f"Redis at {where} has version {version}: 7.0 or newer is needed. Upgrade it, or use Valkey"
        )
