"""The health of a server and of all its locks, in one record and in bounded time."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

import msgspec

from aiogpulock import clock
from aiogpulock.census import Census
from aiogpulock.config import Settings
from aiogpulock.errors import AuthenticationError, ProtocolError
from aiogpulock.incidents import ExceptionStats
from aiogpulock.models import LockSnapshot
from aiogpulock.rates import ExceptionRates, RateWindow, Totals
from aiogpulock.redis_client import RedisClient
from aiogpulock.scripts import Scripts
from aiogpulock.server_check import Finding, parse_info, server_findings
from aiogpulock.zombies import Zombie, find_zombies

CLOCK_TOLERANCE = 2.0
"""Seconds by which the server's clock may differ from this host's before it is worth a word."""
SCAN_PAGES, SCAN_SECONDS, SCAN_SHARE = 100, 1.0, 1 / 3
"""Of `census.PAGE` keys each, and of the time there is: a larger keyspace, or one behind a slow line, is looked through
over several checks."""


class LongHeldLock(msgspec.Struct, frozen=True, kw_only=True):
    """A live lock that is held for longer than `timeout_levels.warning`. Nothing is wrong with it by that alone."""

    key: str
    value: str
    age: float
    """Seconds."""


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `GpuLockManager.health_check` answers; it becomes JSON as it is."""

    status: Literal["healthy", "warning", "unhealthy"]
    """unhealthy: Redis does not serve, or something dead keeps a lock; warning: a person should have a look."""
    redis_connected: bool
    server: str | None
    """The server's URL without its password; None: it was never reached."""
    zombie_locks: tuple[Zombie, ...] = ()
    zombie_count: int = 0
    long_held_locks: tuple[LongHeldLock, ...] = ()
    long_held_count: int = 0
    queue_lengths: dict[str, int] = {}
    """Waiters by GPU id; only locks that have any."""
    exception_stats: ExceptionStats | None = None
    """The counters of all processes, since they began."""
    exception_rates: ExceptionRates | None = None
    eviction_policy: str | None = None
    """None: the server did not tell."""
    persistence: Literal["aof", "rdb or none"] | None = None
    clock_offset: float | None = None
    """Seconds by which the server's clock is ahead of this host's."""
    quarantined_gpus: tuple[str, ...] = ()
    """GPU ids."""
    findings: tuple[Finding, ...] = ()
    """What is wrong, or may become so, with what to do about it."""
    scan_complete: bool = False
    """Every key of the namespace was looked at; otherwise the next check goes on from here."""
    timestamp: float
    """Epoch seconds, this host's clock."""
    error: str | None = None
    """Why there is no more in this report."""


class Survey(NamedTuple):
    """One look at everything."""

    report: HealthReport
    locks: tuple[LockSnapshot, ...]
    """All that could be read, as the report was made of them."""


class Health:
    """Looks at everything on one server. `client` is best a pool of its own, so that no queue of commands delays it."""

    def __init__(self, client: RedisClient, scripts: Scripts, namespace: str, window: float) -> None:
        self._client = client
        self._scripts = scripts
        self._census = Census(client, namespace)
        self._window = RateWindow(window)

    async def look(self, settings: Settings, limit: float) -> Survey:
        """`limit`: the seconds that the caller waits. Raises `RedisUnavailableError`, `AuthenticationError`."""
        keys, complete = await self._census.locks(SCAN_PAGES, min(SCAN_SECONDS, SCAN_SHARE * limit))
        found = await self._scripts.snapshots(keys)
        locks = [lock for lock in found if isinstance(lock, LockSnapshot)]
        info, server_ahead = await self._server()
        findings = [
            *(Finding("lock", "critical", str(error)) for error in found if isinstance(error, ProtocolError)),
            *(server_findings(info, self._client.where)),
            *clock_findings(server_ahead, self._client.where),
            *(Finding("quarantine", "warning", f"{lock.key}: {lock.quarantine}") for lock in locks if lock.quarantine),
        ]
        if self._census.index_error:
            findings.append(Finding("index", "critical", self._census.index_error))
        if self._census.scan_refused:
            findings.append(Finding("scan", "info", self._census.scan_refused))
        counters = {lock.key: Totals.of(lock) for lock in locks}
        zombies = [zombie for lock in locks for zombie in find_zombies(lock)]
        long_held = _long_held(locks, settings.gpu_lock_monitor.timeout_levels.warning)
        report = HealthReport(
            status=_status(zombies, long_held, findings),
            redis_connected=True,
            server=self._client.where,
            zombie_locks=tuple(zombies),
            zombie_count=len(zombies),
            long_held_locks=tuple(long_held),
            long_held_count=len(long_held),
            queue_lengths={lock.gpu_id: lock.waiters for lock in locks if lock.waiters},
            exception_stats=Totals.sum(counters.values()).exception_stats,
            exception_rates=self._window.rates(clock.now(), counters),
            eviction_policy=info.get("maxmemory_policy"),
            persistence=None if "aof_enabled" not in info else "aof" if info["aof_enabled"] == "1" else "rdb or none",
            clock_offset=server_ahead,
            quarantined_gpus=tuple(lock.gpu_id for lock in locks if lock.quarantine),
            findings=tuple(findings),
            scan_complete=complete,
            timestamp=time.time(),
        )
        return Survey(report, tuple(locks))

    async def _server(self) -> tuple[dict[str, str], float]:
        """What the server says of itself, if this user may ask, and by how much its clock is ahead, in seconds."""
        try:
            info = parse_info((await self._client.execute("INFO")).decode("utf-8", "replace"))
        except AuthenticationError:
            info = {}
        before = time.time()
        seconds, micros = await self._client.execute("TIME")
        return info, int(seconds) + int(micros) / 1_000_000 - (before + time.time()) / 2


def unreachable(server: str | None, error: str) -> Survey:
    """What can be told of a server that does not answer."""
    report = HealthReport(status="unhealthy", redis_connected=False, server=server, timestamp=time.time(), error=error)
    return Survey(report, ())


def _long_held(locks: list[LockSnapshot], limit: float) -> list[LongHeldLock]:
    return [
        LongHeldLock(key=lock.key, value=lock.value, age=lock.age)
        for lock in locks
        if lock.value is not None and lock.phase != "granted" and lock.age is not None and lock.age >= limit
    ]


def clock_findings(ahead: float, where: str) -> list[Finding]:
    """What is wrong with a server's clock that is `ahead` of this host's, in seconds."""
    if abs(ahead) <= CLOCK_TOLERANCE:
        return []
    text = (
        f"the clock of Redis at {where} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host's. "
        "Leases run on the server's clock: a correction that jumps ends or prolongs them. Let NTP slew it"
    )
    return [Finding("clock", "warning", text)]


def _status(
    zombies: list[Zombie], long_held: list[LongHeldLock], findings: list[Finding]
) -> Literal["healthy", "warning", "unhealthy"]:
    holds = any(zombie.kind != "dead_waiters" for zombie in zombies)
    if holds or any(finding.level == "critical" for finding in findings):
        return "unhealthy"
    return "warning" if zombies or long_held or any(f.level == "warning" for f in findings) else "healthy"
