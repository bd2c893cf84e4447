"""One typed coroutine per script of ``lua/``. Redis decides; Python asks and obeys."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from aiogpulock.errors import ProtocolError
from aiogpulock.keys import LockKeys
from aiogpulock.models import (
    Alert,
    Beat,
    Finished,
    Held,
    LockSnapshot,
    ProcessInfo,
    Quarantine,
    Refused,
    Released,
    Request,
    Stale,
    Swept,
    WaiterSnapshot,
    Waiting,
    quarantines_of,
)
from aiogpulock.raw_text import bytes_of, text_of
from aiogpulock.redis_client import RedisClient, ScriptMissingError

if TYPE_CHECKING:
    from aiogpulock.gpu.memory import MemoryReport

AcquireReply = Held | Waiting | Refused | Finished | Stale

SNAPSHOT_WAITERS = 100
SNAPSHOTS_PER_WRITE = 50


class Script(NamedTuple):
    sha: bytes
    source: bytes


@cache
def load_script(name: str) -> Script:
    """The shipped text: the prelude, then the script."""
    folder = resources.files("aiogpulock") / "lua"
    source = b"".join((folder / f"{part}.lua").read_bytes() for part in ("prelude", name))
    return Script(hashlib.sha1(source, usedforsecurity=False).hexdigest().encode(), source)


def script_command(name: str, keys: LockKeys, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The EVALSHA of a shipped script; `arguments` are its whole ARGV."""
    return ("EVALSHA", load_script(name).sha, len(keys.script_keys), *keys.script_keys, *arguments)


class Terms(NamedTuple):
    """What each script that may grant goes by."""

    claim_window_ms: int
    restart_grace_ms: int


class LeaseTerms(NamedTuple):
    """What a beat writes."""

    lease_ms: int
    ttl_ms: int


class Scripts:
    """The scripts on one server. `clean_run` tells the run id of a server known to have had no data to lose."""

    def __init__(self, client: RedisClient, clean_run: Callable[[], str]) -> None:
        self._client = client
        self._clean_run = clean_run

    async def acquire(self, keys: LockKeys, terms: Terms, request: Request, hint: int, arrival_us: int) -> AcquireReply:
        """Enqueue, poll or claim. `hint`: the token of the grant to claim, 0 for whatever there is."""
        r = request
        reply = await self._run(
            "acquire", keys, terms,
            r.id, hint, r.inbox, r.mode, r.next_check, r.expires, r.lease, r.ttl, arrival_us, r.priority,
            r.max_waiters, int(r.may_wait), r.task, r.process,
        )  # fmt: skip
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

    async def release(
        self,
        keys: LockKeys,
        terms: Terms,
        holder_id: str,
        token: int,
        reason: str,
        quarantine: str = "",
        *,
        dirty: bool = False,
    ) -> Released:
        """Release and hand off. `quarantine`: tell the next holders from now on that the GPU's memory is not free.

        `dirty`: the next holder looks at the GPU before it starts, as after a crash.
        """
        reply = await self._run("release", keys, terms, holder_id, token, reason, quarantine, int(dirty))
        match reply[0]:
            case b"released":
                return Released(ok=True, more=reply[1] == 1, detail="")
            case b"other":
                return Released(ok=False, more=False, detail=text_of(reply[1]))
            case _:
                outcome = _outcome(reply, keys)
                return Released(ok=outcome == "released", more=False, detail=outcome)

    async def withdraw(self, keys: LockKeys, terms: Terms, waiter_id: str, reason: str, inbox: str = "") -> bool:
        """Leave the queue for good, handing on what was granted meanwhile. Answers whether to `resume`.

        `inbox`: only if the id belongs to it.
        """
        reply = await self._run("withdraw", keys, terms, waiter_id, reason, inbox)
        return bool(reply[0] == b"withdrawn" and reply[2] == 1)

    async def beat(self, beats: Sequence[tuple[LockKeys, str, int, LeaseTerms]]) -> list[Beat | Exception]:
        """Renew leases, all in one write: (keys, holder id, token, terms) each."""
        calls = [(keys, (holder_id, token, *lease)) for keys, holder_id, token, lease in beats]
        replies = await self._many("heartbeat", calls)
        return [_beat_or_error(reply, beat[0]) for reply, beat in zip(replies, beats, strict=True)]

    async def drain(self, keys: LockKeys, holder_id: str, token: int, lease: LeaseTerms) -> Beat:
        """A beat that tells everybody that the holder only waits for its memory."""
        return parse_beat(await self._run("heartbeat", keys, Terms(0, 0), holder_id, token, *lease, "draining"), keys)

    async def reassert(
        self, keys: LockKeys, holder_id: str, token: int, lease: LeaseTerms, claim: Sequence[Any]
    ) -> Beat:
        """Restore a lease that the server forgot. `claim`: inbox, task, process, arrival_us, held for (ms)."""
        return parse_beat(await self._run("reassert", keys, Terms(0, 0), holder_id, token, *lease, *claim), keys)

    async def reap(
        self, keys: LockKeys, terms: Terms, seen: str, outcome: str, reason: str, actor: str
    ) -> tuple[bool, bool]:
        """End exactly the holder that was seen, by its value. Answers whether this ended it, and whether to `resume`.

        A call whose reply was lost is sent again under the same id, so one of two monitors alone is told that it did.
        """
        call_id = secrets.token_hex(16)
        reply = await self._run("reap", keys, terms, bytes_of(seen), outcome, reason, actor, call_id)
        return reply[0] == b"ended", reply[0] == b"ended" and reply[1] == 1

    async def end_foreign(
        self, keys: LockKeys, terms: Terms, seen: str, limit: float | None, *, alive: bool, reason: str, actor: str
    ) -> tuple[bool, bool]:
        """End a value of another program that has stood for `limit` seconds without expiry; None: only note it.

        `alive`: the program shows a sign of life, so the time begins anew. Answers as `reap` does.
        """
        limit_ms = -1 if limit is None else round(limit * 1000)
        call_id = secrets.token_hex(16)
        arguments = (bytes_of(seen), limit_ms, int(alive), reason, actor, call_id)
        reply = await self._run("end_foreign", keys, terms, *arguments)
        return reply[0] == b"ended", reply[0] == b"ended" and reply[1] == 1

    async def sweep(self, keys: LockKeys, terms: Terms, actor: str, gone: Sequence[str]) -> Swept:
        """Take dead seats out of the queue, those of `gone` among them, and give a free lock away."""
        _, removed, more = await self._run("sweep", keys, terms, actor, *gone)
        return Swept(seats=max(0, removed), changed=removed != 0, more=more == 1)

    async def resume(self, keys: LockKeys, terms: Terms) -> bool:
        """Go on with a grant that hit its bound. Answers whether to call again."""
        return bool((await self._run("resume", keys, terms))[1] == 1)

    async def count(self, keys: LockKeys, batch: str, counters: Mapping[str, int]) -> None:
        """Add counters to the shared ones, once per batch id."""
        await self._run("count", keys, Terms(0, 0), batch, *(part for item in counters.items() for part in item))

    async def verdict(self, keys: LockKeys, holder_id: str, token: int, task: str, report: MemoryReport) -> None:
        """Note what became of a holder's memory. Once per holder."""
        figures = {"bytes": report.bytes, "seconds": report.seconds, "samples": len(report.samples)}
        told = [part for name, value in figures.items() if value is not None for part in (name, value)]
        verdict_id = f"{holder_id}:memory"
        await self._run(
            "verdict", keys, Terms(0, 0), verdict_id, holder_id, token, task, report.status, report.reason, *told
        )

    async def lift(self, keys: LockKeys, seen: str, reason: str, actor: str) -> bool:
        """End the quarantine that was seen. Answers whether it was still that one."""
        return bool((await self._run("lift", keys, Terms(0, 0), seen, reason, actor))[0] == b"lifted")

    async def quarantines(self, keys: LockKeys) -> dict[str, Quarantine | None]:
        """What is kept of quarantines, by the text that `lift` takes."""
        text = await self._client.execute("HGET", keys.fence, "quarantine")
        return quarantines_of(text.decode("utf-8", "replace") if text else "")

    async def granted_since(self, keys: LockKeys, token: int) -> bool:
        """Whether anybody was granted the lock after the holder of `token` had released it; True if Redis forgot."""
        fence = await self._client.execute("HGET", keys.fence, "token")
        return fence is None or int(fence) > token + 1

    async def note(self, keys: LockKeys, note: str, alert: Alert, actor: str) -> None:
        """Put an alert into the lock's history, once per id of the note."""
        record = msgspec.json.encode(alert.record) if alert.record is not None else b""
        await self._run(
            "note", keys, Terms(0, 0), note, alert.type, alert.level, alert.task_name, alert.holder, actor,
            alert.message, record,
        )  # fmt: skip

    async def snapshot(self, keys: LockKeys) -> LockSnapshot:
        """The lock at one moment; writes nothing."""
        return _snapshot(await self._run("snapshot", keys, Terms(0, 0), SNAPSHOT_WAITERS), keys)

    async def snapshots(self, locks: Sequence[LockKeys]) -> list[LockSnapshot | ProtocolError]:
        """Many locks in few writes. What cannot be read of one lock is its answer, and no other lock's trouble."""
        found: list[LockSnapshot | ProtocolError] = []
        for start in range(0, len(locks), SNAPSHOTS_PER_WRITE):
            some = locks[start : start + SNAPSHOTS_PER_WRITE]
            replies = await self._many("snapshot", [(keys, (SNAPSHOT_WAITERS,)) for keys in some])
            found += [_snapshot_or_error(reply, keys) for reply, keys in zip(replies, some, strict=True)]
        return found

    async def _many(self, name: str, calls: Sequence[tuple[LockKeys, tuple[Any, ...]]]) -> list[Any]:
        """One script for many locks, in one write; an error comes as its lock's reply."""
        replies = await self._client.execute_many(
            [self._command(name, keys, Terms(0, 0), arguments) for keys, arguments in calls]
        )
        for index, reply in enumerate(replies):
            if isinstance(reply, ScriptMissingError):
                keys, arguments = calls[index]
                replies[index] = await self._eval(name, keys, Terms(0, 0), arguments)
        return replies

    async def _run(self, name: str, keys: LockKeys, terms: Terms, *arguments: Any) -> list[Any]:
        try:
            reply = await self._client.execute(*self._command(name, keys, terms, arguments))
        except ScriptMissingError:
            reply = await self._eval(name, keys, terms, arguments)
            if isinstance(reply, Exception):
                raise reply from None
        return _checked(reply, keys)

    def _command(self, name: str, keys: LockKeys, terms: Terms, arguments: Sequence[Any]) -> tuple[Any, ...]:
        return script_command(name, keys, (*terms, self._clean_run(), *arguments))

    async def _eval(self, name: str, keys: LockKeys, terms: Terms, arguments: Sequence[Any]) -> Any:
        """EVAL caches the script on the server: one round trip where SCRIPT LOAD would cost two."""
        command = ("EVAL", load_script(name).source, *self._command(name, keys, terms, arguments)[2:])
        return (await self._client.execute_many([command]))[0]


def _checked(reply: Any, keys: LockKeys) -> list[Any]:
    if not isinstance(reply, list) or not reply:
        raise ProtocolError(f"{keys.lock}: a script answered {reply!r}")
    if reply[0] == b"newer":
        raise ProtocolError(
            f"{keys.lock} is held by a newer aiogpulock (protocol {reply[1]}). Upgrade aiogpulock in this program"
        )
    return reply


def _outcome(reply: list[Any], keys: LockKeys) -> Any:
    if reply[0] != b"done":
        raise ProtocolError(f"{keys.lock}: a script answered {reply!r}")
    return reply[1].decode()


def parse_beat(reply: Any, keys: LockKeys) -> Beat:
    checked = _checked(reply, keys)
    detail = text_of(checked[1]) if len(checked) > 1 else ""
    return Beat(checked[0].decode(), detail)


def _beat_or_error(reply: Any, keys: LockKeys) -> Beat | Exception:
    """One lock's trouble is not another's."""
    try:
        return reply if isinstance(reply, Exception) else parse_beat(reply, keys)
    except ProtocolError as error:
        return error


def _snapshot_or_error(reply: Any, keys: LockKeys) -> LockSnapshot | ProtocolError:
    try:
        if isinstance(reply, Exception):
            other = f"{keys.lock} or {{{keys.lock}}}:… holds what is none of ours: move or delete it"
            advice = f". {other}" if "WRONGTYPE" in str(reply) else ""
            return ProtocolError(f"{keys.lock} cannot be read: {reply}{advice}")
        return _snapshot(_checked(reply, keys), keys)
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


def _snapshot(reply: list[Any], keys: LockKeys) -> LockSnapshot:
    _, now_ms, raw_value, pttl, raw_holder, waiters, listed, raw_stats, dead, stray, foreign_since, quarantine = reply
    flat = [text_of(part) for part in raw_holder]
    holder = dict(zip(flat[::2], flat[1::2], strict=True))
    stats = {
        name.decode("utf-8", "replace"): _number(amount.decode("utf-8", "replace")) or 0
        for name, amount in zip(raw_stats[::2], raw_stats[1::2], strict=True)
    }
    value = text_of(raw_value) if pttl != -2 else None  # somebody may have set an empty one
    ours = "id" in holder and value in (None, f"locked_by_{holder.get('task', '')}:{holder['id']}")
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
