"""The model's store does what a server does: the same scripts on both, the same replies, messages and keys."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from aiogpulock.scripts import files_of
from tests.model.runner import ScriptRunner
from tests.model.store import Entry, Session, Store
from tests.servers import RealServer

START_MS = 1_800_000_000_000
IDS = ("a", "b", "c", "d")
INBOXES = ("inbox-1", "inbox-2", "inbox-3")
LEASE_MS, TTL_MS, WINDOW_MS, GRACE_MS, EXPIRES_MS = 60_000, 600_000, 2000, 5000, 90_000
PATIENCE = 60.0
"""Seconds for an answer of the server or a message: machines that run tests are busy."""
ROUNDING_MS = 2

REPLACED = {
    "parts/state": ("local clock = redis.call('TIME')", "local clock = {KEYS[10]:match('^(%d+) (%d+)$')}"),
    "parts/holding": ("redis.pcall('INFO', 'server')", "KEYS[11]"),
}
"""The clock and the server's identity move by themselves on a real server: here both sides are told them."""

ids, inboxes = st.sampled_from(IDS), st.sampled_from(INBOXES)


def told(name: str, source: str) -> str:
    for search, replacement in (REPLACED[file] for file in files_of(name) if file in REPLACED):
        assert source.count(search) == 1, (name, search)
        source = source.replace(search, replacement)
    return source


class Both:
    """The store and a server.

    A key of the store gets no older, and one of the server does: by no more than the time since the start. No key
    lapses by that, for an example that takes so long is not judged; `delete` lets one lapse on both sides.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.client.flushall()
        self.store = Store()
        self.now_us = START_MS * 1000
        self._started_at = time.monotonic()
        self.run_number, self.started_ms = 1, 0
        self.runner = ScriptRunner(edit=told)
        self.keys = [key.decode() for key in self.runner.keys.script_keys]
        self.listeners: dict[str, redis.client.PubSub] = {}

    def listen(self, inbox: str, *, listens: bool) -> None:
        known = self.listeners.pop(inbox, None)
        if known is not None:
            known.close()
            while self.client.pubsub_numsub(inbox)[0][1]:
                pass  # the server learns of it a moment later
        if listens:
            listener = self.listeners[inbox] = self.client.pubsub()
            listener.subscribe(inbox)
            assert listener.get_message(timeout=PATIENCE)["type"] == "subscribe"

    def run(self, name: str, *arguments: Any) -> list[Any]:
        """Run on both and compare; answers the reply."""
        self.now_us += 7
        session = Session(self.store, START_MS * 1000, frozenset(self.listeners))
        told = self._clock(), self._info()
        ours = self.runner.run(name, arguments, session, told)
        theirs = self.client.eval(*_raw(self.runner.sources[name], 11, *self.keys, *told, *arguments))
        assert not ours.error, ours.error
        self.store = ours.store
        if self._age_ms() >= LEASE_MS:
            reject()  # the machine was too busy: on the server keys may have lapsed
        if name == "snapshot":
            self._compare_ttl(theirs.pop(3), ours.reply.pop(3), "of the lock")
        if theirs[0] == "waiting" and not theirs[6]:  # the ttl of a foreign value, by the server's own clock
            self._compare_ttl(theirs.pop(4), ours.reply.pop(4), "of the foreign value")
        assert theirs == ours.reply, f"{name}{arguments}"
        assert self._received() == {(m.channel, m.payload) for m in ours.messages if m.receivers}
        self._compare_keys(session)
        return ours.reply

    def delete(self, key: str) -> None:
        self.client.delete(key)
        self.store = self.store._replace(entries=tuple(e for e in self.store.entries if e[0] != key))

    def write_over(self, index: int, value: str) -> None:
        """Change one of the records of waiters, if there are any."""
        key = next(key for key in self.keys if key.endswith(":waiters"))
        entries = dict(self.store.entries)
        if key in entries:
            records = dict(entries[key].value)
            field = sorted(records)[index % len(records)]
            self.client.hset(key, field, value)
            entries[key] = entries[key]._replace(value=tuple({**records, field: value}.items()))
            self.store = self.store._replace(entries=tuple(entries.items()))

    def set(self, key: str, value: str) -> None:
        self.delete(key)
        self.client.set(key, value)
        entry = Entry("string", value)
        self.store = self.store._replace(entries=(*self.store.entries, (key, entry)))

    def _clock(self) -> str:
        return f"{self.now_us // 1_000_000} {self.now_us % 1_000_000}"

    def _info(self) -> str:
        uptime = (self.now_us // 1000 - self.started_ms) // 1000
        return f"# Server\r\nrun_id:{self.run_number:040x}\r\nuptime_in_seconds:{uptime}\r\n"

    def _received(self) -> set[tuple[str, str]]:
        messages = set()
        for inbox, listener in self.listeners.items():
            # The reply to a PING comes after all that was published before it.
            listener.ping()
            while (message := listener.get_message(timeout=PATIENCE))["type"] != "pong":
                messages.add((inbox, message["data"]))
        return messages

    def _compare_keys(self, session: Session) -> None:
        read = {"hash": self.client.hgetall, "string": self.client.get, "zset": self._scores, "stream": self._fields}
        theirs = {key: read[self.client.type(key)](key) for key in self.client.keys("*")}
        ours = {key: list(v.values()) if kind == "stream" else v for key, (kind, v, _) in session.data.items()}
        assert theirs == ours
        for key, (_, _, expires) in session.data.items():
            left = -1 if expires is None else expires - session.now_ms
            self._compare_ttl(self.client.pttl(key), left, key)

    def _age_ms(self) -> float:
        return (time.monotonic() - self._started_at) * 1000

    def _compare_ttl(self, theirs: int, ours: int, whose: str) -> None:
        oldest = ours if ours < 0 else ours - self._age_ms()
        assert oldest - ROUNDING_MS <= theirs <= ours, f"ttl {whose}: {theirs} on the server, {ours} in the store"

    def _scores(self, key: str) -> dict[str, float]:
        return dict(self.client.zrange(key, 0, -1, withscores=True))

    def _fields(self, key: str) -> list[tuple[str, ...]]:
        return [tuple(part for pair in fields.items() for part in pair) for _, fields in self.client.xrange(key)]


def _raw(*values: object) -> list[Any]:
    """Text is bytes here, as Lua has it."""
    return [value.encode("latin-1") if isinstance(value, str) else value for value in values]


class HonestStore(RuleBasedStateMachine):
    """Programs that call scripts in any order, with clocks that jump, inboxes that come and go, and lost data."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.both = Both(self.client)
        self.both.listen(self.both.runner.keys.release_channel, listens=True)
        self.tokens: dict[str, int] = {}
        self.arrivals: dict[str, int] = {}

    def teardown(self) -> None:
        for channel in list(self.both.listeners):
            self.both.listen(channel, listens=False)

    @rule(
        waiter=ids,
        inbox=inboxes,
        mode=st.sampled_from(["push", "push", "poll"]),
        known=st.booleans(),
        priority=st.sampled_from([0, 0, 1]),
        most=st.sampled_from([-1, -1, 1]),
        may_wait=st.sampled_from([1, 1, 1, 0]),
        task=st.sampled_from(["train", 'a "b" \\ / \xfc\t', ""]),
    )
    def acquire(
        self, waiter: str, inbox: str, mode: str, known: bool, priority: int, most: int, may_wait: int, task: str
    ) -> None:
        hint, arrival = (self.tokens.get(waiter, 0), self.arrivals.get(waiter, 0)) if known else (0, 0)
        reply = self.both.run(
            "acquire", WINDOW_MS, GRACE_MS, "", waiter, hint, inbox, mode, 1500, EXPIRES_MS, LEASE_MS, TTL_MS, arrival,
            priority, most, may_wait, task, '{"pid":1}',
        )  # fmt: skip
        if reply[0] == "held":
            self.tokens[waiter] = reply[1]
        elif reply[0] == "waiting":
            self.arrivals[waiter] = reply[2]

    @rule(mode=st.sampled_from(["push", "poll"]))
    def everybody_comes(self, mode: str) -> None:
        for waiter, inbox in zip(IDS, (*INBOXES, INBOXES[0]), strict=True):
            self.acquire(waiter, inbox, mode, False, 0, -1, 1, "train")

    @rule(waiter=ids, phase=st.sampled_from(["", "", "draining"]))
    def beat(self, waiter: str, phase: str) -> None:
        self.both.run("heartbeat", 0, 0, "", waiter, self.tokens.get(waiter, 1), LEASE_MS, TTL_MS, phase)

    @rule(waiter=ids, held_for=st.sampled_from([0, 1234]))
    def reassert(self, waiter: str, held_for: int) -> None:
        token, arrival = self.tokens.get(waiter, 1), self.arrivals.get(waiter, 1)
        lease = (LEASE_MS, TTL_MS, INBOXES[0], "train", '{"pid":1}', arrival, held_for)
        self.both.run("reassert", 0, 0, "", waiter, token, *lease)

    @rule(waiter=ids, quarantine=st.sampled_from(["", "", "8 GiB stayed"]))
    def release(self, waiter: str, quarantine: str) -> None:
        token = self.tokens.get(waiter, 1)
        self.both.run("release", WINDOW_MS, GRACE_MS, "", waiter, token, "normal", quarantine)

    @rule(waiter=ids, reason=st.sampled_from(["timeout", "cancelled"]), inbox=st.sampled_from(["", *INBOXES]))
    def withdraw(self, waiter: str, reason: str, inbox: str) -> None:
        self.both.run("withdraw", WINDOW_MS, GRACE_MS, "", waiter, reason, inbox)

    @rule(
        outcome=st.sampled_from(["reaped", "forced"]),
        reason=st.sampled_from(["forced", "lease_expired"]),
        seen=st.booleans(),
        call=st.sampled_from(["", "call-1"]),
    )
    def reap(self, outcome: str, reason: str, seen: bool, call: str) -> None:
        self.both.run("reap", WINDOW_MS, GRACE_MS, "", self._value(seen), outcome, reason, "operator", call)

    @rule(
        seen=st.booleans(),
        limit=st.sampled_from([-1, 0, 3000]),
        alive=st.sampled_from([0, 0, 1]),
        lapses=st.sampled_from([0, 9000]),
        call=st.sampled_from(["call-2", "call-3"]),
    )
    def end_foreign(self, seen: bool, limit: int, alive: int, lapses: int, call: str) -> None:
        value = self._value(seen)
        told = (value, limit, alive, lapses, "forced", "monitor", call)
        self.both.run("end_foreign", WINDOW_MS, GRACE_MS, "", *told)

    @rule(gone=st.lists(ids, max_size=2))
    def sweep(self, gone: list[str]) -> None:
        self.both.run("sweep", WINDOW_MS, GRACE_MS, "", "monitor", *gone)

    @rule(note=st.sampled_from(["note-1", "note-2"]))
    def note(self, note: str) -> None:
        self.both.run("note", 0, 0, "", note, "loop_stalled", "warning", "train", "h", "host:1", 'a "b" \\ \xfc', "{}")

    @rule(waiter=ids)
    def verdict(self, waiter: str) -> None:
        figures = ("bytes", 8, "seconds", 1.5)
        self.both.run("verdict", 0, 0, "", f"{waiter}:memory", waiter, 7, "train", "not_freed", "8 left", *figures)

    @rule(seen=st.sampled_from(["8 GiB stayed", "another one"]))
    def lift(self, seen: str) -> None:
        self.both.run("lift", 0, 0, "", seen, "operator", "host:1")

    def _value(self, seen: bool) -> str:
        return (self.both.client.get(self.both.keys[0]) if seen else None) or "locked_by_x:y"

    @rule(listed=st.sampled_from([1, 10]))
    def snapshot(self, listed: int) -> None:
        self.both.run("snapshot", 0, 0, "", listed)

    @rule()
    def resume(self) -> None:
        self.both.run("resume", WINDOW_MS, GRACE_MS, "")

    @rule(batch=st.sampled_from(["batch-1", "batch-2"]), amount=st.integers(-3, 9))
    def count(self, batch: str, amount: int) -> None:
        self.both.run("count", 0, 0, "", batch, "timeouts", amount, "leaks", 1)

    @rule(passed_ms=st.sampled_from([1, 999, 2000, 3500, 61_000, 91_000, 121_000]))
    def time_passes(self, passed_ms: int) -> None:
        self.both.now_us += passed_ms * 1000

    @rule(inbox=inboxes, listens=st.booleans())
    def inbox_comes_or_goes(self, inbox: str, listens: bool) -> None:
        self.both.listen(inbox, listens=listens)

    @rule(index=st.integers(0, 8))
    def key_lapses(self, index: int) -> None:
        self.both.delete(self.both.keys[index])

    @rule(index=st.integers(0, 5), value=st.sampled_from(["many", "-3", "7"]))
    def somebody_writes_over_a_record(self, index: int, value: str) -> None:
        self.both.write_over(index, value)

    @rule(value=st.sampled_from(["locked_by_old:1", "x"]))
    def older_program_locks(self, value: str) -> None:
        self.both.set(self.both.keys[0], value)

    @rule(data=st.booleans())
    def server_restarts(self, data: bool) -> None:
        self.both.run_number += 1
        self.both.started_ms = self.both.now_us // 1000
        if not data:
            for key in self.both.keys:
                self.both.delete(key)


@pytest.mark.timeout(600)
def test_the_store_answers_as_a_server_does(own_server: RealServer) -> None:
    HonestStore.client = own_server.client(encoding="latin-1", socket_timeout=PATIENCE)
    bounds = settings(
        max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(HonestStore, settings=bounds)


def test_what_the_other_test_replaces_is_what_a_server_says(server: RealServer) -> None:
    with server.client() as client:
        info, clock = client.eval("return {redis.call('INFO', 'server'), redis.call('TIME')}", 0)
    ours = Session(Store(), START_MS * 1000)
    for text in (info, ours.info("server")):
        assert re.search(r"run_id:[0-9a-f]{40}\r\n", text)
        assert re.search(r"uptime_in_seconds:\d+\r\n", text)
    assert [len(part) > 0 and part.isdigit() for part in (*clock, *ours.time())] == [True] * 4
