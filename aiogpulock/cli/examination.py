"""What `doctor` looks at, one function for each matter. A finding says what is wrong and what to do."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, TypeAlias

import msgspec

from aiogpulock.cli.exits import CONFIG, FAILED, UNAVAILABLE
from aiogpulock.cli.options import Target
from aiogpulock.errors import ConfigError, GpuLockError, InvalidGpuError
from aiogpulock.gpu.nvml import shared
from aiogpulock.gpu.records import GpuDevice, NvmlError
from aiogpulock.health import HealthReport
from aiogpulock.keys import lock_keys
from aiogpulock.liveness import this_process
from aiogpulock.manager import GpuLockManager
from aiogpulock.server_check import parse_info

Level: TypeAlias = Literal["ok", "info", "warning", "problem"]

TRIAL_SECONDS = 15.0
"""For the trial lock; a server that has just started grants nothing for `restart_grace`."""


class Diagnosis(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    level: Level
    message: str


async def examine(target: Target) -> list[Diagnosis]:
    """Look at everything that can be looked at; what cannot be reached is a finding too."""
    with _warnings() as warned:
        findings = await _examine(target)
    known = {finding.message for finding in findings}
    return [*findings, *(Diagnosis("log", "warning", text) for text in dict.fromkeys(warned) if text not in known)]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the library warns of meanwhile: findings too, and not to be said twice."""
    logger, warned = logging.getLogger("aiogpulock"), list[str]()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not record.name.startswith("aiogpulock.gpu"):  # which has findings of its own
                warned.append(record.getMessage())

    before, logger.handlers = logger.handlers, [Collect(logging.WARNING)]
    propagate, logger.propagate = logger.propagate, False
    try:
        yield warned
    finally:
        logger.handlers, logger.propagate = before, propagate


async def _examine(target: Target) -> list[Diagnosis]:
    try:
        source = target.source()
        manager = target.manager()
    except ConfigError as error:
        return [Diagnosis("settings", "problem", str(error))]
    changed = f"{len(source.origins)} set, {source.file or 'no file'}"
    findings = [Diagnosis("settings", "ok", changed), *_host()]
    try:
        findings += [finding async for finding in _server(manager)]
    except GpuLockError as error:
        findings.append(Diagnosis("server", "problem", str(error)))
    finally:
        findings += [finding async for finding in _gpus(manager)]
        await manager.close()
    return findings


def status_for(findings: list[Diagnosis]) -> int:
    """The exit status."""
    broken = {finding.check for finding in findings if finding.level == "problem"}
    if "settings" in broken:
        return CONFIG
    if "server" in broken:
        return UNAVAILABLE
    return FAILED if broken else 0


def _host() -> Iterator[Diagnosis]:
    me = this_process()
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        text = "no pidfd here: a crashed holder is noticed at the end of its lease, not at once. Linux 5.3 has it"
        yield Diagnosis("crash", "warning", text)
        return
    if not me.boot or not me.pidns:
        yield Diagnosis(
            "crash", "warning", "/proc does not tell the boot id: crashes are noticed at the end of the lease"
        )
    else:
        text = f"a crashed holder is noticed at once among processes of this pid namespace ({me.pidns}) on {me.host}"
        yield Diagnosis("crash", "ok", text)


# the server


async def _server(manager: GpuLockManager) -> AsyncIterator[Diagnosis]:
    parts = await manager.started()
    link = manager.link
    yield Diagnosis("server", "ok", f"{await _version(manager)} at {manager.server}, {_named(manager)}")
    if link.scope:
        text = f"the embedded server {link.scope}: name a Redis for more hosts, users or containers"
        yield Diagnosis("scope", "info", text)
    async for finding in _trial(manager):
        yield finding
    if not parts.inbox.healthy:
        text = "no wake-ups arrive: waiters poll. Allow +subscribe +unsubscribe +publish on &gpu_lock* to this user"
        yield Diagnosis("wake-ups", "warning", text)
    for finding in _of_health(await manager.health_check()):
        yield finding


def _named(manager: GpuLockManager) -> str:
    return f"named by {manager.link.named_by}" if manager.link.named_by else "embedded, since nothing names another"


async def _version(manager: GpuLockManager) -> str:
    with suppress(GpuLockError):
        info = parse_info((await manager.parts.client.execute("INFO", "server")).decode("utf-8", "replace"))
        own = info.get("valkey_version")
        return f"Valkey {own}" if own else f"Redis {info.get('redis_version', 'of unknown version')}"
    return "a server that does not tell its version"


async def _trial(manager: GpuLockManager) -> AsyncIterator[Diagnosis]:
    """Each script and permission that a lock needs, tried on a lock that nobody else knows."""
    name = f"doctor-{secrets.token_hex(6)}"
    keys, began = lock_keys(name, manager.namespace), time.monotonic()
    try:
        lease = await manager.lock(name, task_name="doctor", max_wait_time=TRIAL_SECONDS).acquire()
        waited = time.monotonic() - began
        await lease.release()
    except GpuLockError as error:
        yield Diagnosis("trial", "problem", f"a trial lock could not be taken: {error}")
        return
    finally:
        with suppress(GpuLockError):  # what is left expires
            await manager.parts.client.execute("DEL", *keys.script_keys)
            await manager.parts.client.execute("ZREM", keys.index, name)
    yield Diagnosis("trial", "ok", f"a trial lock was taken in {waited * 1000:.0f} ms and given back")


def _of_health(health: HealthReport) -> Iterator[Diagnosis]:
    levels: dict[str, Level] = {"info": "info", "warning": "warning", "critical": "problem"}
    for finding in health.findings:
        yield Diagnosis(finding.check, levels[finding.level], finding.message)
    checked = {finding.check for finding in health.findings}
    if health.eviction_policy and "eviction" not in checked:
        yield Diagnosis("eviction", "ok", f"maxmemory-policy is {health.eviction_policy}")
    if health.clock_offset is not None and "clock" not in checked:
        yield Diagnosis(
            "clock", "ok", f"the server's clock differs by {abs(health.clock_offset) * 1000:.0f} ms from ours"
        )
    for zombie in health.zombie_locks:
        text = f"{zombie.key}: {zombie.detail}. The next to ask repairs it, or `aiogpulock monitor`"
        if zombie.kind == "no_expiry":
            text = f"{zombie.key}: {zombie.detail}. If its program is gone: `aiogpulock release {_id(zombie.key)}`"
        yield Diagnosis("locks", "warning", text)
    for lock in health.long_held_locks:
        yield Diagnosis("locks", "info", f"{lock.key} is held for {lock.age:.0f} s, and alive")


def _id(key: str) -> str:
    return key.partition(":")[2]


# the GPUs


async def _gpus(manager: GpuLockManager) -> AsyncIterator[Diagnosis]:
    lock = manager.settings.gpu_lock
    if lock.gpu_memory.nvml == "off":
        yield Diagnosis("nvml", "info", "gpu_memory.nvml is off: GPUs are locked by their number, no memory is checked")
        return
    try:
        devices = await shared().devices()
        driver = await shared().driver_version()
    except NvmlError as error:
        level: Level = "problem" if lock.gpu_memory.nvml == "required" else "warning"
        yield Diagnosis("nvml", level, f"{error}: GPUs are locked by their number, no memory is checked")
        return
    yield Diagnosis("nvml", "ok", f"driver {driver}, {len(devices)} devices")
    for device in devices:
        yield await _gpu(manager, device)


async def _gpu(manager: GpuLockManager, device: GpuDevice) -> Diagnosis:
    name = f"{device.index if device.index is not None else device.uuid} {device.name}"
    if device.fault:
        return Diagnosis("gpu", "problem", f"{name}: {device.fault}")
    if device.index is None or device.mig_enabled:
        return Diagnosis("gpu", "ok", f"{name}: {'MIG is on: lock its MIG devices' if device.mig_enabled else 'MIG'}")
    lock = manager.settings.gpu_lock
    try:
        parts = await manager.started()
        gpu = await parts.finder.look(str(device.index), lock.identity, lock.gpu_memory.nvml)
    except InvalidGpuError as error:
        return Diagnosis("gpu", "problem", f"{name}: {error}")
    except GpuLockError:
        return Diagnosis("gpu", "ok", f"{name}: {device.uuid}")
    return Diagnosis("gpu", "ok", f"{name}: locked as {gpu.id} (identity {lock.identity})")
