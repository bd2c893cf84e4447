"""Which looks at a process between its holds count, and for which hold."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiogpulock import clock
from aiogpulock.episode import STALE, Before, Episode
from aiogpulock.foreign import Family
from aiogpulock.gpu.nvml import Nvml
from aiogpulock.gpu.samples import MemorySample, Terms, sample_of
from tests.gpu.test_again_and_again import Hold
from tests.helpers import wait_until
from tests.nvml_sim import GiB, Simulation, uuid

ME = frozenset({os.getpid()})


class Verdict:
    """One to come."""

    is_stranded = False

    def give_up(self) -> None:
        """Nobody waits for it."""


@pytest.fixture
def nvml(sim: Simulation) -> Iterator[Nvml]:
    nvml = Nvml(deadline=2)
    yield nvml
    sim.close()
    nvml.close()
    wait_until(lambda: nvml._thread is None, description="the thread ends")


@pytest.fixture
def look(nvml: Nvml) -> Callable[[], Before]:
    return lambda: Before(nvml, uuid(0), Family(ME))


async def seen(nvml: Nvml) -> MemorySample:
    return sample_of(await nvml.read(uuid(0)), ME)


def a_hold() -> Any:
    return Hold(1, asyncio.get_running_loop(), clock.now())


async def test_what_was_seen_when_a_hold_was_asked_for_gives_way_to_a_later_look(
    sim: Simulation, nvml: Nvml, look: Callable[[], Before]
) -> None:
    episode, first, verdict = Episode(), a_hold(), Verdict()
    await episode.begin(first, look).seen(twice=False)
    sim.use(0, 3 * GiB)  # a cache, which a timer gives back
    first.state = "released"
    episode.end(first, verdict)
    episode.saw(verdict, first, 0, await seen(nvml), Terms())
    episode.expect(look)
    await seen(nvml)
    sim.use(0, 0)
    assert episode.judged(await seen(nvml), verdict)
    await asyncio.sleep(STALE * 1.2)
    before = episode.begin(a_hold(), look)
    assert before.idle is not None
    assert before.idle.own == 0


async def test_what_was_seen_first_of_a_process_that_waits_is_kept(
    sim: Simulation, nvml: Nvml, look: Callable[[], Before]
) -> None:
    episode = Episode()
    sim.use(0, 4 * GiB)
    episode.expect(look)
    await seen(nvml)
    await asyncio.sleep(STALE * 1.2)
    episode.expect(look)
    before = episode.begin(a_hold(), look)
    assert before.idle is not None
    assert (before.idle.own, before.due) == (4 * GiB, 4 * GiB)
