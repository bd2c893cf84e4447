"""Faults of the network: the workers reach the server through a proxy that misbehaves."""

from __future__ import annotations

from typing import Any, ClassVar

from aiogpulock import clock
from tests.faults.arena import Arena
from tests.faults.fault import CLAIM_WINDOW, LEASE, SLACK, Fault
from tests.faults.proxy import Proxy
from tests.servers import RealServer

TIMEOUT = 0.5  # seconds for each command
PING_EVERY = 0.3  # seconds of silence after which an inbox asks, and then waits for the answer


class Network(Fault):
    bound: ClassVar[float] = LEASE + 2 * CLAIM_WINDOW + 2 * TIMEOUT + 2 * PING_EVERY + SLACK
    settings: ClassVar[dict[str, Any]] = {"redis": {"connect_timeout": TIMEOUT}}
    config: ClassVar[dict[str, Any]] = {"ping_every": PING_EVERY}

    def server(self) -> RealServer:
        return RealServer()

    def begin(self, arena: Arena) -> None:
        self._proxy = Proxy(arena.server.port)
        arena.url = self._proxy.url

    def end(self, arena: Arena) -> None:
        self._proxy.close()

    def cycle(self, arena: Arena) -> float:
        _, entry = arena.capture()
        arena.await_waiters(1)
        arena.pause(0.02)
        self.begin_fault(arena, self._proxy)
        try:
            arena.pause(0.1)
            freed_at = arena.judge.free(entry["holder"])
            arena.pause(0.4)
        finally:
            self.end_fault(arena, self._proxy)
        return float(arena.next(freed_at, bound=self.bound)["at"] - freed_at)

    def begin_fault(self, arena: Arena, proxy: Proxy) -> None:
        raise NotImplementedError

    def end_fault(self, arena: Arena, proxy: Proxy) -> None:
        pass


class Cut(Network):
    name, what = "proxy-cut", "every connection reset"

    def begin_fault(self, arena: Arena, proxy: Proxy) -> None:
        proxy.cut()


class Delay(Network):
    name, what = "proxy-delay", "each message late by 10 to 80 ms in each direction"

    def begin_fault(self, arena: Arena, proxy: Proxy) -> None:
        proxy.delay(arena.random.uniform(0.01, 0.08))

    def end_fault(self, arena: Arena, proxy: Proxy) -> None:
        proxy.delay(0.0)


class HalfOpen(Network):
    name, what = "proxy-half-open", "every connection silent for ever, without an end"

    def begin_fault(self, arena: Arena, proxy: Proxy) -> None:
        proxy.half_open()


class Partition(Network):
    name, what = "proxy-partition", "nothing passes for up to 0.5 s, new connections included"

    def begin_fault(self, arena: Arena, proxy: Proxy) -> None:
        proxy.swallow(True)

    def end_fault(self, arena: Arena, proxy: Proxy) -> None:
        proxy.swallow(False)


class DropReplies(Network):
    name, what = "proxy-drop-replies", "commands arrive and replies are lost, for up to 0.5 s"

    def begin_fault(self, arena: Arena, proxy: Proxy) -> None:
        proxy.drop_replies(True)

    def end_fault(self, arena: Arena, proxy: Proxy) -> None:
        proxy.drop_replies(False)


class IsolatedHolder(Network):
    """Its replies come late, then nothing reaches it: it must give up before the others are let in."""

    name, what = "proxy-isolated-holder", "the holder alone loses the network, after late replies"
    bound: ClassVar[float] = LEASE + SLACK
    settings: ClassVar[dict[str, Any]] = {
        "heartbeat": {"interval": 0.15, "timeout": LEASE, "max_stall": 0},
        "redis": {"connect_timeout": 1.5},
    }
    late: ClassVar[float] = 0.65
    """Seconds: more than the third of the lease that lies between the holder's own deadline and the server's."""

    def begin(self, arena: Arena) -> None:
        self._proxy = Proxy(arena.server.port)

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture(arena.start(self._proxy.url))
        arena.pause(0.4, least=0.3)  # the first beat opens its connection
        self._proxy.delay_replies(self.late)
        arena.pause(0.5, least=0.2)  # a beat is on its way, and its answer still is when the last command has passed
        isolated_at = clock.now()
        self._proxy.drop_commands(True)
        try:
            entered = arena.next(isolated_at, bound=self.bound, not_by=victim)
            if not arena.is_out(victim, within=SLACK):  # it says so later: its release waits for the network
                arena.violated(f"no loss: token {entry['token']} of pid {victim.pid} is cut off")
        finally:
            self._proxy.delay_replies(0.0)
            self._proxy.drop_commands(False)
        arena.retire(victim)
        return float(entered["at"] - isolated_at)
