"""A process that takes the lock again and again: what its holds leave is named, and what it loads between them is not.

Played on a clock of its own, through the real caretaker, episode and verdicts; two settings also in real time.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from aiogpulock import GpuLockManager, Lease, clock, episode
from aiogpulock.caretaker import Caretaker
from aiogpulock.config import GpuMemorySettings
from aiogpulock.gpu.records import Gpu, MemoryReading, ProcessMemory
from aiogpulock.gpu.report import MemoryReport
from aiogpulock.keys import lock_keys
from aiogpulock.verdicts import Verdicts
from tests.gpu.looks import behind_the_devices_figure, wait_for_looks
from tests.gpu.processes import Told
from tests.gpu.test_report import NAMED
from tests.nvml_sim import GiB, Simulation, uuid
from tests.unit.support import eventually

ME, PEER = os.getpid(), 4242
SETTINGS = GpuMemorySettings(on_busy="ignore")
GPU = Gpu("GPU-x", "GPU-x", 0, "Simulated GPU")


class Clockwork(asyncio.SelectorEventLoop):
    """An event loop that sleeps in no time."""

    def __init__(self) -> None:
        loop = self

        class Skips(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
            def select(self, timeout: float | None = None) -> Any:
                assert timeout is not None, "nothing will ever happen"
                loop.now += max(0.0, timeout)
                return super().select(0)

        self.now = 1000.0
        super().__init__(Skips())

    def time(self) -> float:
        return self.now


class Asked:
    """A look under way: the device's figure at once, the list of processes some ms later."""

    def __init__(self, world: World, *, processes: bool = True) -> None:
        self.answer: MemoryReading | None = None
        self.failed = False
        self._there = asyncio.Event()
        begun, work = (0.000_05, self._read_the_device) if processes else (0.004_6, self._read_behind_a_list)
        asyncio.get_running_loop().call_later(begun, work, world)

    def _read_the_device(self, world: World) -> None:
        used, at = world.used, clock.now()
        asyncio.get_running_loop().call_later(0.004_5, self._list, world, used, at)

    def _read_behind_a_list(self, world: World) -> None:
        self._list(world, world.used, clock.now())

    def _list(self, world: World, used: int, used_at: float) -> None:
        sizes = {ME: world.own, PEER: world.peer}
        listed = tuple(ProcessMemory(pid, size) for pid, size in sizes.items() if size)
        self.answer = MemoryReading("GPU-x", clock.now(), 80 * GiB, used, 0, 2, listed, used_at)
        self._there.set()

    def __await__(self) -> Generator[Any, None, MemoryReading]:
        return self._answer().__await__()

    async def _answer(self) -> MemoryReading:
        await self._there.wait()
        assert self.answer is not None
        return self.answer


@dataclass(eq=False)
class Hold:
    """What the caretaker needs of one."""

    number: int
    loop: asyncio.AbstractEventLoop
    acquired_at: float
    state: str = "held"
    gpu: Gpu = GPU
    lost_reason: str | None = None
    memory: GpuMemorySettings | None = None
    memory_report: MemoryReport | None = None
    keys: Any = field(default_factory=lambda: lock_keys("GPU-x", "gpu_lock"))
    task_name: str = "task"

    @property
    def id(self) -> str:
        return str(self.number)

    token = property(lambda self: self.number)


@dataclass(frozen=True)
class Turn:
    """A pause and a hold. Sizes in bytes, times in seconds."""

    pause: float
    loads: int
    """Without the lock, in the middle of the pause."""
    waits: float
    """In the queue, where the peer has the lock."""
    lasts: float
    cache: int
    """What the body takes in its first line, and gives back."""
    late: float
    """Seconds after the release that it gives it back."""
    leaks: int
    first_line: bool


class World:
    """The driver, the Redis and the process."""

    def __init__(self, warm: int, peer: int) -> None:
        self.own, self.peer = warm, peer
        self.leaked: list[tuple[float, int]] = []
        self.told: list[tuple[float, MemoryReport]] = []
        self._peers = 0
        nvml: Any = self
        self._caretaker = Caretaker(nvml, nvml, Verdicts(nvml, nvml, nvml), nvml)

    # what the caretaker asks

    @property
    def used(self) -> int:
        return self.own + self.peer

    def ask(self, _uuid: str, *, processes: bool = True, **_: object) -> Asked:
        return Asked(self, processes=processes)

    async def read(self, *_: object, **__: object) -> MemoryReading:
        return await Asked(self)

    async def granted_since(self, _keys: object, token: int) -> bool:
        return self._peers > token

    def add(self, _what: str, note: Callable[[], Awaitable[None]]) -> None:
        asyncio.ensure_future(note())  # noqa: RUF006 - it is done at once

    async def verdict(self, _keys: object, _hold: str, _token: int, _task: str, report: MemoryReport) -> None:
        self.told.append((clock.now(), report))

    # what the process does

    async def take(self, number: int, turn: Turn) -> None:
        loop, caretaker = asyncio.get_running_loop(), self._caretaker
        await asyncio.sleep(turn.pause / 2)
        self.own = max(0, self.own + turn.loads)
        await asyncio.sleep(turn.pause / 2)
        caretaker.expect(GPU, SETTINGS)
        if turn.waits:
            self._peers = number
            self.peer += 2 * GiB
            await asyncio.sleep(turn.waits)
            self.peer -= 2 * GiB
            caretaker.expect(GPU, SETTINGS)
        await asyncio.sleep(0.000_5)  # Redis
        hold: Any = Hold(number, loop, clock.now())
        caretaker.begin(hold, SETTINGS)
        self.own += turn.cache + (turn.leaks if turn.first_line else 0)
        await asyncio.sleep(turn.lasts)
        self.own += 0 if turn.first_line else turn.leaks
        if turn.late:
            loop.call_later(turn.late, self._give_back, turn.cache)
        else:
            self._give_back(turn.cache)
        if turn.leaks:
            self.leaked.append((clock.now(), turn.leaks))
        hold.state = "released"
        caretaker.end(hold, in_order=True)

    def _give_back(self, size: int) -> None:
        self.own -= size

    # what came of it

    @property
    def named(self) -> list[tuple[float, int]]:
        return [(at, report.bytes or 0) for at, report in self.told if report.status == "not_freed"]


def play(turns: list[Turn], warm: int, peer: int) -> World:
    """The turns, and a pause after them."""

    async def story() -> World:
        world = World(warm, peer)
        for number, turn in enumerate(turns, 1):
            await world.take(number, turn)
        await asyncio.sleep(SETTINGS.settle_time + 1)
        return world

    return on_a_clock_of_its_own(story())


def on_a_clock_of_its_own(story: Coroutine[Any, Any, World]) -> World:
    loop = Clockwork()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", loop.time)
        patch.setenv("AIOGPULOCK_NVML_PIDS", "same")
        episode._episodes.clear()
        try:
            return loop.run_until_complete(story)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            episode._episodes.clear()


SIZES = st.sampled_from([0, 0, GiB, 4 * GiB])
CYCLES = st.sampled_from([0.0, 0.005, 0.1, 0.2, 0.5])
PAUSES = st.one_of(CYCLES, st.floats(0.1, 12))


@st.composite
def turns(draw: st.DrawFn, *, leaky: bool, pauses: st.SearchStrategy[float] = PAUSES) -> Turn:
    pause, waits = draw(pauses), draw(st.sampled_from([0.0, 0.0, 0.1, 0.4, 3.0]))
    loads = draw(SIZES) * (1 if leaky else draw(st.sampled_from([1, -1]))) if pause >= 0.1 else 0
    lasts, cache = draw(st.sampled_from([0.005, 0.03, 0.2, 1.0])), draw(SIZES)
    leaks = draw(st.sampled_from([0, 0, GiB, 3 * GiB])) if leaky else 0
    return Turn(pause, loads, waits, lasts, cache, 0.0, leaks, draw(st.booleans()))


@st.composite
def clean(draw: st.DrawFn) -> list[Turn]:
    """A cache may be given back late, by a timer: a look finds it back before anything else is loaded."""
    story = draw(st.lists(turns(leaky=False), min_size=1, max_size=12))
    after = [turn.pause / 2 for turn in story[1:]] + [SETTINGS.settle_time]
    lates = (draw(st.sampled_from([0.0, 0.03, 0.3, 2.0])) for _ in story)
    return [
        Turn(t.pause, t.loads, t.waits, t.lasts, t.cache, late if late + 0.35 < room else 0.0, 0, t.first_line)
        for t, late, room in zip(story, lates, after, strict=True)
    ]


@settings(deadline=None)
@given(clean(), SIZES, st.sampled_from([0, 3 * GiB]))
def test_no_clean_process_is_ever_said_to_leak(story: list[Turn], warm: int, peer: int) -> None:
    world = play(story, warm, peer)
    assert not world.named
    assert world.told, "one verdict, after the last hold at the latest"


@settings(deadline=None)
@given(st.lists(turns(leaky=True), min_size=1, max_size=12), SIZES, st.sampled_from([0, 3 * GiB]))
def test_every_leak_is_named_after_a_pause_and_nothing_else(story: list[Turn], warm: int, peer: int) -> None:
    world = play(story, warm, peer)
    check_that_no_more_is_named_than_was_left(world)
    assert sum(size for _, size in world.named) == sum(size for _, size in world.leaked)


@settings(deadline=None)
@given(
    st.lists(turns(leaky=True, pauses=st.sampled_from([0.1, 0.2, 0.5])), min_size=10, max_size=40),
    SIZES,
    st.sampled_from([0, 3 * GiB]),
)
def test_without_a_pause_every_leak_is_named_in_twice_the_settle_time(story: list[Turn], warm: int, peer: int) -> None:
    world = play(story, warm, peer)
    check_that_no_more_is_named_than_was_left(world)
    for at, _ in world.leaked:
        due = at + 2 * SETTINGS.settle_time + 2 * (0.5 + 3 + 1)
        named = sum(size for when, size in world.named if when <= due)
        assert named >= sum(size for when, size in world.leaked if when <= at)


def check_that_no_more_is_named_than_was_left(world: World) -> None:
    for at, _ in world.named:
        named = sum(size for when, size in world.named if when <= at)
        assert named <= sum(size for when, size in world.leaked if when <= at)


# in real time, with the default settings


@pytest.mark.integration
def test_a_leak_of_a_process_that_takes_turns_with_another_is_named(
    start_holder: Callable[..., Told], sim: Simulation, redis_cleanup: redis.Redis
) -> None:
    leaky, other = start_holder(), start_holder()
    stats, begun, size = f"{{gpu_lock:{uuid(0)}}}:stats", time.monotonic(), 0
    leaky.do("acquire")
    while not (named := redis_cleanup.hget(stats, "memory_not_freed")) and time.monotonic() < begun + 14:
        other.begin_to("acquire")
        leaky.do("look")
        time.sleep(0.2)
        size += GiB
        leaky.do("use", size=size)
        leaky.do("release")
        other.answer()
        leaky.begin_to("acquire")
        time.sleep(0.2)
        other.do("release")
        leaky.answer()
    assert named == "1"
    leaky.do("release")
    sim.use(0, 0, pid=leaky.pid)


async def test_a_leak_in_the_first_line_of_a_body_is_named_where_the_list_of_processes_is_slow(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    sim.call("compute").delay_ms = 50  # the body begins meanwhile
    sim.use(0, size := 4 * GiB)
    leases = []
    for leaks in (True, False, True, False, False, False):
        with behind_the_devices_figure(gpu_manager):
            lease = await gpu_manager.lock(0).acquire()
        size += GiB if leaks else 0
        sim.use(0, size)
        wait_for_looks()
        await lease.release()
        leases.append(lease)
        await asyncio.sleep(1.2)
    assert leases[0].memory_report is not None
    assert (leases[0].memory_report.status in NAMED, leases[0].memory_report.bytes) == (True, GiB)
    reports = await eventually(lambda: named(leases, 2), description="the other leak")
    assert [report.bytes for report in reports] == [GiB, GiB]


def named(leases: list[Lease], count: int) -> list[MemoryReport] | None:
    reports = [lease.memory_report for lease in leases]
    leaks = [report for report in reports if report is not None and report.bytes]
    return leaks if len(leaks) >= count else None
