"""What the scripts answer, made into records. Anybody may write to Redis, so anything may be in them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from aiogpulock.errors import ProtocolError
from aiogpulock.keys import LockKeys
from aiogpulock.models import LockSnapshot, Outcome, ProcessInfo, WaiterSnapshot, lock_value, quarantines_of
from aiogpulock.raw_text import text_of


class Held(NamedTuple):
    """The lease has begun."""

    token: int
    dirty: bool
    """The last holder died: what it started may still compute."""
    waited: float
    """Seconds since the waiter arrived, on the server's clock."""
    quarantine: str = ""
    """What is quarantined, each device as a line of JSON (`quarantines_of`); empty: nothing."""


class Waiting(NamedTuple):
    """The waiter has a seat in the queue."""

    position: int
    """Starts at 1."""
    arrival_us: int
    enqueued: bool
    """The seat was made by this call."""
    recheck_in: float | None
    """Seconds until the holder's deadline, a foreign value's expiry, or the end of the restart grace."""
    value: str
    holder_id: str
    """Empty: nobody, or a foreign value."""
    holder_phase: str
    holder_process: bytes
    inbox_has_receiver: bool
    more: bool
    """Ask again at once: the grant looked at many dead seats and has not reached the end."""
    waiters: int

    @property
    def foreign(self) -> bool:
        """An older program holds the lock: it sends no message that we know."""
        return bool(self.value) and not self.holder_id


class Refused(NamedTuple):
    """The lock is busy (`max_wait_time` 0) or the queue is full."""

    kind: Literal["busy", "full"]
    waiters: int
    value: str


class Finished(NamedTuple):
    """This id has ended; nothing brings it back."""

    outcome: Outcome


class Stale(NamedTuple):
    """The grant that the claim names is not the one that Redis gave."""


class Beat(NamedTuple):
    """Answer to a heartbeat or a re-assertion."""

    status: Literal["renewed", "missing", "other", "done"]
    detail: str
    """The current value (other), or the outcome (done)."""


class Released(NamedTuple):
    """Answer to a release. `ok`: this call, or an earlier one that was repeated, released the lock."""

    ok: bool
    more: bool
    detail: str
    """If not ok: the current value, or the outcome that came before."""


class Swept(NamedTuple):
    """Answer to a sweep of the queue."""

    seats: int
    """Dead ones that were removed."""
    changed: bool
    """Something was removed: a seat, or records of waiters without one."""
    more: bool
    """Sweep again."""


AcquireReply: TypeAlias = Held | Waiting | Refused | Finished | Stale


def checked(reply: Any, keys: LockKeys) -> list[Any]:
    """The reply, if it is one. Raises `ProtocolError`."""
    if not isinstance(reply, list) or not reply:
        raise ProtocolError(f"{keys.lock}: a script answered {reply!r}")
    if reply[0] == b"newer":
        raise ProtocolError(
            f"{keys.lock} is held by a newer aiogpulock (protocol {reply[1]}). Upgrade aiogpulock in this program"
        )
    return reply


def parse_acquire(reply: list[Any], keys: LockKeys) -> AcquireReply:
    match reply[0]:
        case b"held":
            told = reply[4].decode("utf-8", "replace")
            return Held(token=reply[1], dirty=reply[2] == b"1", waited=reply[3] / 1000, quarantine=told)
        case b"waiting":
            return _waiting(reply)
        case b"busy" | b"full":
            return Refused(reply[0].decode(), reply[1], text_of(reply[2]))
        case b"stale":
            return Stale()
        case _:
            return Finished(_outcome(reply, keys))


def parse_release(reply: list[Any], keys: LockKeys) -> Released:
    match reply[0]:
        case b"released":
            return Released(ok=True, more=reply[1] == 1, detail="")
        case b"other":
            return Released(ok=False, more=False, detail=text_of(reply[1]))
        case _:
            outcome = _outcome(reply, keys)
            return Released(ok=outcome == "released", more=False, detail=outcome)


def _outcome(reply: list[Any], keys: LockKeys) -> Any:
    if reply[0] != b"done":
        raise ProtocolError(f"{keys.lock}: a script answered {reply!r}")
    return reply[1].decode()


def parse_beat(reply: Any, keys: LockKeys) -> Beat:
    """Of a heartbeat or a re-assertion, unchecked. Raises `ProtocolError`."""
    status, *details = checked(reply, keys)
    detail = text_of(details[0]) if details else ""
    return Beat(status.decode(), detail)


def beat_or_error(reply: Any, keys: LockKeys) -> Beat | Exception:
    """One lock's trouble is not another's."""
    try:
        return reply if isinstance(reply, Exception) else parse_beat(reply, keys)
    except ProtocolError as error:
        return error


def snapshot_or_error(reply: Any, keys: LockKeys) -> LockSnapshot | ProtocolError:
    try:
        if isinstance(reply, Exception):
            other = f"{keys.lock} or {{{keys.lock}}}:… holds what is none of ours: move or delete it"
            advice = f". {other}" if "WRONGTYPE" in str(reply) else ""
            return ProtocolError(f"{keys.lock} cannot be read: {reply}{advice}")
        return parse_snapshot(checked(reply, keys), keys)
    except ProtocolError as error:
        return error


def _waiting(reply: list[Any]) -> Waiting:
    _, position, arrival, enqueued, recheck, value, holder, phase, process, receiver, more, waiters = reply
    return Waiting(
        position=position,
        arrival_us=arrival,
        enqueued=enqueued == 1,
        recheck_in=recheck / 1000 if recheck >= 0 else None,
        value=text_of(value),
        holder_id=text_of(holder),
        holder_phase=phase.decode("utf-8", "replace"),
        holder_process=process,
        inbox_has_receiver=receiver == 1,
        more=more == 1,
        waiters=waiters,
    )


def parse_process(data: bytes) -> ProcessInfo | None:
    """Who a record names, or None if it names nobody that we can understand."""
    try:
        return msgspec.json.decode(data, type=ProcessInfo)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _number(text: str | None) -> int | None:
    try:
        return int(float(text)) if text else None
    except (ValueError, OverflowError):  # OverflowError: inf
        return None


def parse_snapshot(reply: list[Any], keys: LockKeys) -> LockSnapshot:
    _, now_ms, raw_value, pttl, raw_holder, waiters, listed, raw_stats, dead, stray, foreign_since, quarantine = reply
    flat = [text_of(part) for part in raw_holder]
    holder = dict(zip(flat[::2], flat[1::2], strict=True))
    stats = {
        name.decode("utf-8", "replace"): _number(amount.decode("utf-8", "replace")) or 0
        for name, amount in zip(raw_stats[::2], raw_stats[1::2], strict=True)
    }
    value = text_of(raw_value) if pttl != -2 else None  # somebody may have set an empty one
    ours = "id" in holder and value in (None, lock_value(holder.get("task", ""), holder["id"]))
    if not ours:
        holder = {}
    process = parse_process(holder.get("process", "").encode())
    since, deadline = _number(holder.get("since")), _number(holder.get("deadline"))
    lease = _number(holder.get("lease"))
    return LockSnapshot(
        gpu_id=keys.gpu_id,
        key=keys.lock,
        at=now_ms / 1000,
        value=value,
        foreign=value is not None and not ours,
        foreign_for=(now_ms - foreign_since) / 1000 if foreign_since else None,
        phase=holder.get("phase"),
        holder_id=holder.get("id"),
        task_name=holder.get("task"),
        host=process.host if process else None,
        pid=process.pid if process else None,
        process=process,
        user=process.user if process else None,
        fencing_token=_number(holder.get("token")),
        age=(now_ms - since) / 1000 if since is not None else None,
        lease=lease / 1000 if lease is not None else None,
        deadline_in=(deadline - now_ms) / 1000 if deadline is not None else None,
        deadline_ms=deadline,
        expires_in=pttl / 1000 if pttl >= 0 else None,
        dirty=holder.get("dirty") == "1",
        waiters=waiters,
        dead_waiters=dead,
        stray_waiters=stray == 1,
        queue=tuple(_waiter(entry) for entry in listed),
        stats=stats,
        quarantine=_why_quarantined(quarantine.decode("utf-8", "replace")),
    )


def _why_quarantined(text: str) -> str | None:
    return "; ".join(told.reason if told else line for line, told in quarantines_of(text).items()) or None


def _waiter(entry: list[Any]) -> WaiterSnapshot:
    process = parse_process(entry[2])
    return WaiterSnapshot(
        waiter_id=text_of(entry[0]),
        task_name=entry[1].decode("utf-8", "replace"),
        host=process.host if process else "",
        pid=process.pid if process else 0,
        user=process.user if process else "",
        since=entry[3] / 1_000_000,
        mode=entry[4].decode(),
        deaf=entry[5] == 1,
        process=process,
    )
