"""A held lock: the hold that the heartbeat keeps alive, and the lease that the user has in hand."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, NamedTuple

from aiogpulock import clock
from aiogpulock.config import GpuMemorySettings
from aiogpulock.errors import LeaseLostError
from aiogpulock.gpu.records import Gpu
from aiogpulock.gpu.report import MemoryReport
from aiogpulock.keys import LockKeys
from aiogpulock.owners import AROUND, WITHIN
from aiogpulock.replies import Held, Released
from aiogpulock.scripts import LeaseTerms, Terms

logger = logging.getLogger(__name__)

State = Literal["held", "releasing", "released", "lost"]


class HoldTerms(NamedTuple):
    """What a hold goes by while it lasts. Seconds where not ms."""

    script: Terms
    lease: LeaseTerms
    local_lease: float
    """Seconds from the send of a confirmed beat until the holder gives up: the lease less a margin."""
    heartbeat: bool
    interval: float
    max_stall: float

    @property
    def margin(self) -> float:
        return self.lease.lease_ms / 1000 - self.local_lease


class Hold:
    """One held lock, shared by the event loop and the guard thread.

    Its deadline moves forward, and its state changes, under one thread lock only. Once it is not "held", nothing
    extends it: a beat that lands after the release began is void.
    """

    def __init__(
        self,
        keys: LockKeys,
        gpu: Gpu,
        holder_id: str,
        grant: Held,
        *,
        terms: HoldTerms,
        identity: tuple[str, str, bytes, int],
        owner: object,
        sent_at: float,
    ) -> None:
        self.keys = keys
        self.gpu = gpu
        self.id = holder_id
        self.grant = grant
        self.token = grant.token
        self.terms = terms
        self.inbox, self.task_name, self.process, self.arrival_us = identity
        self.owner = owner
        """The task or thread that acquired it."""
        self.acquired_at = clock.now()
        self.beat_at = sent_at
        """When the last confirmed beat was sent, by `clock.now`."""
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.lost_reason: str | None = None
        self.memory_report: MemoryReport | None = None
        self.memory: GpuMemorySettings | None = None
        """How the memory of this hold is looked after."""
        self.dirty = grant.dirty
        """Whether the GPU may still be in use from before, so that the next holder must look before it starts."""
        self.quarantine = ""
        """What the release is to tell the next holders of the GPU, as a `Quarantine` in JSON."""
        self.leaving: asyncio.Future[Released | None] | None = None
        """While its end is under way: what Redis will have said."""
        self.revocation = ""
        """The reason that a message gave for a revocation, until a beat confirms it."""
        self._state: State = "held"
        self._mutex = threading.Lock()
        self._listeners: list[Callable[[str], None]] = []
        self._deadline = sent_at + terms.local_lease

    @property
    def state(self) -> State:
        return self._state

    @property
    def deadline(self) -> float:
        """Local time after which the lease counts as lost, by `clock.now`."""
        return self._deadline

    @property
    def ends_at(self) -> float:
        """Local time at which Redis may grant the lock to another."""
        return self._deadline + self.terms.margin

    @property
    def overdue(self) -> bool:
        return self._state == "held" and clock.now() >= self._deadline

    def confirm(self, sent_at: float) -> None:
        """A beat that was sent at that time renewed the lease."""
        with self._mutex:
            if self._state == "held":
                self.beat_at = max(self.beat_at, sent_at)
                self._deadline = max(self._deadline, sent_at + self.terms.local_lease)

    def lose(self, reason: str) -> bool:
        """The lease is gone. Tells the loop, from whatever thread; answers whether this call lost it."""
        with self._mutex:
            if self._state != "held":
                return False
            self._state, self.lost_reason = "lost", reason
        if threading.get_ident() == self._thread:
            self._tell_lost()
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self.loop.call_soon_threadsafe(self._tell_lost)
        return True

    def when_lost(self, listener: Callable[[str], None]) -> None:
        """Call `listener(reason)` on the event loop when the lease is lost; at once if it is."""
        self._listeners.append(listener)
        if self.lost_reason is not None:
            listener(self.lost_reason)

    def _tell_lost(self) -> None:
        for listener in self._listeners:
            try:
                listener(self.lost_reason or "")
            except Exception:
                logger.exception("a listener failed at the loss of %s", self.keys.lock)

    def begin_release(self) -> bool:
        """Enter "releasing"; answers whether the lease was still held."""
        with self._mutex:
            if self._state != "held":
                return False
            self._state = "releasing"
            return True

    def end_release(self) -> None:
        with self._mutex:
            self._state = "released"

    def reassertion(self) -> tuple[str, str, bytes, int, int]:
        """What ``reassert.lua`` needs beside id and token."""
        held_ms = int((clock.now() - self.acquired_at) * 1000)
        return self.inbox, self.task_name, self.process, self.arrival_us, held_ms

    def loss(self, reason: str | None = None) -> LeaseLostError:
        reason = self.lost_reason or reason or "not_owner"
        return LeaseLostError(
            f"the lease on {self.keys.lock} of {self.task_name!r} is lost ({reason}, fencing token {self.token}): "
            "another holder may be at work. Stop using the GPU and acquire again",
            reason=reason,
            fencing_token=self.token,
        )


class Loss:
    """Whether a lease is lost."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        """True once the lease is lost, or its local deadline has passed. Safe from any thread."""
        return self._hold.lost_reason is not None or self._hold.overdue

    async def wait(self) -> None:
        """Return when the lease is lost. On the event loop that acquired it only."""
        if self._event is None:
            event = self._event = asyncio.Event()
            self._hold.when_lost(lambda _: event.set())
        await self._event.wait()


class Lease:
    """The time-limited right to use one GPU.

    Mutual exclusion holds between live holders that can reach Redis once per lease. Compare `fencing_token` wherever a
    stale holder could write: a later holder's token is always larger.
    """

    def __init__(
        self, hold: Hold, release: Callable[[Hold, str], Awaitable[None]], leak: Callable[[Hold], None]
    ) -> None:
        self._hold = hold
        self._release = release
        self.lost = Loss(hold)
        self._finalizer = weakref.finalize(self, _leaked, hold, leak)
        self._finalizer.atexit = False

    @property
    def gpu(self) -> Gpu:
        """The device: the id that it is locked by, and UUID, index and model as far as NVML tells them."""
        return self._hold.gpu

    @property
    def key(self) -> str:
        """The lock's key in Redis."""
        return self._hold.keys.lock

    @property
    def task_name(self) -> str:
        return self._hold.task_name

    @property
    def holder_id(self) -> str:
        """Random, one per acquisition."""
        return self._hold.id

    @property
    def fencing_token(self) -> int:
        """Larger than every token of this lock before."""
        return self._hold.token

    @property
    def acquired_at(self) -> float:
        """Seconds on the machine's clock that counts suspend (CLOCK_BOOTTIME)."""
        return self._hold.acquired_at

    @property
    def deadline(self) -> float:
        """When the lease counts as lost unless a beat is confirmed before, on the clock of `acquired_at`.

        It comes `margin` seconds before the deadline that Redis goes by: time for what must end with the lease.
        """
        return self._hold.deadline

    @property
    def margin(self) -> float:
        """Seconds between `deadline` and the moment when Redis may grant the lock to another."""
        return self._hold.terms.margin

    @property
    def memory_report(self) -> MemoryReport | None:
        """What became of the GPU's memory after the release; None until that is known, and under policy ``off``.

        Under ``report`` it comes after the release: some ms, or up to `gpu_memory.settle_time`.
        """
        return self._hold.memory_report

    @property
    def lost_reason(self) -> str | None:
        """Why the lease was lost; None while it is not."""
        if self._hold.overdue:
            return "lease_expired"
        return self._hold.lost_reason

    def check(self) -> None:
        """Raise `LeaseLostError` if the lease is lost. Costs no I/O; safe from any thread."""
        if self.lost.is_set():
            raise self._hold.loss("lease_expired")

    def env(self) -> dict[str, str]:
        """Environment variables for a child process: they show it this GPU alone, and tell it the fencing token.

        They tell it too that it works under this lease: where it asks for the same GPU it gets `NestedLockError`. A
        child that nobody here waits for can queue instead: leave out ``AIOGPULOCK_WITHIN``.

        CUDA_VISIBLE_DEVICES is the UUID where NVML is there, else the index. Add them to ``os.environ``. They have no
        effect within a process that has begun to use CUDA.
        """
        told = {"AIOGPULOCK_GPU": self.gpu.id, "AIOGPULOCK_TOKEN": str(self.fencing_token)}
        return told | {WITHIN: " ".join((*AROUND, self.holder_id))} | self.gpu.env()

    async def release(self, reason: str = "normal") -> None:
        """Release and hand off. Raises `LeaseLostError` if the lease was lost before.

        A second call does nothing. Failures of Redis raise nothing: they are counted, reported and logged.
        """
        self._finalizer.detach()
        await self._release(self._hold, reason)

    def __repr__(self) -> str:
        return f"<Lease {self.key} task={self.task_name!r} token={self.fencing_token} {self._hold.state}>"


def _leaked(hold: Hold, leak: Callable[[Hold], None]) -> None:
    state = hold.state
    if state != "released":
        leak(hold)  # first: where warnings are errors, the warning ends this call
    if state == "held":
        warnings.warn(
            f"a lease on {hold.keys.lock} of {hold.task_name!r} was never released; it is released now",
            ResourceWarning,
            stacklevel=2,
        )
