"""The part of Redis that the scripts call, as a value: a frozen store, and a session that runs commands on a copy.

Replies are Redis's, as Lua sees them: ints, strings, lists, False for nil, `Status` for +OK. Hashes keep the order in
which their fields were set. `tests/model/test_store_is_honest.py` holds it against a real server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Score = float
Reply = Any


class StoreError(Exception):
    """What a command answers with an error."""


class Status(str):
    """A status reply: a table with `ok` in Lua."""


class Entry(NamedTuple):
    """One key. `value`: a string, a hash's pairs in order, a sorted set's pairs by rank, or a stream's entries."""

    kind: str
    value: Any
    expires_ms: int | None = None


class Store(NamedTuple):
    """All keys and the server that has them; hashable."""

    entries: tuple[tuple[str, Entry], ...] = ()
    run_id: str = "c" * 40
    started_ms: int = 0


class Message(NamedTuple):
    """A PUBLISH and how many received it."""

    channel: str
    payload: str
    receivers: int


WRITES = frozenset(
    {"SET", "DEL", "PEXPIRE", "HSET", "HDEL", "HINCRBY", "ZADD", "ZREM", "ZREMRANGEBYSCORE", "ZREMRANGEBYRANK", "XADD"}
)


def number(text: str) -> Score:
    """A score as Redis reads it."""
    return {"-inf": float("-inf"), "+inf": float("inf")}.get(text) or float(text)


def score_text(score: Score) -> str:
    return str(int(score)) if score == int(score) else repr(score)


class Session:
    """Commands of one script on a copy of `store`, at one instant. The clock stands still, as it does in a script."""

    def __init__(
        self,
        store: Store,
        now_us: int,
        subscribers: frozenset[str] = frozenset(),
        refuse_writes: str = "",
    ) -> None:
        self.data: dict[str, list[Any]] = {}
        self.run_id, self.started_ms = store.run_id, store.started_ms
        self.now_us, self.now_ms = now_us, now_us // 1000
        self.subscribers = subscribers
        self.refuse_writes = refuse_writes
        self.messages: list[Message] = []
        self.calls = 0
        for key, entry in store.entries:
            if entry.expires_ms is None or entry.expires_ms > self.now_ms:
                value = entry.value if entry.kind == "string" else dict(entry.value) if entry.value else {}
                self.data[key] = [entry.kind, value, entry.expires_ms]

    def freeze(self) -> Store:
        frozen = []
        for key, (kind, value, expires) in sorted(self.data.items()):
            if kind == "zset":
                value = tuple(sorted(value.items(), key=lambda pair: (pair[1], pair[0])))
            elif kind != "string":
                value = tuple(value.items())
            frozen.append((key, Entry(kind, value, expires)))
        return Store(tuple(frozen), self.run_id, self.started_ms)

    def call(self, name: str, *arguments: str) -> Reply:
        """Run one command; raises `StoreError`."""
        command = COMMANDS.get(name)
        if command is None:
            raise StoreError(f"ERR the model's store has no command {name}")
        if self.refuse_writes and name in WRITES:
            raise StoreError(self.refuse_writes)
        self.calls += 1
        return command(self, *arguments)

    # keys -----------------------------------------------------------------------------------------------------

    def _find(self, key: str, kind: str) -> Any:
        entry = self.data.get(key)
        if entry is None:
            return None
        if entry[0] != kind:
            raise StoreError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return entry[1]

    def _make(self, key: str, kind: str) -> Any:
        if self._find(key, kind) is None:
            self.data[key] = [kind, {}, None]
        return self.data[key][1]

    def _drop_if_empty(self, key: str) -> None:
        if not self.data[key][1]:
            del self.data[key]

    def time(self) -> list[str]:
        return [str(self.now_us // 1_000_000), str(self.now_us % 1_000_000)]

    def exists(self, *keys: str) -> int:
        return sum(key in self.data for key in keys)

    def delete(self, *keys: str) -> int:
        return sum(self.data.pop(key, None) is not None for key in keys)

    def pexpire(self, key: str, ttl_ms: str) -> int:
        if key not in self.data:
            return 0
        if int(ttl_ms) <= 0:
            del self.data[key]
        else:
            self.data[key][2] = self.now_ms + int(ttl_ms)
        return 1

    def pttl(self, key: str) -> int:
        if key not in self.data:
            return -2
        expires = self.data[key][2]
        return -1 if expires is None else int(expires - self.now_ms)

    # strings --------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Reply:
        value = self._find(key, "string")
        return False if value is None else value

    def set(self, key: str, value: str, *options: str) -> Reply:
        expires = None
        if options:
            word, ttl_ms = options
            if word != "PX" or int(ttl_ms) <= 0:
                raise StoreError("ERR syntax error or invalid expire time in 'set' command")
            expires = self.now_ms + int(ttl_ms)
        self.data[key] = ["string", value, expires]
        return Status("OK")

    # hashes ---------------------------------------------------------------------------------------------------

    def hget(self, key: str, field: str) -> Reply:
        return (self._find(key, "hash") or {}).get(field, False)

    def hmget(self, key: str, *fields: str) -> Reply:
        content = self._find(key, "hash") or {}
        return [content.get(field, False) for field in fields]

    def hgetall(self, key: str) -> Reply:
        return [part for pair in (self._find(key, "hash") or {}).items() for part in pair]

    def hset(self, key: str, *pairs: str) -> int:
        if len(pairs) % 2 or not pairs:
            raise StoreError("ERR wrong number of arguments for 'hset' command")
        content = self._make(key, "hash")
        before = len(content)
        content.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(content) - before

    def hdel(self, key: str, *fields: str) -> int:
        content = self._find(key, "hash")
        if content is None:
            return 0
        gone = sum(content.pop(field, None) is not None for field in fields)
        self._drop_if_empty(key)
        return gone

    def hincrby(self, key: str, field: str, amount: str) -> int:
        content = self._make(key, "hash")
        known = content.get(field, "0")
        if not known.removeprefix("-").isdecimal():
            raise StoreError("ERR hash value is not an integer")
        content[field] = str(int(known) + int(amount))
        return int(content[field])

    # sorted sets ----------------------------------------------------------------------------------------------

    def _ranked(self, key: str) -> list[tuple[str, Score]]:
        content: dict[str, Score] = self._find(key, "zset") or {}
        return sorted(content.items(), key=lambda pair: (pair[1], pair[0]))

    def zadd(self, key: str, score: str, member: str) -> int:
        content = self._make(key, "zset")
        new = member not in content
        content[member] = number(score)
        return int(new)

    def zrem(self, key: str, *members: str) -> int:
        content = self._find(key, "zset")
        if content is None:
            return 0
        gone = sum(content.pop(member, None) is not None for member in members)
        self._drop_if_empty(key)
        return gone

    def zcard(self, key: str) -> int:
        return len(self._find(key, "zset") or {})

    def zscore(self, key: str, member: str) -> Reply:
        content = self._find(key, "zset") or {}
        return score_text(content[member]) if member in content else False

    def zrank(self, key: str, member: str) -> Reply:
        for rank, (name, _) in enumerate(self._ranked(key)):
            if name == member:
                return rank
        return False

    def zrange(self, key: str, start: str, stop: str) -> Reply:
        ranked = self._ranked(key)
        return [name for name, _ in ranked[_span(start, stop, len(ranked))]]

    def zremrangebyscore(self, key: str, least: str, most: str) -> int:
        low, high = number(least), number(most)
        return self.zrem(key, *(name for name, score in self._ranked(key) if low <= score <= high))

    def zremrangebyrank(self, key: str, start: str, stop: str) -> int:
        ranked = self._ranked(key)
        return self.zrem(key, *(name for name, _ in ranked[_span(start, stop, len(ranked))]))

    # the rest -------------------------------------------------------------------------------------------------

    def xadd(self, key: str, *arguments: str) -> str:
        """`MAXLEN ~ n * field value …`; ids are counted, since nothing reads them."""
        if tuple(arguments[:2]) != ("MAXLEN", "~") or arguments[3] != "*" or len(arguments) % 2:
            raise StoreError("ERR the model's store knows XADD key MAXLEN ~ n * only")
        entries = self._make(key, "stream")
        identity = f"{self.now_ms}-{len(entries)}"
        entries[identity] = tuple(arguments[4:])
        return identity

    def publish(self, channel: str, payload: str) -> int:
        receivers = int(channel in self.subscribers)
        self.messages.append(Message(channel, payload, receivers))
        return receivers

    def pubsub(self, word: str, *channels: str) -> Reply:
        if word != "NUMSUB":
            raise StoreError("ERR the model's store knows PUBSUB NUMSUB only")
        return [part for channel in channels for part in (channel, int(channel in self.subscribers))]

    def info(self, section: str) -> str:
        if section != "server":
            raise StoreError("ERR the model's store knows INFO server only")
        uptime = (self.now_ms - self.started_ms) // 1000
        return f"# Server\r\nrun_id:{self.run_id}\r\nuptime_in_seconds:{uptime}\r\n"


def _span(start: str, stop: str, length: int) -> slice:
    """Redis's inclusive ranks, negative from the end."""
    first, last = (rank + length if rank < 0 else rank for rank in (int(start), int(stop)))
    return slice(max(first, 0), max(last + 1, 0))


def encode_json(text: str) -> str:
    """cjson.encode of a string: slashes escaped, bytes above 127 as they are."""
    return json.dumps(text, ensure_ascii=False).replace("/", "\\/").replace("\x7f", "\\u007f")


COMMANDS: dict[str, Callable[..., Reply]] = {
    "TIME": Session.time,
    "EXISTS": Session.exists,
    "DEL": Session.delete,
    "PEXPIRE": Session.pexpire,
    "PTTL": Session.pttl,
    "GET": Session.get,
    "SET": Session.set,
    "HGET": Session.hget,
    "HMGET": Session.hmget,
    "HGETALL": Session.hgetall,
    "HSET": Session.hset,
    "HDEL": Session.hdel,
    "HINCRBY": Session.hincrby,
    "ZADD": Session.zadd,
    "ZREM": Session.zrem,
    "ZCARD": Session.zcard,
    "ZSCORE": Session.zscore,
    "ZRANK": Session.zrank,
    "ZRANGE": Session.zrange,
    "ZREMRANGEBYSCORE": Session.zremrangebyscore,
    "ZREMRANGEBYRANK": Session.zremrangebyrank,
    "XADD": Session.xadd,
    "PUBLISH": Session.publish,
    "PUBSUB": Session.pubsub,
    "INFO": Session.info,
}


def command_text(value: Any) -> str:
    """An argument of redis.call as Redis turns it into text: 17 digits for a number."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value == int(value) and abs(value) < 1e17 else f"{value:.17g}"
    raise StoreError("ERR Lua redis lib command arguments must be strings or integers")


def texts(values: Sequence[Any]) -> list[str]:
    return [value if type(value) is str else command_text(value) for value in values]
