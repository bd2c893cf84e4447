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
from aiogpulock.models import Alert, LockSnapshot, Quarantine, Request, quarantines_of
from aiogpulock.raw_text import bytes_of
from aiogpulock.redis_client import RedisClient, ScriptMissingError
from aiogpulock.replies import (
    AcquireReply,
    Beat,
    Released,
    Swept,
    beat_or_error,
    checked,
    parse_acquire,
    parse_beat,
    parse_release,
    parse_snapshot,
    snapshot_or_error,
)

if TYPE_CHECKING:
    from aiogpulock.gpu.report import MemoryReport

SNAPSHOT_WAITERS = 100
SNAPSHOTS_PER_WRITE = 50


PARTS = ("state", "seats", "messages", "records", "holding", "grant")
"""What scripts begin with, in this order: each may use those before it."""
LAST_PART = {
    "heartbeat": "state",
    "snapshot": "messages",
    "count": "records",
    "lift": "records",
    "note": "records",
    "verdict": "records",
    "reassert": "holding",
}
"""The last part that a script begins with, where it does not need all: Lua makes every function anew in each call."""


class Script(NamedTuple):
    sha: bytes
    source: bytes


def files_of(name: str) -> tuple[str, ...]:
    """The files of ``lua/`` that a script is made of, in order."""
    last = LAST_PART.get(name, PARTS[-1])
    return (*(f"parts/{part}" for part in PARTS[: PARTS.index(last) + 1]), name)


@cache
def load_script(name: str) -> Script:
    """The shipped text."""
    folder = resources.files("aiogpulock") / "lua"
    source = b"".join((folder / f"{file}.lua").read_bytes() for file in files_of(name))
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
        return parse_acquire(reply, keys)

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
        return parse_release(reply, keys)

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
        return [beat_or_error(reply, beat[0]) for reply, beat in zip(replies, beats, strict=True)]

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
        self,
        keys: LockKeys,
        terms: Terms,
        seen: str,
        limit: float | None,
        *,
        alive: bool,
        next_look: float,
        reason: str,
        actor: str,
    ) -> tuple[bool, bool]:
        """End a value of another program that has stood for `limit` seconds without expiry; None: only note it.

        `alive`: the program shows a sign of life, so the time begins anew; also where nobody looks again within
        `next_look` seconds. Answers as `reap` does.
        """
        limit_ms = -1 if limit is None else round(limit * 1000)
        call_id = secrets.token_hex(16)
        arguments = (bytes_of(seen), limit_ms, int(alive), round(next_look * 1000), reason, actor, call_id)
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
        """The lock at one moment; changes nothing of it."""
        return parse_snapshot(await self._run("snapshot", keys, Terms(0, 0), SNAPSHOT_WAITERS), keys)

    async def snapshots(self, locks: Sequence[LockKeys]) -> list[LockSnapshot | ProtocolError]:
        """Many locks in few writes. What cannot be read of one lock is its answer, and no other lock's trouble."""
        found: list[LockSnapshot | ProtocolError] = []
        for start in range(0, len(locks), SNAPSHOTS_PER_WRITE):
            some = locks[start : start + SNAPSHOTS_PER_WRITE]
            replies = await self._many("snapshot", [(keys, (SNAPSHOT_WAITERS,)) for keys in some])
            found += [snapshot_or_error(reply, keys) for reply, keys in zip(replies, some, strict=True)]
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
        return checked(reply, keys)

    def _command(self, name: str, keys: LockKeys, terms: Terms, arguments: Sequence[Any]) -> tuple[Any, ...]:
        return script_command(name, keys, (*terms, self._clean_run(), *arguments))

    async def _eval(self, name: str, keys: LockKeys, terms: Terms, arguments: Sequence[Any]) -> Any:
        """EVAL caches the script on the server: one round trip where SCRIPT LOAD would cost two."""
        command = ("EVAL", load_script(name).source, *self._command(name, keys, terms, arguments)[2:])
        return (await self._client.execute_many([command]))[0]
