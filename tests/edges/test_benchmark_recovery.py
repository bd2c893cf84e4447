"""The cases of the recovery times, with a lock that polls, never renews its lease, and tells of each release."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks import cases
from benchmarks.arena import Arena, Contender, DoesNotRunError
from benchmarks.contender import Setup
from benchmarks.peers import OURS, Peer, patience
from benchmarks.scenarios import recovery

POLLING = Peer(__name__, "polling", (), threads=False, polls=0.02, messages=True)


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from redis.asyncio import Redis

    client = Redis.from_url(setup.url, retry=patience())

    class Hold:
        async def __aenter__(self) -> None:
            while not await client.set(setup.lock, "held", nx=True, px=round(setup.lease * 1000)):
                await asyncio.sleep(POLLING.polls)

        async def __aexit__(self, *error: object) -> None:
            await client.delete(setup.lock)
            await client.publish(setup.lock, "left")

    yield Hold
    await client.aclose()


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


def test_the_start_of_a_process_takes_nothing_of_a_lease_that_nobody_renews(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Arena.start

    def slow_start(*arguments: Any) -> Contender:
        time.sleep(1.5)
        return start(*arguments)

    monkeypatch.setattr(Arena, "start", slow_start)
    monkeypatch.setattr(cases, "PHASE", 0.0)
    (waited,) = cases.killed(arena, POLLING, 1)
    assert waited == pytest.approx(cases.LEASE - cases.SETTLE, abs=0.8)


def test_a_lease_that_ran_out_before_the_kill_gives_no_figure(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "SETTLE", cases.LEASE + 0.2)
    with pytest.raises(DoesNotRunError, match="its lease had run out before anything went wrong"):
        cases.killed(arena, POLLING, 1)


def test_a_lost_message_is_timed_although_the_release_fails(arena: Arena) -> None:
    (waited,) = cases.lost_message(arena, POLLING, 1)
    assert 0 < waited < 1, "not the end of its lease"


def test_each_process_elsewhere_has_a_host_of_its_own(arena: Arena) -> None:
    (waited,) = cases.killed_elsewhere(arena, OURS, 1)
    assert waited > 1, "on the same host it is a matter of milliseconds"


def test_a_restart_costs_one_lock_its_holder_and_the_other_one_a_grace(arena: Arena) -> None:
    found = cases.server_restart(arena, [OURS, POLLING])
    ours, polling = found[OURS], found[POLLING]
    assert ours.kept
    assert ours.held.endswith("after the release")
    assert isinstance(ours.free, float)
    assert ours.free > 4
    assert not polling.kept
    assert polling.held.startswith("two bodies at once")
    assert isinstance(polling.free, float)
    assert polling.free < 2


def test_an_interrupt_does_not_wait_for_what_the_threads_wait_for(arena: Arena) -> None:
    began = time.monotonic()

    def case() -> None:
        with cases.Scene(arena, POLLING, "interrupted") as scene:
            (process,) = scene.crew(1)
            process.entered(60)  # it was told nothing

    with pytest.raises(KeyboardInterrupt), cases.abreast(arena, 1) as pool:
        running, waiting = pool.submit(case), pool.submit(case)
        time.sleep(2)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10
    assert running.done()
    assert waiting.cancelled()


def test_a_target_says_how_many_samples_it_is_the_largest_of() -> None:
    samples = {name: [0.01] * 30 for name in cases.CASES} | {"message lost": [0.01] * 4}
    targets = recovery._targets(samples, cases.Restart(True, "", 5.0))
    whats = [target.what for target in targets]
    assert whats[0] == "SIGKILL on the same host, largest of 30"
    assert whats[4] == "lost message: its backstop and its jitter, largest of 4"
    assert targets[4].limit == "≤ 1.1 s"
    samples["holder killed here"] *= 4
    assert recovery._targets(samples, cases.Restart(True, "", 5.0))[0].what == "SIGKILL on the same host, p99"
