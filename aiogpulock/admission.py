"""From a wish to a hold that may begin: the acquisition, and what is asked of the GPU before the body.

While the GPU is looked at, the lock is held and its heartbeat goes on; who is refused hands it on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from msgspec import structs

from aiogpulock import clock
from aiogpulock.acquisition import Acquisition, Wish
from aiogpulock.caretaker import STRICT
from aiogpulock.config import GpuMemorySettings
from aiogpulock.errors import ConfigError, DeviceBusyError, DeviceQuarantinedError, GpuLockError
from aiogpulock.foreign import family, named
from aiogpulock.gpu.finder import DRIVER_STARTS
from aiogpulock.gpu.memory import PASSES
from aiogpulock.gpu.nvml import Nvml
from aiogpulock.gpu.obstacles import Demands, Kind, Obstacle, gib, names_others, obstacles
from aiogpulock.gpu.quarantine import still_theirs
from aiogpulock.gpu.records import Gpu, MemoryReading, NvmlError
from aiogpulock.gpu.verify import Pauses
from aiogpulock.lease import Hold
from aiogpulock.leaving import leave, reason_for
from aiogpulock.models import Quarantine, quarantines_of

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager

logger = logging.getLogger(__name__)

LOOK_AT_LEAST, LOOK_AT_MOST = 0.5, 60.0
"""Seconds for one look, beside what is left of the wait: it takes milliseconds, and a second one may come later. The
driver itself gives up sooner than the most."""

_blind: set[tuple[str, Literal["look", "others"]]] = set()
"""Locks that this process holds without a look, or without telling others' memory from its own, and has said so."""


async def admitted(manager: GpuLockManager, wish: Wish, begun: float) -> Hold:
    """Acquire, with the GPU's memory looked after. `begun`: when the wait began, by `clock.now`.

    What the driver takes before the queue counts for half of `max_wait_time` at most: the rest is for the queue.

    Raises `ConfigError` for a `require_free` of more than the card has, and what `Acquisition.run` raises; after that
    `DeviceBusyError`, `DeviceQuarantinedError`, `LeaseLostError`,
    `NvmlError` where NVML is required.
    """
    caretaker, memory = manager.caretaker, wish.settings.gpu_memory
    longest = wish.settings.max_wait_time
    patience = float("inf") if longest is None else longest
    await _check_card(manager, wish.gpu, memory, begun + patience / 2)
    begun = max(begun, clock.now() - patience / 2)
    caretaker.expect(wish.gpu, memory)
    hold = await Acquisition(manager, wish, begun).run()
    try:
        if not _is_checked(hold, memory):
            caretaker.begin(hold, memory)
            return hold
        await Admission(manager, hold, memory, max(0.0, begun + patience - clock.now())).run()
        with suppress(TimeoutError):  # the driver hangs: the verdict will be that nobody could tell
            async with look_within(manager.caretaker.nvml, begun + patience):
                await caretaker.begin_with_a_look(hold, memory)
    except BaseException as error:
        await leave(manager, hold, reason_for(error))
        raise
    return hold


def _is_checked(hold: Hold, memory: GpuMemorySettings) -> bool:
    """Whether the body waits for a look. After a crash it always does: the dead cannot verify."""
    asked = memory.policy in STRICT or memory.require_free is not None or memory.on_busy in ("wait", "raise")
    return asked or hold.grant.dirty or bool(hold.grant.quarantine)


def look_within(nvml: Nvml, deadline: float) -> asyncio.Timeout:
    """Raises TimeoutError at the `deadline` of the whole wait, by `clock.now`; a look gets its moment in any case."""
    least = LOOK_AT_LEAST if nvml.is_running else DRIVER_STARTS
    return asyncio.timeout(min(max(deadline - clock.now(), least), LOOK_AT_MOST))


async def _check_card(manager: GpuLockManager, gpu: Gpu, memory: GpuMemorySettings, deadline: float) -> None:
    """Nobody queues for more memory than the card has. Who has no answer by then is refused by the admission."""
    if memory.require_free is None or gpu.uuid is None or gpu.remote or memory.nvml == "off":
        return
    with suppress(NvmlError, TimeoutError):
        async with asyncio.timeout(min(deadline - clock.now(), LOOK_AT_MOST)):
            total = await manager.caretaker.nvml.total(gpu.uuid)
        _check_size(memory.require_free_bytes, gpu.uuid, total)


def _check_size(required: int | None, uuid: str, total: int) -> None:
    if required is not None and required > total:
        raise ConfigError(
            f"gpu_lock.gpu_memory.require_free: {gib(required)} are more than the whole GPU has ({gib(total)}, {uuid})"
        )


class Admission:
    """Looks at the GPU until it is as the holder demands it. `left`: seconds of `max_wait_time` that are left."""

    def __init__(self, manager: GpuLockManager, hold: Hold, memory: GpuMemorySettings, left: float) -> None:
        self._manager = manager
        self._hold = hold
        self._memory = memory
        self._left = left
        self._settle = min(memory.settle_time, left)
        self._dirty = hold.grant.dirty
        self._line, self._quarantine = self._told()
        self._trouble: NvmlError | None = None
        self._waived, self._told_of = set[Kind](), set[Kind]()
        pids = manager.caretaker.pids()
        self._demands = Demands(
            tolerance=memory.tolerance_bytes,
            context=memory.context_bytes,
            pids=pids,
            require_free=memory.require_free_bytes,
            idle=memory.on_busy in ("wait", "raise") or (self._dirty and memory.on_busy == "warn"),
            drained=self._dirty,
            quarantine=self._quarantine,
            quarantined_pids=still_theirs(self._quarantine)
            if self._quarantine is not None and pids is not None
            else None,
        )

    async def run(self) -> None:
        """Return when the body may begin."""
        uuid = self._hold.gpu.uuid
        if self._memory.on_quarantine == "raise" and self._quarantine is not None:
            raise self._refusal(Obstacle("quarantined", self._quarantine.reason))
        if not self._demands.kinds:
            return
        if uuid is None or self._hold.gpu.remote or self._memory.nvml == "off":
            self._cannot_look("NVML is not there, is not to be asked, or does not know the device")
            return
        try:
            await self._until_clear(uuid)
        except NvmlError as error:
            if self._memory.nvml == "required":
                raise
            self._cannot_look(str(error))
            return
        if self._quarantine is not None:
            await self._lift()

    async def _until_clear(self, uuid: str) -> None:
        """Return when nothing stands in the way, or what does is not worth a refusal.

        Raises `NvmlError` where nobody can ever look. Any other error may pass: it is an obstacle like others, and
        clears none that was seen.
        """
        begun, clear, pauses = clock.now(), 0, Pauses()
        needed = PASSES if self._dirty or self._quarantine else 1
        found: list[Obstacle] | None = None
        while True:
            if self._hold.lost_reason is not None:
                raise self._hold.loss()
            try:
                found = await self._look_within(uuid, begun + self._longest())
            except NvmlError as error:
                if found is None and error.lasts:
                    raise
                found = self._without_an_answer(found or [], error)
            standing = [one for one in found if one.kind not in self._waived]
            clear = 0 if standing else clear + 1
            if clear >= needed:
                self._hold.dirty = False
                return
            self._weigh(standing, clock.now() - begun)
            if "unreadable" in self._waived:  # nobody has looked to the end: a dirty grant stays dirty
                return
            await pauses.next()

    def _weigh(self, standing: Sequence[Obstacle], waited: float) -> None:
        """Give up on what has stood for too long, and say once what else is waited for beyond the usual."""
        for obstacle in standing:
            if waited >= self._patience(obstacle.kind):
                self._give_up(obstacle)
                self._waived.add(obstacle.kind)
            elif waited >= self._memory.settle_time and obstacle.kind not in self._told_of:
                self._told_of.add(obstacle.kind)
                logger.warning("%s is held and waits: %s", self._hold.keys.lock, self._text(obstacle))

    def _without_an_answer(self, found: list[Obstacle], error: NvmlError) -> list[Obstacle]:
        self._trouble = error
        seen = (one for one in found if one.kind != "unreadable")
        return [*seen, Obstacle("unreadable", f"its memory cannot be read: {error}")]

    async def _look_within(self, uuid: str, deadline: float) -> list[Obstacle]:
        try:
            async with look_within(self._manager.caretaker.nvml, deadline):
                return await self._look(uuid)
        except TimeoutError:
            raise NvmlError("timeout", "NVML: no memory reading within the time that was left") from None

    async def _look(self, uuid: str) -> list[Obstacle]:
        reading = await self._manager.caretaker.nvml.read(uuid)
        _check_size(self._memory.require_free_bytes, uuid, reading.total)
        demands = structs.replace(self._demands, pids=family(self._demands.pids, reading))
        if self._memory.on_busy in ("wait", "raise") and not names_others(reading, demands):
            self._cannot_tell_others(reading)
        return obstacles(reading, demands)

    def _cannot_tell_others(self, reading: MemoryReading) -> None:
        """Nobody counts as foreign, and nobody is refused for that: a container may hold what is in use itself."""
        lock = self._hold.keys.lock
        if (lock, "others") not in _blind:
            _blind.add((lock, "others"))
            logger.warning(
                "%s is held without knowing whether others use the GPU (not checked: on_busy): NVML does not tell here "
                "whose the %s in use are, as in a container with pids of its own, or under MPS",
                lock,
                gib(reading.used),
            )

    def _patience(self, kind: Kind) -> float:
        """Seconds for which an obstacle may stand. Memory takes its time to come back, whoever had it."""
        if kind == "unreadable":  # whatever it hides
            return self._longest()
        if kind == "draining":  # whatever is left of `max_wait_time`: the wait for the dead may have used it up
            return self._memory.settle_time
        waits = self._memory.on_quarantine if kind == "quarantined" else self._memory.on_busy
        return self._left if waits == "wait" else self._settle

    def _longest(self) -> float:
        return max(map(self._patience, self._demands.kinds))

    def _refuses(self, kind: Kind) -> bool:
        if kind == "unreadable":
            return any(map(self._refuses, self._demands.kinds))
        return kind in ("quarantined", "short") or (kind == "busy" and self._memory.on_busy in ("wait", "raise"))

    def _give_up(self, obstacle: Obstacle) -> None:
        """Refuse, or go on with a warning."""
        if obstacle.kind == "unreadable" and self._memory.nvml == "required" and self._trouble is not None:
            raise self._trouble
        if self._refuses(obstacle.kind):
            raise self._refusal(obstacle)
        logger.warning("%s: %s", self._hold.keys.lock, self._text(obstacle))

    def _refusal(self, obstacle: Obstacle) -> GpuLockError:
        if obstacle.kind == "unreadable" and self._quarantine is not None:
            reason = f"{self._quarantine.reason}; nobody can look whether that has changed: {obstacle.text}"
            obstacle = Obstacle("quarantined", reason)
        text = f"{self._hold.keys.lock} was handed on: {self._text(obstacle)}"
        if obstacle.kind == "quarantined":
            text = f"{text}. The first holder that finds the memory back lifts it; so does lift_quarantine()"
            return DeviceQuarantinedError(text, obstacle.text)
        return DeviceBusyError(text, named(obstacle.foreign))

    def _text(self, obstacle: Obstacle) -> str:
        gpu = self._hold.gpu
        processes = ", ".join(map(str, named(obstacle.foreign)))
        said = f"the GPU is quarantined: {obstacle.text}" if obstacle.kind == "quarantined" else obstacle.text
        return f"{gpu.name or 'GPU'} {gpu.uuid or gpu.id}: {said}{f': {processes}' if processes else ''}"

    def _cannot_look(self, why: str) -> None:
        """Nobody is refused for that, but where a former holder has said that something is wrong."""
        if self._quarantine is not None:
            raise self._refusal(Obstacle("unreadable", why))
        lock, gpu = self._hold.keys.lock, self._hold.gpu
        names_a_device = gpu.uuid is not None or gpu.index is not None
        meant = self._memory.nvml == "off"  # whoever set it knows
        level = logging.WARNING if names_a_device and not meant and (lock, "look") not in _blind else logging.DEBUG
        _blind.add((lock, "look"))
        logger.log(level, "%s is held without a look at the GPU%s: %s", lock, self._unchecked(), why)

    def _unchecked(self) -> str:
        words: dict[Kind, str] = {
            "draining": "what a holder that died may have left",
            "short": "require_free",
            "busy": "on_busy",
        }
        asked = [words[kind] for kind in self._demands.kinds if kind in words]
        return f" (not checked: {', '.join(asked)})" if asked else ""

    # quarantine

    def _told(self) -> tuple[str, Quarantine | None]:
        """The quarantine of this device, and the line that says so. Where hosts share a lock, others' are there too."""
        uuid = self._hold.gpu.uuid
        for line, quarantine in quarantines_of(self._hold.grant.quarantine).items():
            if quarantine is None:
                text = f"{self._hold.keys.lock} is quarantined by another version: {line}"
                raise DeviceQuarantinedError(text, line)
            if uuid in (None, quarantine.uuid):
                return line, quarantine
        return "", None

    async def _lift(self) -> None:
        hold, manager = self._hold, self._manager
        try:
            if await manager.scripts.lift(hold.keys, self._line, "memory is back", manager.actor):
                logger.warning("%s: the memory is back, the quarantine is lifted", hold.keys.lock)
        except GpuLockError as error:
            logger.warning("%s: the memory is back, and the quarantine stays for now: %s", hold.keys.lock, error)
