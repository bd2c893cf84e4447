"""How long until the next one is in, after something went wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks.arena import Arena, Contender, DoesNotRunError, contest
from benchmarks.contender import Order, Setup
from benchmarks.measure import highest_median, spread
from benchmarks.peers import OURS, Peer
from benchmarks.results import Column, Dots, Result, Row, Table, Target, at_most, shown
from benchmarks.scenarios import Stage
from benchmarks.steps import end_steps

TITLE = "Recovery times"

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
"""Seconds for a process to be waiting, and up to how many more before something happens, drawn by chance: what looks
now and then must not always have looked just before. A lease that nobody renews outlives all of it."""
HOLDS = Order(hold=-1, seconds=120, tell=True)
WAITS = Order(seconds=120, tell=True)


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

    def process(self, url: str = "") -> Contender:
        options = SETTINGS if self._peer is OURS else {}
        env = {"AIOGPULOCK_BOOT_ID": f"host-{len(self._started)}"} if self._elsewhere else None
        setup = Setup(url or self._arena.server.url, self._name, lease=self._lease, options=options)
        contender = self._arena.start(self._peer, setup, env)
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


def by_chance() -> None:
    time.sleep(random.uniform(0, PHASE))


Case = Callable[[Arena, Peer, int], list[float]]


def killed(arena: Arena, peer: Peer, times: int, *, elsewhere: bool = False) -> list[float]:
    """The holder is killed by SIGKILL; each waiter is the next victim."""
    with Scene(arena, peer, f"killed-{elsewhere}", elsewhere=elsewhere) as scene:
        victim, heir, samples = holds(scene.process()), scene.process(), []
        for _ in range(times):
            waits(heir, HOLDS)
            by_chance()
            at = victim.kill()
            samples.append(heir.entered(90) - at)
            victim, heir = heir, scene.process()
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
            holder, first, second = (scene.process() for _ in range(3))
            holds(holder)
            waits(first)
            waits(second)
            strike(first)
            by_chance()
            holder.go_on()
            samples.append(second.entered(90) - holder.released())
    return samples


def lost_message(arena: Arena, peer: Peer, times: int) -> list[float]:
    """The holder may not publish (by its ACL), so that no message of its release arrives."""
    with arena.server.client() as client:
        client.acl_setuser("mute", enabled=True, nopass=True, reset_channels=True, keys=["*"], categories=["+@all"])
    url = arena.server.tcp_url.replace("redis://", "redis://mute:none@")
    samples = []
    for number in range(times):
        with Scene(arena, peer, f"mute-{number}") as scene:
            holder, waiter = holds(scene.process(url)), waits(scene.process())
            by_chance()
            holder.go_on()
            samples.append(waiter.entered(90) - holder.released())
    return samples


def ended_by(end: str) -> Case:
    """The holder's body ends so."""

    def case(arena: Arena, peer: Peer, times: int) -> list[float]:
        with Scene(arena, peer, f"ended-{end}") as scene:
            holder, waiter, samples = scene.process(), scene.process(), []
            contest([holder, waiter], Order())  # first use connects
            for _ in range(times):
                holder.tell(Order(hold=0.08 + random.uniform(0, peer.polls), end=end, tell=True))
                holder.entered()
                waiter.tell(Order(seconds=5 * LEASE, tell=True))
                samples.append(waiter.entered(5 * LEASE) - holder.released())
                waiter.answer()
            return samples

    return case


class Restart(NamedTuple):
    """What followed when the server was killed and started again without its data."""

    both: bool
    """The waiter entered while the holder was still in."""
    seconds: float
    """Until then from the start of the server; else from the holder's release to the waiter's entry."""


def server_restart(arena: Arena, cast: Sequence[Peer]) -> dict[Peer, Restart | str]:
    """The server is killed and comes back empty, for all contestants at once, while each has a holder and a waiter."""
    with ExitStack() as scenes, ThreadPoolExecutor(max_workers=ABREAST) as pool:

        def pair(peer: Peer) -> tuple[Contender, Contender] | str:
            scene = scenes.enter_context(Scene(arena, peer, "restart", lease=60))
            try:
                return holds(scene.process()), waits(scene.process())
            except DoesNotRunError as error:
                return str(error)

        pairs = dict(zip(cast, pool.map(pair, cast), strict=True))
        arena.server.kill()
        arena.server.start()
        up = time.monotonic()
        time.sleep(7)  # longer than the restart grace
        return {peer: each if isinstance(each, str) else _after_restart(up, *each) for peer, each in pairs.items()}


def _after_restart(up: float, holder: Contender, waiter: Contender) -> Restart | str:
    try:
        if (entered := waiter.told()) is not None:
            return Restart(True, entered - up)
        holder.go_on()
        left = holder.released()
        return Restart(False, waiter.entered(15) - left)
    except DoesNotRunError as error:
        return str(error)


ENDS = ("normal", "exception", "cancelled", "abandoned")
DEATHS: dict[str, Case] = {
    "holder killed here": killed,
    "holder killed elsewhere": killed_elsewhere,
    "first in line killed": dead_waiter,
    "first in line frozen": frozen_waiter,
}
CASES: dict[str, Case] = {**DEATHS, "message lost": lost_message} | {f"body ends: {end}": ended_by(end) for end in ENDS}


def run(stage: Stage) -> Result:
    """A holder, a waiter, and something that goes wrong; the time until the next body begins.

    Leases last 3 s here, for everybody: what waits for a lease to end grows with it.

    The first table and the targets are of this library alone. In the others it takes part like everybody else: each
    case three times, four contestants at a time.
    """
    with Arena(stage.arena.failures) as arena:
        samples = _alone(stage, arena)
        stage.say("how a body ends, traced")
        ends = end_steps(arena, ENDS, stage.pick(30, 5))
        beside = _side_by_side(stage, arena)
        stage.say("restart of the server")
        restarts = server_restart(arena, [OURS, *stage.peers])
    deaths, others = _deaths(beside), _others(beside, restarts)
    tables = [_in_detail(samples), deaths, others, ends]
    return Result("recovery", TITLE, run.__doc__ or "", tables, _targets(samples, restarts[OURS]), [
        Dots("recovery", "A holder is killed on this host (leases of 3 s)", deaths.title, "holder killed here"),
    ])  # fmt: skip


def _alone(stage: Stage, arena: Arena) -> dict[str, list[float]]:
    """This library, nobody else. The ends of a body take turns, since they are compared."""
    many, few = stage.pick(30, 3), stage.pick(4, 1)
    times = {"holder killed here": many, "first in line killed": stage.pick(10, 1)}
    found: dict[str, list[float]] = {}
    for name, case in CASES.items():
        if not name.startswith("body ends"):
            stage.say(f"{OURS.title}: {name}")
            found[name] = case(arena, OURS, times.get(name, few))
    for _ in range(stage.pick(BLOCKS, 1)):
        for end in ENDS:
            name = f"body ends: {end}"
            stage.say(f"{OURS.title}: {name}")
            found[name] = found.get(name, []) + CASES[name](arena, OURS, many)
    return found


BLOCKS = 3
ABREAST, TIMES = 4, 3
Course = dict[str, float | str]
"""What one contestant needs in each case (p50), or why there is nothing to tell."""


def _side_by_side(stage: Stage, arena: Arena) -> dict[Peer, Course]:
    """They mostly wait for time to pass, so several do it at a time."""
    stage.say("side by side")
    cast = [OURS, *stage.peers]
    with ThreadPoolExecutor(max_workers=stage.pick(ABREAST, len(cast))) as pool:
        return dict(zip(cast, pool.map(lambda peer: _course(stage, arena, peer), cast), strict=True))


def _course(stage: Stage, arena: Arena, peer: Peer) -> Course:
    found: Course = {}
    for name, case in CASES.items():
        if stage.quick and case is not killed:
            found[name] = "not in a quick run"
        elif peer is not OURS and case is killed_elsewhere:
            found[name] = found["holder killed here"]
        elif reason := _cannot(peer, name):
            found[name] = f"cannot: {reason}"
        else:
            try:
                found[name] = spread(case(arena, peer, stage.pick(TIMES, 1))).p50
            except DoesNotRunError as error:
                if peer is OURS:
                    raise
                found[name] = str(error)
    return found


def _cannot(peer: Peer, name: str) -> str:
    """Why this cannot happen to it."""
    if name == "message lost" and not peer.messages:
        return "it polls" if peer.polls else "it sends no messages"
    if name == "body ends: cancelled" and peer.threads:
        return "a thread is not cancelled"
    return ""


def _in_detail(ours: dict[str, list[float]]) -> Table:
    rows = []
    for name, samples in ours.items():
        count, p50, p99 = spread(samples)
        rows.append(Row(name, [p50, p99, float(count)]))
    columns = [Column("p50", "s"), Column("p99", "s"), Column("times", "n")]
    return Table("until the next body begins, this library", columns, rows)


def _deaths(beside: dict[Peer, Course]) -> Table:
    rows = [Row(peer.title, [course[name] for name in DEATHS]) for peer, course in beside.items()]
    return Table(f"p50 of {TIMES}, a process dies", [Column(name, "s") for name in DEATHS], rows, NOTE)


NOTE = (
    "Peers without a queue have no first in line: any waiter that looks next gets the lock. No peer knows of hosts: to "
    "it elsewhere is the same as here, and not measured again. A lease that nobody renews had been running for a while."
)


def _others(beside: dict[Peer, Course], restarts: dict[Peer, Restart | str]) -> Table:
    names = [name for name in CASES if name not in DEATHS]
    rows = [
        Row(peer.title, [*(course[name] for name in names), _after(restarts[peer])]) for peer, course in beside.items()
    ]
    columns = [*(Column(name, "s") for name in names), Column("server restarted empty")]
    return Table(f"p50 of {TIMES}", columns, rows)


def _after(restart: Restart | str) -> str:
    if isinstance(restart, str):
        return restart
    when = shown(restart.seconds, "s")
    return f"two bodies at once, {when} after the start" if restart.both else f"{when} after the release"


def _targets(ours: dict[str, list[float]], restart: Restart | str) -> list[Target]:
    p99 = {name: spread(samples).p99 for name, samples in ours.items()}
    targets = [
        at_most("SIGKILL on the same host, p99", p99["holder killed here"], 0.05, "s"),
        at_most("SIGKILL elsewhere, p99", p99["holder killed elsewhere"], LEASE + 0.25, "s"),
        at_most("dead waiter at the head, socket closed, p99", p99["first in line killed"], 0.05, "s"),
        at_most("dead waiter at the head, frozen, p99", p99["first in line frozen"], CLAIM_WINDOW + 0.25, "s"),
        at_most("lost message: its backstop and its jitter, p99", p99["message lost"], 1.1 * FALLBACK + 0.25, "s"),
    ]
    normal = highest_median(ours["body ends: normal"])
    for end in ENDS[1:]:
        what = f"body ends: {end}, p50, against the p50 of a normal end (the top of its 95 % interval)"
        targets.append(at_most(what, spread(ours[f"body ends: {end}"]).p50, normal, "s"))
    kept = isinstance(restart, Restart) and not restart.both
    said = restart if isinstance(restart, str) else _after(restart)
    targets.append(Target("server restarted empty: the holder keeps its lease", "no second body", said, kept))
    return targets
