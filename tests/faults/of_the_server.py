"""Faults of the server: restarts, refusals, pauses, messages that nobody should have sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from aiogpulock import clock
from tests.faults.arena import Arena
from tests.faults.fault import CLAIM_WINDOW, LONG_LEASE, SLACK, Fault
from tests.faults.judge import Message
from tests.faults.zygote import ForkedWorker

RECONNECT = 0.6  # seconds between two attempts of an inbox, at most


class Disturbance(Fault):
    """Something is done to the server while one holds and two wait; then the holder leaves."""

    patient = True
    settings: ClassVar[dict[str, Any]] = {**LONG_LEASE, "redis": {"connect_timeout": SLACK}}

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        arena.await_waiters(2)
        arena.pause(0.02)
        not_before = self.disturb(arena, victim, entry)
        arena.pause(0.05)
        recovered = self.hand_over(arena, victim, entry, not_before=not_before)
        self.check_kept(arena, victim, entry)
        return recovered

    def disturb(self, arena: Arena, victim: ForkedWorker, entry: Message) -> float:
        """Answers the time before which no grant can be expected."""
        raise NotImplementedError


class InboxKill(Disturbance):
    name, what = "inbox-kill", "CLIENT KILL of every inbox"
    bound: ClassVar[float] = RECONNECT + CLAIM_WINDOW + SLACK

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        arena.await_waiters(2)
        victim.tell("stop_looping")  # it does not come back and find the lock free by chance, nor does it die
        arena.pause(0.02)
        arena.client.client_kill_filter(_type="pubsub")
        arena.pause(0.02)
        recovered = self.hand_over(arena, victim, entry)
        self.check_kept(arena, victim, entry)
        arena.retire(victim)
        arena.fill()
        return recovered


class ClientPause(Disturbance):
    name, what = "client-pause", "CLIENT PAUSE for up to 0.4 s"

    def disturb(self, arena: Arena, victim: ForkedWorker, entry: Message) -> float:
        seconds = arena.random.uniform(0.1, 0.4)
        arena.client.client_pause(round(seconds * 1000), all=arena.random.random() < 0.5)
        return clock.now() + seconds


class ScriptFlush(Disturbance):
    name, what = "script-flush", "SCRIPT FLUSH"

    def disturb(self, arena: Arena, victim: ForkedWorker, entry: Message) -> float:
        arena.client.script_flush()
        return 0.0


class Refusing(Disturbance):
    """The server refuses writes for a while; the holder leaves before its end or after."""

    bound: ClassVar[float] = CLAIM_WINDOW + SLACK

    def refuse(self, arena: Arena) -> None:
        raise NotImplementedError

    def accept(self, arena: Arena) -> None:
        raise NotImplementedError

    def disturb(self, arena: Arena, victim: ForkedWorker, entry: Message) -> float:
        self.refuse(arena)
        newcomer = arena.start()
        try:
            arena.pause(0.3, least=0.05)
            if arena.random.random() < 0.5:
                arena.judge.free(entry["holder"])
                arena.pause(0.2)
        finally:
            self.accept(arena)
        accepted_at = clock.now()
        arena.retire(newcomer)
        return accepted_at


class OutOfMemory(Refusing):
    name, what = "oom", "maxmemory reached: writes are refused with OOM"

    def refuse(self, arena: Arena) -> None:
        arena.client.config_set("maxmemory", 1)

    def accept(self, arena: Arena) -> None:
        arena.client.config_set("maxmemory", 0)


class ReadOnly(Refusing):
    name, what = "readonly", "REPLICAOF a dead host: writes are refused with READONLY"

    def refuse(self, arena: Arena) -> None:
        arena.client.replicaof("127.0.0.1", 1)

    def accept(self, arena: Arena) -> None:
        arena.client.replicaof("NO", "ONE")


class Restart(Disturbance):
    """The holder keeps its lease over a restart of the server that is shorter than the lease."""

    data: ClassVar[Literal["kept", "lost", "old"]]
    blocked: ClassVar[bool] = False
    patient = False
    grace: ClassVar[float] = 2.0  # to re-assert within it a holder must reconnect, and have its turn
    bound: ClassVar[float] = grace + RECONNECT + CLAIM_WINDOW + SLACK
    settings: ClassVar[dict[str, Any]] = {**LONG_LEASE, "restart_grace": grace}

    def cycle(self, arena: Arena) -> float:
        if self.data == "old":
            arena.pause(0.02)
            arena.client.save()
        return super().cycle(arena)

    def disturb(self, arena: Arena, victim: ForkedWorker, entry: Message) -> float:
        blocked_at = clock.now()
        if self.blocked:
            victim.tell("block", seconds=self.settings["restart_grace"] + 0.7)
        if self.data == "old":
            arena.server.kill()
            arena.server.start()
        else:
            arena.server.restart(keep_data=self.data == "kept")
        back_at = clock.now()
        if self.blocked:
            victim.said_since("unblocked", blocked_at)
        arena.pause(1.2)
        return back_at


def _restarts() -> list[type[Fault]]:
    kinds: list[type[Fault]] = []
    data: dict[str, str] = {"kept": "with its data", "lost": "without data", "old": "with an old copy of its data"}
    holders: dict[str, tuple[str, dict[str, Any]]] = {
        "event": ("", {}),
        "poll": (", the programs poll", {"use_event_driven": False}),
        # until the grace is over: its guard, which looks each tenth of a second, must re-assert
        "blocked": (", the holder's loop is blocked", {"restart_grace": 1.2}),
    }
    for state, with_what in data.items():
        for holder, (whose, settings) in holders.items():
            body = {
                "name": f"restart-{state}-{holder}",
                "what": f"restart {with_what}{whose}",
                "data": state,
                "blocked": holder == "blocked",
                "settings": {**Restart.settings, **settings},
            }
            kinds.append(type(f"Restart{state.title()}{holder.title()}", (Restart,), body))
    return kinds


RESTARTS = _restarts()


class Forged(Disturbance):
    name, what = "forged-messages", "forged and malformed messages to every inbox and release channel"

    def disturb(self, arena: Arena, victim: ForkedWorker, entry: Message) -> float:
        client, lock = arena.client, arena.lock
        channels = [channel for channel in client.pubsub_channels("gpu_lock:*") if channel]
        ids = [entry["holder"], *lock.queue]
        for _ in range(20):
            message = arena.random.choice(_FORGERIES)(arena, arena.random.choice(ids), entry)
            for channel in [*channels, "gpu_lock:gpu_lock:0"]:
                client.publish(channel, message)
        return 0.0


def _message(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


Forgery = Callable[[Arena, str, Message], bytes]
_FORGERIES: list[Forgery] = [
    lambda arena, who, entry: _message(type="grant", lock="gpu_lock:0", id=who, token=entry["token"]),
    lambda arena, who, entry: _message(type="grant", lock="gpu_lock:0", id=who, token=entry["token"] + 1),
    lambda arena, who, entry: _message(type="grant", lock="gpu_lock:0", id="f" * 32, token=1),
    lambda arena, who, entry: _message(type="lost", lock="gpu_lock:0", id=who, token=entry["token"], reason="forced"),
    lambda arena, who, entry: _message(type="watch", lock="gpu_lock:0", holder=who, deadline_in=0, process=None),
    lambda arena, who, entry: _message(type="grant", lock="gpu_lock:nowhere", id=who, token=2**80),
    lambda arena, who, entry: _message(event_type="lock_released", lock_key="gpu_lock:0"),
    lambda arena, who, entry: arena.random.randbytes(arena.random.randrange(1, 200)),
    lambda arena, who, entry: b"[" * 20_000,
    lambda arena, who, entry: b'{"type":"grant","lock":"gpu_lock:0","id":"' + b"x" * 100_000 + b'","token":1}',
    lambda arena, who, entry: b"",
]


class FlushAll(Fault):
    name, what = "flushall", "FLUSHALL under a holder: declared out of the promise, and shown to overlap"
    must_bite = "overlaps"

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        newcomer = arena.start(contends=False)
        newcomer.expect("ready")
        victim.stop()  # for a moment: its next beat would be a race with the newcomer
        try:
            arena.client.flushall()
            flushed_at = clock.now()
            newcomer.tell("contend")
            entered = arena.next(flushed_at, bound=SLACK, not_by=victim)
        finally:
            victim.cont()
        if victim.find("lost", timeout=SLACK, token=entry["token"]) is None:
            arena.violated(f"no loss: token {entry['token']} of pid {victim.pid} was overtaken")
            arena.judge.free(entry["holder"])
        arena.retire(newcomer)
        return float(entered["at"] - flushed_at)
