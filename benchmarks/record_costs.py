"""What each record of the scripts costs: the same scripts without it, in turns with the whole ones."""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable
from importlib import resources

import redis

from aiogpulock.keys import lock_keys
from benchmarks.results import Column, Row, Table
from tests.servers import RealServer

BATCH = 100
PROCESS = '{"host":"host","boot":"00000000-0000-0000-0000-000000000000","pidns":1,"timens":1,"processes":[[1,1]]}'


def _without(function: str, parameters: str, instead: str = "") -> Callable[[str], str]:
    """The prelude with a function that returns at once."""
    head = f"local function {function}({parameters})\n"

    def edit(prelude: str) -> str:
        assert prelude.count(head) == 1, head
        return prelude.replace(head, f"{head}  do return {instead} end\n")

    return edit


def _no_beat_key(prelude: str) -> str:
    line = "    redis.call('SET', BEAT, now, 'PX', w.lease)\n"
    assert prelude.count(line) == 1
    return prelude.replace(line, "")


RECORDS: dict[str, tuple[str, Callable[[str], str]]] = {
    "event": ("history, audit, ETA: one stream entry per hold", _without("record", "...")),
    "outcome": ("a late or repeated call cannot bring a lock back", _without("finish", "id, outcome")),
    "server's identity (INFO)": ("no grant while holders may still re-assert", _without("restart_grace_left", "", "0")),
    "counters": ("shared statistics", _without("count", "counter")),
    "public message": ("programs that know nothing of queues", _without("announce_release", "task, reason")),
    "heartbeat key": ("outside readers", _no_beat_key),
}


def record_costs(server: RealServer, rounds: int) -> Table:
    """`rounds` acquire and release pairs of each variant; server time by `commandstats`."""
    prelude = _text("prelude")
    with server.client(decode_responses=False) as client:
        variants = {name: _Pair(client, edit(prelude)) for name, (_, edit) in RECORDS.items()}
        variants["whole"] = _Pair(client, prelude)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(rounds // BATCH):
            for name, pair in variants.items():
                seconds[name].append(_timed(client, pair.once))
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    whole = medians["whole"]
    rows = [Row(name, [whole - medians[name], 100 * (1 - medians[name] / whole), RECORDS[name][0]]) for name in RECORDS]
    rows.append(Row("all of acquire and release", [whole, 100.0, "beside these: the lock, its holder, the fence"]))
    columns = [Column("server time", "s"), Column("share", "%"), Column("what for")]
    return Table("what each record costs", columns, rows)


def _text(name: str) -> str:
    return (resources.files("aiogpulock") / "lua" / f"{name}.lua").read_text()


def _timed(client: redis.Redis, once: Callable[[], object]) -> float:
    before = _script_seconds(client)
    for _ in range(BATCH):
        once()
    return (_script_seconds(client) - before) / BATCH


def _script_seconds(client: redis.Redis) -> float:
    stats = client.info("commandstats")
    return float(stats.get("cmdstat_evalsha", {"usec": 0})["usec"]) / 1e6


class _Pair:
    """Acquire and release with one variant of the prelude."""

    def __init__(self, client: redis.Redis, prelude: str) -> None:
        self._client = client
        self._keys = lock_keys("records", "gpu_lock").script_keys
        self._acquire = client.script_load(prelude + _text("acquire"))
        self._release = client.script_load(prelude + _text("release"))

    def once(self) -> None:
        holder = secrets.token_hex(16)
        asked = (holder, 0, "inbox", "push", 30_000, 90_000, 60_000, 600_000, 0, 0, -1, 1, "benchmark", PROCESS)
        _, token, *_ = self._call(self._acquire, *asked)
        self._call(self._release, holder, token, "normal")

    def _call(self, script: str, *arguments: object) -> list[int]:
        reply: list[int] = self._client.evalsha(script, len(self._keys), *self._keys, 2000, 0, "", *arguments)
        return reply
