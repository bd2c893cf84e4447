"""What may go wrong around a lock, and how long it then takes until the next one is in."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from benchmarks.arena import Arena, Contender, DoesNotRunError, contest
from benchmarks.contender import Order, Setup
from benchmarks.peers import OURS, Peer
from benchmarks.results import shown

LEASE = 3.0
"""Seconds, here, for everybody; the defaults are 60 (this library, redis-fifo-lock) or none."""
CLAIM_WINDOW = 2.0
FALLBACK = 1.0
"""Seconds between checks of a waiter that hears nothing, here; the default is 30."""
SETTINGS = {
    "heartbeat": {"interval": 0.5, "timeout": LEASE},
    "fallback_timeout": FALLBACK,
    "claim_window": CLAIM_WINDOW,
}
SETTLE, PHASE = 0.4, 1.0
"""Seconds for a process to be waiting, and up to how many more before something happens: what looks now and then must
not always have looked just before. A lease that nobody renews outlives all of it."""
HOLDS = Order(hold=-1, seconds=120, tell=True)
WAITS = Order(seconds=120, tell=True)


@contextmanager
def abreast(arena: Arena, threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for several contestants at a time. An interrupt ends the processes that they wait for."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            arena.clear()
            raise


class Scene:
    """Processes of one peer that contend for one lock. They are started first, so that a short lease lasts for the act.

    Each is on a host of its own, as far as the others can see, if the scene is `elsewhere`.
    """

    def __init__(self, arena: Arena, peer: Peer, name: str, *, lease: float = LEASE, elsewhere: bool = False) -> None:
        self._arena = arena
        self._peer = peer
        self._name = name
        self._lease = lease
        self._elsewhere = elsewhere
        self._started: list[Contender] = []

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error: object) -> None:
        self._arena.dismiss(self._started)

    def processes(self, *urls: str) -> list[Contender]:
        """One for each URL of the server, started side by side."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(self._process, range(len(urls)), urls))

    def crew(self, count: int) -> list[Contender]:
        return self.processes(*[self._arena.server.url] * count)

    def _process(self, number: int, url: str) -> Contender:
        options = SETTINGS if self._peer is OURS else {}
        env = {"AIOGPULOCK_BOOT_ID": f"host-{number}"} if self._elsewhere else None
        contender = self._arena.start(self._peer, Setup(url, self._name, lease=self._lease, options=options), env)
        self._started.append(contender)
        return contender


def holds(contender: Contender) -> Contender:
    """It holds the lock until it is told to go on."""
    contender.tell(HOLDS)
    contender.entered()
    return contender


def waits(contender: Contender, order: Order = WAITS) -> Contender:
    contender.tell(order)
    time.sleep(SETTLE)
    return contender


def in_phase(number: int, times: int) -> None:
    """Evenly spaced, so that it is the same for all: where nobody renews a lease, its rest is what is measured."""
    time.sleep(PHASE * (number + 0.5) / times)


def between(event: float, entered: float) -> float:
    """Seconds from what went wrong to the next entry. Raises `DoesNotRunError` if that did not wait for it."""
    if entered < event:
        raise DoesNotRunError("its lease had run out before anything went wrong")
    return entered - event


Case = Callable[[Arena, Peer, int], list[float]]


def killed(arena: Arena, peer: Peer, times: int, *, elsewhere: bool = False) -> list[float]:
    """The holder is killed by SIGKILL; each waiter is the next victim."""
    with Scene(arena, peer, f"killed-{elsewhere}", elsewhere=elsewhere) as scene:
        victim, *heirs = scene.crew(times + 1)
        holds(victim)
        samples = []
        for number, heir in enumerate(heirs):
            waits(heir, HOLDS)
            in_phase(number, times)
            at = victim.kill()
            samples.append(between(at, heir.entered(90)))
            victim = heir
        return samples


def killed_elsewhere(arena: Arena, peer: Peer, times: int) -> list[float]:
    """The same, on another host as far as the waiter can see."""
    return killed(arena, peer, times, elsewhere=True)


def dead_waiter(arena: Arena, peer: Peer, times: int) -> list[float]:
    """The first in line was killed before the holder releases."""
    return _head_of_the_queue(arena, peer, times, "killed", Contender.end)


def frozen_waiter(arena: Arena, peer: Peer, times: int) -> list[float]:
    """The first in line was stopped (SIGSTOP) before the holder releases."""
    return _head_of_the_queue(arena, peer, times, "frozen", Contender.freeze)


def _head_of_the_queue(
    arena: Arena, peer: Peer, times: int, name: str, strike: Callable[[Contender], object]
) -> list[float]:
    samples = []
    for number in range(times):
        with Scene(arena, peer, f"head-{name}-{number}") as scene:
            holder, first, second = scene.crew(3)
            holds(holder)
            waits(first)
            waits(second)
            strike(first)
            in_phase(number, times)
            holder.go_on()
            entered = second.entered(90)
            samples.append(between(holder.released(), entered))
    return samples


def lost_message(arena: Arena, peer: Peer, times: int) -> list[float]:
    """The holder may not publish (by its ACL), so that no message of its release arrives.

    Timed from when the holder is told to leave: a release that cannot publish may fail after it has freed the lock.
    """
    with arena.server.client() as client:
        client.acl_setuser("mute", enabled=True, nopass=True, reset_channels=True, keys=["*"], categories=["+@all"])
    mute = arena.server.tcp_url.replace("redis://", "redis://mute:none@")
    samples = []
    for number in range(times):
        with Scene(arena, peer, f"mute-{number}") as scene:
            holder, waiter = scene.processes(mute, arena.server.url)
            holds(holder)
            waits(waiter)
            in_phase(number, times)
            at = time.monotonic()
            holder.go_on()
            samples.append(between(at, waiter.entered(90)))
    return samples


def ended_by(end: str) -> Case:
    """The holder's body ends so."""

    def case(arena: Arena, peer: Peer, times: int) -> list[float]:
        with Scene(arena, peer, f"ended-{end}") as scene:
            (holder, waiter), samples = scene.crew(2), []
            contest([holder, waiter], Order())  # first use connects
            for _ in range(times):
                holder.tell(Order(hold=0.08 + random.uniform(0, peer.polls), end=end, tell=True))
                holder.entered()
                waiter.tell(Order(seconds=5 * LEASE, tell=True))
                samples.append(waiter.entered(5 * LEASE) - holder.released())
                waiter.answer()
            return samples

    return case


ENDS = ("normal", "exception", "cancelled", "abandoned")
DEATHS: dict[str, Case] = {
    "holder killed here": killed,
    "holder killed elsewhere": killed_elsewhere,
    "first in line killed": dead_waiter,
    "first in line frozen": frozen_waiter,
}
CASES: dict[str, Case] = {**DEATHS, "message lost": lost_message} | {f"body ends: {end}": ended_by(end) for end in ENDS}


class Restart(NamedTuple):
    """What followed when the server was killed and started again without its data."""

    kept: bool
    """Nobody else was in before the holder left."""
    held: str
    """The same, and when the waiter was in, in words."""
    free: float | str
    """Seconds from when the server answers until somebody was in a lock that nobody had held; or why nobody was."""


def server_restart(arena: Arena, cast: Sequence[Peer]) -> dict[Peer, Restart]:
    """The server is killed and comes back empty, for all contestants at once.

    Each has a holder and a waiter of one lock, and somebody who asks for another one when the server answers again.
    """
    with abreast(arena, len(cast)) as pool, ExitStack() as scenes:

        def prepared(peer: Peer) -> list[Contender] | str:
            try:
                held, free = (
                    scenes.enter_context(Scene(arena, peer, f"restart-{name}", lease=60)) for name in ("held", "free")
                )
                (holder, waiter), (newcomer,) = held.crew(2), free.crew(1)
                contest([newcomer], Order())  # first use connects
                return [holds(holder), waits(waiter), newcomer]
            except DoesNotRunError as error:
                return str(error)

        found = dict(zip(cast, pool.map(prepared, cast), strict=True))
        arena.server.kill()
        started = time.monotonic()
        arena.server.start()
        answers = time.monotonic()
        crews = {peer: crew for peer, crew in found.items() if not isinstance(crew, str)}
        for _, _, newcomer in crews.values():
            newcomer.tell(WAITS)
        time.sleep(6)  # longer than the restart grace
        ended = pool.map(lambda crew: _after_restart(started, answers, *crew), crews.values())
        restarts = dict(zip(crews, ended, strict=True))
        return {peer: restarts.get(peer) or Restart(False, str(found[peer]), str(found[peer])) for peer in cast}


def _after_restart(
    started: float, answers: float, holder: Contender, waiter: Contender, newcomer: Contender
) -> Restart:
    free: float | str
    try:
        free = newcomer.entered() - answers
    except DoesNotRunError as error:
        free = str(error)
    try:
        if (entered := waiter.told()) is not None:
            return Restart(False, f"two bodies at once, {shown(entered - started, 's')} after the start", free)
        holder.go_on()
        left = holder.released()
        return Restart(True, f"{shown(waiter.entered(15) - left, 's')} after the release", free)
    except DoesNotRunError as error:
        return Restart(False, str(error), free)
