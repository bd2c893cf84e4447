"""What each record of the scripts costs: the same scripts without it, or with two of it, in turns with the whole."""

from __future__ import annotations

import re
import secrets
import statistics
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import redis

from aiogpulock.keys import lock_keys
from aiogpulock.scripts import PARTS, load_script
from benchmarks.floors.shipped_scripts import TERMS, acquire_arguments
from benchmarks.results import NOT_MEASURABLE, Column, Row, Table
from tests.servers import RealServer

BATCH = 100
PROCESS = '{"host":"host","boot":"00000000-0000-0000-0000-000000000000","pidns":1,"timens":1,"processes":[[1,1]]}'


def _replaced(*pairs: tuple[str, str]) -> Callable[[str], str]:
    def edit(parts: str) -> str:
        for text, other in pairs:
            assert parts.count(text) == 1, text
            parts = parts.replace(text, other)
        return parts

    return edit


def _returns_at_once(function: str, parameters: str, value: str = "") -> tuple[str, str]:
    head = f"local function {function}({parameters})\n"
    return head, f"{head}  do return {value} end\n"


def _without_stats(parts: str) -> str:
    parts = _replaced(_returns_at_once("count", "counter"))(parts)
    parts, sums = re.subn(r"\n +add\([^\n]*_ms', \w+\)", "", parts)
    assert sums == 2, "those of waits and holds"
    return parts


_READ = """  local f = redis.call('HMGET', HOLDER, 'id',"""
_WRITTEN = """  redis.call('PEXPIRE', HOLDER, ttl + KEEP_RECORD)\n"""
_COPY = "HOLDER .. ':copy'"
_WRITE_COPY = f"""  redis.call('HSET', {_COPY}, 'id', w.id, 'v', PROTOCOL, 'token', token, 'deadline', deadline,
    'lease', w.lease, 'phase', phase, 'task', w.task, 'inbox', w.inbox, 'process', w.process, 'arrival', w.arrival,
    'since', now, 'dirty', dirty)
  redis.call('PEXPIRE', {_COPY}, ttl + KEEP_RECORD)
"""
_with_a_second_holder = _replaced(
    (_READ, f"""  redis.call('HMGET', {_COPY}, 'id', 'v', 'token', 'deadline', 'phase', 'task', 'inbox', 'process',
    'arrival', 'since', 'dirty')\n{_READ}"""),
    (_WRITTEN, _WRITTEN + _WRITE_COPY),
    ("    redis.call('DEL', LOCK, HOLDER, BEAT)\n", f"    redis.call('DEL', LOCK, HOLDER, BEAT, {_COPY})\n"),
)  # fmt: skip
"""Without this record nothing can be released: it is kept twice instead."""


RECORDS: dict[str, tuple[str, Callable[[str], str]]] = {
    "holder": (
        "who holds it, and until when: a crash, a late call and a stranger are told by it",
        _with_a_second_holder,
    ),
    "event": ("history, audit, ETA: one stream entry per hold", _replaced(_returns_at_once("record", "..."))),
    "outcome": (
        "a late or repeated call cannot bring a lock back",
        _replaced(_returns_at_once("finish", "id, outcome")),
    ),
    "server's identity (INFO)": (
        "no grant while holders may still re-assert",
        _replaced(_returns_at_once("restart_grace_left", "", "0")),
    ),
    "stats": ("shared statistics", _without_stats),
    "publish": (
        "programs that know nothing of queues",
        _replaced(_returns_at_once("announce_release", "task, reason")),
    ),
    "heartbeat key": ("outside readers", _replaced(("    redis.call('SET', BEAT, now, 'PX', w.lease)\n", ""))),
}


NOTE = (
    "A record: what the scripts need less when they do not keep it; the holder, without which nothing can be released: "
    "what they need more when they keep it twice. Both scripts begin with the same parts. State: two calls of that "
    "one, less the empty scripts; the holder is read there, too. Functions: two calls of all parts, less state."
)
NOTHING, STATE, FUNCTIONS = "two empty scripts", "state", "functions of the other parts"
REST, WHOLE = "the rest", "all of acquire and release"
COSTS = {
    NOTHING: "the calls",
    STATE: "the clock; who holds the lock; its own functions",
    FUNCTIONS: f"{', '.join(PARTS[1:])}: Lua makes them anew in each call",
    **{name: what for name, (what, _) in RECORDS.items()},
    REST: "the lock itself, its fence, the look at the queue, the answers",
    WHOLE: "",
}


def record_costs(server: RealServer, rounds: int) -> Table:
    """`rounds` acquire and release pairs of each variant; server time by `commandstats`."""
    state, parts = _text(PARTS[:1]), _text(PARTS)
    with server.client(decode_responses=False) as client:
        variants: dict[str, Callable[[], None]] = {
            name: _Pair(client, edit(parts)).once for name, (_, edit) in RECORDS.items()
        }
        variants[WHOLE] = _Pair(client, parts).once
        for name, source in ((NOTHING, ""), (STATE, state), (FUNCTIONS, parts)):
            variants[name] = _Twice(client, source + "return 1").once
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(rounds // BATCH):
            for name, once in variants.items():
                seconds[name].append(_timed(client, once))
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    whole = medians[WHOLE]
    costs = {name: whole - medians[name] for name in RECORDS}
    costs["holder"] *= -1
    costs |= {NOTHING: medians[NOTHING], STATE: medians[STATE] - medians[NOTHING]}
    costs[FUNCTIONS] = medians[FUNCTIONS] - medians[STATE]
    costs[REST] = whole - sum(max(0.0, cost) for cost in costs.values())
    costs[WHOLE] = whole
    rows = [_row(name, costs[name], whole, what) for name, what in COSTS.items()]
    columns = [Column("server time", "s"), Column("share", "%"), Column("what for")]
    return Table("what each record costs", columns, rows, NOTE)


def _row(name: str, cost: float, whole: float, what: str) -> Row:
    if cost < whole / 200:
        return Row(name, [NOT_MEASURABLE, None, what])
    return Row(name, [cost, 100 * cost / whole, what])


def _beginning_with(parts: str, script: str) -> str:
    shipped, whole = _text(PARTS), load_script(script).source.decode()
    assert whole.startswith(shipped)
    return parts + whole.removeprefix(shipped)


def _text(parts: Sequence[str]) -> str:
    folder = resources.files("aiogpulock") / "lua" / "parts"
    return "".join((folder / f"{part}.lua").read_text() for part in parts)


def _timed(client: redis.Redis, once: Callable[[], object]) -> float:
    before = _script_seconds(client)
    for _ in range(BATCH):
        once()
    return (_script_seconds(client) - before) / BATCH


def _script_seconds(client: redis.Redis) -> float:
    stats = client.info("commandstats")
    return float(stats.get("cmdstat_evalsha", {"usec": 0})["usec"]) / 1e6


class _Twice:
    """A script that is called two times, as a pair of ours is."""

    def __init__(self, client: redis.Redis, source: str) -> None:
        self._client = client
        self._keys = lock_keys("nothing", "gpu_lock").script_keys
        self._script = client.script_load(source)

    def once(self) -> None:
        for _ in range(2):
            self._client.evalsha(self._script, len(self._keys), *self._keys, *TERMS)


class _Pair:
    """Acquire and release with one variant of their parts."""

    def __init__(self, client: redis.Redis, parts: str) -> None:
        self._client = client
        self._keys = lock_keys("records", "gpu_lock").script_keys
        self._acquire, self._release = (
            client.script_load(_beginning_with(parts, name)) for name in ("acquire", "release")
        )

    def once(self) -> None:
        holder = secrets.token_hex(16)
        _, token, *_ = self._call(self._acquire, *acquire_arguments(holder, PROCESS))
        self._call(self._release, holder, token, "normal")

    def _call(self, script: str, *arguments: Any) -> list[int]:
        reply: list[int] = self._client.evalsha(script, len(self._keys), *self._keys, *TERMS, *arguments)
        return reply
