"""Records that travel between the parts: who a process is, what a lock looks like, what happened to it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["released", "withdrawn", "reaped", "forced", "forced_by_monitor"]
"""How an acquisition's id ended, once and for all."""
LOSS_REASONS = {"reaped": "lease_expired", "forced": "forced", "forced_by_monitor": "forced_by_monitor"}
"""Why a lease is lost whose id another one ended with this outcome."""

ReleaseReason: TypeAlias = Literal[
    "normal",
    "exception",
    "cancelled",
    "timeout",
    "task_failure",
    "lease_expired",
    "process_gone",
    "forced",
    "forced_by_monitor",
    "emergency",
    "leaked",
]


class ProcessInfo(msgspec.Struct, frozen=True):
    """Who holds or waits. All of `processes` must be gone before the holder counts as dead."""

    host: str
    boot: str
    """The kernel's boot id: equal means the same host since the same start."""
    pidns: int
    """Inode of the pid namespace; pids of another one mean nothing here."""
    timens: int
    """Inode of the time namespace; start times of another one cannot be compared."""
    processes: tuple[tuple[int, int], ...]
    """(pid, start time in clock ticks since boot)."""
    user: str = ""
    """Who runs it; empty: not told."""

    @property
    def pid(self) -> int:
        """The process that asked for the lock."""
        return self.processes[0][0] if self.processes else 0


class Request(NamedTuple):
    """One acquisition, as it is told to ``acquire.lua``. Durations in ms."""

    id: str
    inbox: str
    mode: Literal["push", "poll"]
    next_check: int
    expires: int
    lease: int
    ttl: int
    priority: int
    max_waiters: int
    """-1: no bound."""
    may_wait: bool
    task: str
    process: bytes


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a GPU that did not come back, as it is kept in Redis until somebody finds it free. Sizes are bytes."""

    reason: str
    """In words: who left what."""
    uuid: str
    task: str
    processes: tuple[tuple[int, int], ...]
    """(pid, start time in clock ticks since boot) of the holder's, as NVML numbers them; none: it does not tell."""
    boot: str
    """In which these were numbered."""
    own_before: int
    """What they had before their hold."""
    nobodys_before: int
    """In use by no listed process then."""
    used_before: int
    """On the whole device then."""
    version: int
    """Of NVML's memory call: figures of another one cannot be compared."""
    tolerance: int
    room: int
    """How much more of the holder's own counts as back: the tolerance, and a CUDA context where it had none."""
    since: float
    """Epoch seconds."""


def quarantine_of(line: str) -> Quarantine | None:
    """What is kept in Redis of one device, or None if it is nothing that we can understand."""
    try:
        return msgspec.json.decode(line, type=Quarantine)
    except msgspec.DecodeError:
        return None


def quarantines_of(text: str) -> dict[str, Quarantine | None]:
    """What is kept in Redis of one lock, by its lines: hosts may share a lock by its index, with a device each."""
    return {line: quarantine_of(line) for line in text.split("\n") if line}


class WaiterSnapshot(msgspec.Struct, frozen=True):
    """One queued request."""

    waiter_id: str
    task_name: str
    host: str
    pid: int
    user: str
    since: float
    """Epoch seconds, the server's clock."""
    mode: str
    deaf: bool
    """Nobody would receive its grant now: it is passed over, and keeps its seat until it calls or expires."""
    process: ProcessInfo | None


def lock_value(task_name: str, holder_id: str) -> str:
    """What stands under the lock's key while it is held; in Lua it is `value_of`."""
    return f"locked_by_{task_name}:{holder_id}"


class LockSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One lock at one moment, on the server's clock."""

    gpu_id: str
    key: str
    at: float
    """Epoch seconds."""
    value: str | None
    """Exactly what is there: bytes that are no UTF-8 as ``\\xff``."""
    foreign: bool
    """The value matches no holder record: an older program set it."""
    foreign_for: float | None
    """Seconds since a monitor first saw this foreign value without expiry; None: none did."""
    phase: str | None
    holder_id: str | None
    task_name: str | None
    host: str | None
    pid: int | None
    process: ProcessInfo | None
    user: str | None
    fencing_token: int | None
    age: float | None
    """Seconds since the grant or the claim."""
    lease: float | None
    """Seconds that each beat buys."""
    deadline_in: float | None
    """Seconds until the lease ends without a beat; negative: it is over."""
    deadline_ms: int | None
    """The same, epoch ms: each beat writes a new one, so equal deadlines mean that no beat came between."""
    expires_in: float | None
    """Seconds until the key expires; None: it never does."""
    dirty: bool
    waiters: int
    """Seats in the queue, dead ones among them."""
    dead_waiters: int
    """Seats whose inbox is gone, among the first in line."""
    stray_waiters: bool
    """Records of waiters are left without a queue."""
    queue: tuple[WaiterSnapshot, ...]
    """The first in line that are alive."""
    stats: dict[str, int]
    quarantine: str | None = None
    """Why the GPU is quarantined, in words."""

    @property
    def ownership(self) -> str | None:
        """What the scripts compare before they end the holder: the value, also where its key alone was deleted."""
        if self.value is None and self.holder_id is not None:
            return lock_value(self.task_name or "", self.holder_id)
        return self.value

    @property
    def silent_for(self) -> float | None:
        """Seconds since the last beat; None: nobody holds a lease."""
        if self.phase in (None, "granted") or self.lease is None or self.deadline_in is None:
            return None
        return max(0.0, self.lease - self.deadline_in)

    @property
    def beats(self) -> bool:
        """Its holder has a heartbeat: a lease without one is as long as the key lives."""
        silent = self.silent_for
        if silent is None or self.lease is None or self.expires_in is None:
            return False
        return self.lease < self.expires_in + silent - 1


def for_outside(lock: LockSnapshot) -> dict[str, Any]:
    """As JSON shows it: without the process records, whose boot ids and namespaces serve our own programs alone."""
    told: dict[str, Any] = msgspec.to_builtins(lock)
    for record in (told, *told["queue"]):
        del record["process"]
    return told


class HistoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a lock's event stream: how a hold ended, or what was done to the lock."""

    gpu_id: str
    at: float
    """Epoch seconds, the server's clock."""
    event: str
    """An `Outcome`, for the end of a hold; or the name of what else happened."""
    task_name: str
    fencing_token: int
    """0: none."""
    holder_id: str
    reason: str
    actor: str
    """Who ended it, if not the holder."""
    wait: float
    """Seconds in the queue."""
    hold: float
    """Seconds."""
    details: dict[str, str]
    """What an event of its kind has beside."""


class CriticalFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A lock that could not be left in the normal way."""

    lock_key: str
    task_name: str
    error: str
    traceback: str
    timestamp: str
    """ISO 8601, UTC."""
    hostname: str
    released: bool
    """The emergency release freed the lock after all."""


AlertLevel: TypeAlias = Literal["warning", "critical", "P0"]
"""P0: a lock could not be left and stays held; look at once."""


class Alert(msgspec.Struct, frozen=True):
    """Something that an operator should know."""

    type: str
    level: AlertLevel
    lock_key: str
    """Empty: it concerns no single lock."""
    message: str
    holder: str = ""
    """Whose lock it is: with type and lock, what makes two alerts the same."""
    task_name: str = ""
    record: CriticalFailure | None = None
    """What the critical-failure log has of it."""
