"""What the page shows, as records: one view of all locks, made of snapshots, histories and NVML's readings.

All times are epoch seconds of the Redis server, and none tells when the view was made: two views of the same state are
equal, and only a change is sent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import filterfalse, islice
from typing import Literal

import msgspec

from aiogpulock.history import typical_hold
from aiogpulock.models import HistoryEvent, LockSnapshot, WaiterSnapshot
from aiogpulock.sight import Sight
from aiogpulock.zombies import find_zombies, in_line

EVENTS, NOTABLE = 30, 10
"""How many events the page gets; so many of them may be older ones that are no ordinary end of a hold."""
HOLDS, LEAST_HOLDS = 300, 20
"""How many of the last holds the page gets, and how many of each lock, however many locks there are."""

State = Literal["free", "granted", "held", "draining", "foreign", "unreadable"]


class Device(msgspec.Struct, frozen=True):
    """A GPU of this host and its memory, in bytes; `fault` says why there is no figure."""

    uuid: str
    index: int | None
    name: str
    used: int | None = None
    total: int | None = None
    fault: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The ids that mean it on this host."""
        return (str(self.index), self.uuid) if self.index is not None else (self.uuid,)


class Seat(msgspec.Struct, frozen=True):
    """One waiter; its place in the list is its position."""

    id: str
    task: str
    host: str
    pid: int
    user: str
    since: float
    deaf: bool
    """It is passed over: nobody would hear of its grant."""


class Holder(msgspec.Struct, frozen=True):
    """Who has the lock. A foreign value has no more than its text."""

    id: str
    task: str
    host: str = ""
    pid: int = 0
    user: str = ""
    token: str = ""
    """As text: JavaScript's numbers end at 2^53."""
    since: float | None = None
    deadline: float | None = None


class Gpu(msgspec.Struct, frozen=True):
    """One lock, or a GPU of this host that nobody has locked yet."""

    id: str
    state: State
    holder: Holder | None = None
    waiters: int = 0
    queue: tuple[Seat, ...] = ()
    typical_hold: float | None = None
    device: Device | None = None
    note: str = ""
    """What is wrong with it: dead, quarantined, or not to be read."""


class HoldPoint(msgspec.Struct, frozen=True, array_like=True):
    """One hold that ended, for the charts."""

    at: float
    gpu: str
    wait: float
    hold: float
    event: str
    task: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The page's whole content."""

    version: str
    can_release: bool
    server: str = ""
    namespace: str = ""
    nvml: str = ""
    """Why NVML tells nothing; empty if it does."""
    error: str = ""
    """Why the rest may be old; empty: it is not."""
    unread: str = ""
    """Why the history of a lock is not shown; empty: all are."""
    gpus: tuple[Gpu, ...] = ()
    events: tuple[HistoryEvent, ...] = ()
    holds: tuple[HoldPoint, ...] = ()


def gpus_of(
    sight: Sight, histories: Mapping[str, Sequence[HistoryEvent]], devices: Sequence[Device]
) -> tuple[Gpu, ...]:
    """Each lock with the device that it means on this host; then the devices that nobody has locked."""
    named = {name: device for device in devices for name in device.names}
    shown = [_gpu(lock, histories.get(lock.gpu_id, ()), named.get(lock.gpu_id)) for lock in sight.locks]
    shown += [Gpu(gpu_id, "unreadable", note=reason) for gpu_id, reason in sight.unreadable.items()]
    locked = {gpu.device for gpu in shown}
    unused = [Gpu(device.names[0], "free", device=device) for device in devices if device not in locked]
    return tuple(sorted(shown + unused, key=_place))


def recent_events(histories: Mapping[str, Sequence[HistoryEvent]]) -> tuple[HistoryEvent, ...]:
    """Newest first. A busy lock pushes nothing out that somebody must see."""
    every = histories.values()
    notable = _newest((e for events in every for e in islice(filterfalse(_ordinary, events), NOTABLE)), NOTABLE)
    rest = (e for events in every for e in events[:EVENTS] if e not in notable)
    return tuple(_newest([*notable, *_newest(rest, EVENTS - len(notable))], EVENTS))


def _newest(events: Iterable[HistoryEvent], most: int) -> list[HistoryEvent]:
    return sorted(events, key=lambda event: event.at, reverse=True)[:most]


def _ordinary(event: HistoryEvent) -> bool:
    if event.event == "memory":
        return event.details.get("status") != "not_freed"
    return event.event in ("released", "withdrawn")


def hold_points(histories: Mapping[str, Sequence[HistoryEvent]]) -> tuple[HoldPoint, ...]:
    """Oldest first. Each lock has its share: the page also shows one alone."""
    share = max(LEAST_HOLDS, HOLDS // max(1, len(histories)))
    points = [point for events in histories.values() for point in islice(_points(events), share)]
    return tuple(sorted(points, key=lambda point: point.at))


def _points(events: Sequence[HistoryEvent]) -> Iterator[HoldPoint]:
    for event in events:
        if event.fencing_token and event.event in ("released", "reaped", "forced"):
            yield HoldPoint(event.at, event.gpu_id, event.wait, event.hold, event.event, event.task_name)


def _place(gpu: Gpu) -> tuple[bool, int, str]:
    """What needs attention; then GPUs by their number on this host, then everything else by name."""
    number = gpu.device.index if gpu.device else None
    if number is None and gpu.id.isdecimal():
        number = int(gpu.id)
    return (not gpu.note, number if number is not None else sys.maxsize, gpu.id)


def _gpu(lock: LockSnapshot, events: Sequence[HistoryEvent], device: Device | None) -> Gpu:
    heard = {waiter.waiter_id for waiter in in_line(lock)}
    seats = [waiter for waiter in lock.queue if waiter.waiter_id != lock.holder_id]
    return Gpu(
        id=lock.gpu_id,
        state=_state(lock),
        holder=_holder(lock),
        waiters=lock.waiters,
        queue=tuple(_seat(waiter, deaf=waiter.waiter_id not in heard) for waiter in seats),
        typical_hold=typical_hold(events),
        device=device,
        note=" · ".join(_troubles(lock)),
    )


def _troubles(lock: LockSnapshot) -> Iterator[str]:
    for zombie in find_zombies(lock):
        yield zombie.detail
    if lock.quarantine is not None:
        yield f"quarantined: {lock.quarantine}"


def _state(lock: LockSnapshot) -> State:
    if lock.foreign:
        return "foreign"
    if lock.holder_id is None:
        return "free"
    return "granted" if lock.phase == "granted" else "draining" if lock.phase == "draining" else "held"


def _holder(lock: LockSnapshot) -> Holder | None:
    if lock.foreign:
        return Holder(lock.value or "", lock.value or "")
    if lock.holder_id is None:
        return None
    return Holder(
        lock.holder_id,
        lock.task_name or "",
        lock.host or "",
        lock.pid or 0,
        lock.user or "",
        str(lock.fencing_token or ""),
        None if lock.age is None else round(lock.at - lock.age, 3),
        None if lock.deadline_in is None else round(lock.at + lock.deadline_in, 3),
    )


def _seat(waiter: WaiterSnapshot, *, deaf: bool) -> Seat:
    return Seat(
        waiter.waiter_id,
        waiter.task_name,
        waiter.host,
        waiter.pid,
        waiter.user,
        round(waiter.since, 3),
        deaf,
    )
