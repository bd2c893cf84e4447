"""Finds the device behind a GPU id for one manager, agrees with the host on its key, and remembers both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from aiogpulock import clock
from aiogpulock.errors import LockTimeoutError, RedisUnavailableError
from aiogpulock.gpu.aliases import Aliases
from aiogpulock.gpu.identity import Mode, Visible, means_a_device, resolve
from aiogpulock.gpu.numbering import numbered_as_the_host
from aiogpulock.gpu.nvml import Asked, Nvml
from aiogpulock.gpu.records import Gpu, GpuDevice, NvmlError

logger = logging.getLogger(__name__)

REMEMBER = 3600.0
"""Seconds until an id is resolved anew, which also keeps its alias from expiring. A GPU may be put into MIG mode."""
REMEMBER_TROUBLE = 60.0
"""The same where the driver was not there, or did not answer, for one device or for all: it may come."""
MOST = 1024
"""Ids that are remembered: free names may come and go."""
DRIVER_STARTS = 5.0
"""Seconds that the driver gets to tell its devices, however short the wait for the lock may be: it may have to start,
and a new program that tries once would never get a GPU."""
RETRY = 0.1
"""Seconds between attempts while Redis is away."""


UseNvml: TypeAlias = Literal["auto", "required", "off"]


class Wanted(NamedTuple):
    """What decides which device and key an id means."""

    gpu_id: str
    mode: Mode
    nvml: UseNvml
    visible: Visible


class Listed(NamedTuple):
    """What NVML said, and until when that is believed, by `clock.now`."""

    until: float
    devices: Sequence[GpuDevice] | None
    whole: bool = True
    """They are all that the host has: their indices are the host's."""


class Finder:
    """The devices of one manager. Nobody waits for I/O for a remembered id.

    `connect_timeout`: seconds for which Redis may be away. `connected` answers whether a restart of Redis would be
    noticed: only then is a remembered key trusted, since the aliases may be gone with the data. `later` runs a call
    that nobody waits for.
    """

    SAY_AGAIN: ClassVar[float] = 10.0
    """Seconds of use after which the aliases are said again, beside an acquisition: a FLUSHALL drops no connection."""

    def __init__(
        self,
        nvml: Nvml,
        aliases: Aliases,
        connect_timeout: float,
        connected: Callable[[], bool],
        later: Callable[[str, Callable[[], Awaitable[object]]], None],
    ) -> None:
        self._nvml = nvml
        self._aliases = aliases
        self._connect_timeout = connect_timeout
        self._connected = connected
        self._later = later
        self._said_at = clock.now()
        self._found: dict[Wanted, tuple[float, Gpu]] = {}
        self._listed = Listed(0.0, None)
        self._asked: Asked[tuple[GpuDevice, ...]] | None = None
        """What whoever comes meanwhile waits for, too; and the next one, if all who waited have gone."""
        self._asked_at = 0.0

    async def find(self, gpu_id: str, mode: Mode, nvml: UseNvml, patience: float) -> Gpu:
        """The device and its key. `patience`: seconds to wait where Redis has just restarted; half of it for NVML.

        Raises `InvalidGpuError`, `RedisUnavailableError`, `NvmlError` where NVML is required and not there, and
        `LockTimeoutError` after a restart or where the driver does not answer.
        """
        wanted = Wanted(gpu_id, mode, nvml, Visible.here())
        if clock.now() > self._said_at + self.SAY_AGAIN:
            self._said_at = clock.now()
            self._later("aliases", self.restore)
        until, gpu = self._found.get(wanted, (0.0, None))
        if gpu is None or clock.now() >= until or not self._connected():
            listed = await self._devices(wanted, patience)
            gpu = await self._resolve(wanted, listed, self._aliases.within(patience))
            if len(self._found) >= MOST:
                self.forget()
            self._found[wanted] = listed.until, gpu
        return gpu

    async def look(self, gpu_id: str, mode: Mode, nvml: UseNvml) -> Gpu:
        """The same for somebody who only looks: the first word about a GPU is left to those who lock it."""
        wanted = Wanted(gpu_id, mode, "off" if nvml == "off" else "auto", Visible.here())
        return await _identify(wanted, await self._devices(wanted, float("inf")), self._aliases.reading())

    def forget(self) -> None:
        """Redis may restart without its data."""
        self._found.clear()

    async def restore(self) -> None:
        """Redis may have lost its data: say again what it told before. Raises `RedisUnavailableError`."""
        for name, value in (await self._aliases.restore()).items():
            self.forget()
            logger.error(
                "Redis lost under which keys this host locks its GPUs, and another program has said since that %s is "
                "locked as %s. This program follows; until now the two may have held one GPU together",
                name,
                value,
            )

    async def _devices(self, wanted: Wanted, patience: float) -> Listed:
        """What NVML lists; None: nothing, it is not there, or is not to be asked."""
        if wanted.nvml == "off" or (wanted.nvml == "auto" and not means_a_device(wanted.gpu_id)):
            return Listed(clock.now() + REMEMBER, None)
        if clock.now() >= self._listed.until or (self._listed.devices is None and wanted.nvml == "required"):
            longest = max(patience / 2, DRIVER_STARTS)
            try:
                async with asyncio.timeout(min(longest, REMEMBER)):
                    self._listed = await self._list(wanted.nvml)
            except TimeoutError:
                raise LockTimeoutError(
                    f"GPU_LOCK_TIMEOUT: the NVIDIA driver has not told within {longest:.1f} s which GPUs there are "
                    f"(max_wait_time {patience:g} s)"
                ) from None
        return self._listed

    async def _list(self, use: UseNvml) -> Listed:
        asked = self._asked
        if asked is None or clock.now() > self._asked_at + REMEMBER_TROUBLE:
            self._asked = asked = self._nvml.devices()
            self._asked_at = clock.now()
        try:
            devices = await asked
        except NvmlError as error:
            self._asked = None
            if use == "required":
                raise NvmlError(error.status, f"gpu_lock.gpu_memory.nvml is 'required': {error}", error.code) from None
            _once(
                error.status,
                "GPUs are locked without NVML, and nothing verifies their memory: %s (gpu_memory.nvml: 'off' says "
                "that this is meant, 'required' refuses)",
                error,  # itself: `run` knows by it that there is no driver, and is brief
            )
            return Listed(clock.now() + REMEMBER_TROUBLE, None)
        self._asked = None
        sick = next((device.fault for device in devices if device.fault), None)
        if sick is not None:
            _once(
                "sick",
                "A GPU cannot be read, and until it can, neither it nor a UUID that NVML does not list is locked: %s",
                sick,
            )
        remember = REMEMBER if sick is None else REMEMBER_TROUBLE
        return Listed(clock.now() + remember, devices, numbered_as_the_host(devices))

    async def _resolve(self, wanted: Wanted, listed: Listed, aliases: Aliases) -> Gpu:
        deadline = clock.now() + self._connect_timeout
        while True:
            try:
                return await _identify(wanted, listed, aliases)
            except RedisUnavailableError:  # it may just be restarting, or refuse writes for a moment
                if clock.now() + RETRY > deadline:
                    raise
            await asyncio.sleep(RETRY)


async def _identify(wanted: Wanted, listed: Listed, aliases: Aliases) -> Gpu:
    identity = await resolve(
        wanted.gpu_id,
        mode=wanted.mode,
        devices=listed.devices,
        visible=wanted.visible,
        aliases=aliases,
        whole=listed.whole,
    )
    place = identity.place
    return Gpu(identity.lock_id, place.uuid, place.index, place.name, place.remote)


_noticed: set[str] = set()


def _once(kind: str, text: str, why: object) -> None:
    """One warning of a kind in each process."""
    if kind not in _noticed:
        _noticed.add(kind)
        logger.warning(text, why)
