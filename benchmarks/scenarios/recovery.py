"""How long until the next one is in, after something went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks.arena import Arena, Contender, DoesNotRunError, contest
from benchmarks.contender import Order, Setup
from benchmarks.measure import Spread, spread
from benchmarks.peers import OURS, Peer
from benchmarks.results import Column, Dots, Result, Row, Table, Target, at_most, shown
from benchmarks.scenarios import Stage

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
SETTLE = 0.4
"""Seconds for a process to be waiting."""
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


def released(holder: Contender) -> float:
    """When the holder's body ended. Raises `DoesNotRunError` if it had lost the lock."""
    answer = holder.answer()
    if not answer.holds:
        raise DoesNotRunError(f"the holder had lost it: {answer.errors}")
    return answer.holds[0].leaving


Case = Callable[[Arena, Peer, int], list[float]]


def killed(arena: Arena, peer: Peer, times: int, *, elsewhere: bool = False) -> list[float]:
    """The holder is killed by SIGKILL; each waiter is the next victim."""
    with Scene(arena, peer, f"killed-{elsewhere}", elsewhere=elsewhere) as scene:
        victim, heir, samples = holds(scene.process()), scene.process(), []
        for _ in range(times):
            waits(heir, HOLDS)
            at = victim.kill()
            samples.append(heir.entered(90) - at)
            victim, heir = heir, scene.process()
        return samples


def killed_elsewhere(arena: Arena, peer: Peer, times: int) -> list[float]:
    """The same, on another host as far as the waiter can see."""
    return killed(arena, peer, times, elsewhere=True)


def dead_waiter(arena: Arena, peer: Peer, times: int) -> list[float]:
    """The first in line was killed before the holder releases."""
    return _head_of_the_queue(arena, peer, times, "killed", Contender.kill)


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
            time.sleep(SETTLE)
            holder.go_on()
            samples.append(second.entered(90) - released(holder))
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
            holder.go_on()
            samples.append(waiter.entered(90) - released(holder))
    return samples


def ended_by(end: str) -> Case:
    """The holder's body ends so."""

    def case(arena: Arena, peer: Peer, times: int) -> list[float]:
        with Scene(arena, peer, f"ended-{end}") as scene:
            holder, waiter, samples = scene.process(), scene.process(), []
            contest([holder, waiter], Order())  # first use connects
            for _ in range(times):
                holder.tell(Order(hold=0.08, end=end, tell=True))
                holder.entered()
                waiter.tell(Order())
                samples.append(waiter.answer().holds[0].entered - released(holder))
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
    with ExitStack() as scenes:
        pairs: dict[Peer, tuple[Contender, Contender]] = {}
        absent: dict[Peer, Restart | str] = {}
        for peer in cast:
            scene = scenes.enter_context(Scene(arena, peer, "restart", lease=60))
            try:
                pairs[peer] = scene.process(), scene.process()
            except DoesNotRunError as error:
                absent[peer] = str(error)
        for holder, waiter in pairs.values():
            holds(holder)
            waits(waiter)
        arena.server.kill()
        arena.server.start()
        up = time.monotonic()
        time.sleep(7)  # longer than the restart grace
        return absent | {peer: _after_restart(up, *pair) for peer, pair in pairs.items()}


def _after_restart(up: float, holder: Contender, waiter: Contender) -> Restart | str:
    try:
        if (entered := waiter.told()) is not None:
            return Restart(True, entered - up)
        holder.go_on()
        left = released(holder)
        return Restart(False, waiter.entered(15) - left)
    except DoesNotRunError as error:
        return str(error)


def run(stage: Stage) -> Result:
    """A holder, a waiter, and something that goes wrong; the time until the next body begins.

    Leases last 3 s here, for everybody: what waits for a lease to end grows with it.
    """
    with Arena() as arena:
        ours = {name: _case(stage, arena, name, case, times) for name, (case, times) in _ours(stage).items()}
        theirs = _of_the_peers(stage, arena)
        stage.say("restart of the server")
        restarts = server_restart(arena, [OURS, *stage.peers])
    table = _side_by_side(ours, theirs, restarts)
    return Result("recovery", TITLE, run.__doc__ or "", [_in_detail(ours), table], _targets(ours, restarts[OURS]), [
        Dots("recovery", "A holder is killed on this host (leases of 3 s)", table.title, "holder killed here"),
    ])  # fmt: skip


def _ours(stage: Stage) -> dict[str, tuple[Case, int]]:
    many, few = stage.pick(30, 3), stage.pick(4, 1)
    ends = {f"body ends: {end}": (ended_by(end), many) for end in ("normal", "exception", "cancelled", "abandoned")}
    return {
        "holder killed here": (killed, many),
        "holder killed elsewhere": (killed_elsewhere, few),
        "first in line killed": (dead_waiter, stage.pick(10, 1)),
        "first in line frozen": (frozen_waiter, few),
        "message lost": (lost_message, few),
        **ends,
    }


def _case(stage: Stage, arena: Arena, name: str, case: Case, times: int) -> Spread:
    stage.say(f"{OURS.title}: {name}")
    return spread(case(arena, OURS, times))


SHARED: dict[str, Case] = {
    "holder killed here": killed,
    "first in line killed": dead_waiter,
    "first in line frozen": frozen_waiter,
}


def _of_the_peers(stage: Stage, arena: Arena) -> dict[Peer, dict[str, float | str]]:
    """They mostly wait for time to pass, so they do it side by side."""
    stage.say("the peers, side by side")
    times = stage.pick(3, 1)

    def course(peer: Peer) -> dict[str, float | str]:
        found: dict[str, float | str] = {}
        for name, case in SHARED.items():
            if stage.quick and case is not killed:
                found[name] = "not in a quick run"
                continue
            try:
                found[name] = spread(case(arena, peer, times)).p50
            except DoesNotRunError as error:
                found[name] = str(error)
        return found

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(stage.peers, pool.map(course, stage.peers), strict=True))


def _in_detail(ours: dict[str, Spread]) -> Table:
    rows = [Row(name, [each.p50, each.p99, float(each.count)]) for name, each in ours.items()]
    columns = [Column("p50", "s"), Column("p99", "s"), Column("times", "n")]
    return Table("until the next body begins, this library", columns, rows)


def _side_by_side(
    ours: dict[str, Spread], theirs: dict[Peer, dict[str, float | str]], restarts: dict[Peer, Restart | str]
) -> Table:
    def after_restart(peer: Peer) -> str:
        found = restarts[peer]
        if isinstance(found, str):
            return found
        when = shown(found.seconds, "s")
        return f"two bodies at once, {when} after the start" if found.both else f"{when} after the release"

    rows = [Row(OURS.title, [*(ours[name].p50 for name in SHARED), after_restart(OURS)])]
    rows += [Row(peer.title, [*found.values(), after_restart(peer)]) for peer, found in theirs.items()]
    columns = [*(Column(name, "s") for name in SHARED), Column("server restarted empty")]
    return Table("p50, side by side", columns, rows, NOTE)


NOTE = "Peers without a queue have no first in line: any waiter that looks next gets the lock."


def _targets(ours: dict[str, Spread], restart: Restart | str) -> list[Target]:
    normal = ours["body ends: normal"].p99
    targets = [
        at_most("SIGKILL on the same host, p99", ours["holder killed here"].p99, 0.05, "s"),
        at_most("SIGKILL elsewhere, p99", ours["holder killed elsewhere"].p99, LEASE + 0.25, "s"),
        at_most("dead waiter at the head, socket closed, p99", ours["first in line killed"].p99, 0.05, "s"),
        at_most("dead waiter at the head, frozen, p99", ours["first in line frozen"].p99, CLAIM_WINDOW + 0.25, "s"),
        at_most("lost message: its backstop and its jitter, p99", ours["message lost"].p99, 1.1 * FALLBACK + 0.25, "s"),
    ]
    for end in ("exception", "cancelled", "abandoned"):
        what = f"body ends: {end}, p50, against a normal hand-off's p99"
        targets.append(at_most(what, ours[f"body ends: {end}"].p50, normal, "s"))
    kept = isinstance(restart, Restart) and not restart.both
    said = restart if isinstance(restart, str) else shown(restart.seconds, "s")
    targets.append(Target("server restarted empty: the holder keeps its lease", "no second body", said, kept))
    return targets
