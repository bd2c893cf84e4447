"""Errands: calls that nobody waits for, repeated until Redis has answered each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from aiogpulock.errands import Errand, Errands
from aiogpulock.errors import ProtocolError, RedisUnavailableError
from tests.unit.support import eventually


class Quick(Errands):
    RETRY = 0.01


def errand(done: list[str], name: str, *failures: Exception) -> Errand:
    left = list(failures)

    async def run() -> None:
        await asyncio.sleep(0)
        done.append(name)
        if left:
            raise left.pop(0)

    return run


def ended(errands: Errands) -> Callable[[], bool]:
    return lambda: errands._task is not None and errands._task.done()


async def test_errands_run_in_order_and_their_task_ends() -> None:
    errands, done = Quick(), list[str]()
    for name in "abc":
        errands.add(name, errand(done, name))
    await eventually(ended(errands), description="the errands to be done")
    assert done == ["a", "b", "c"]
    errands.add("d", errand(done, "d"))
    await eventually(lambda: done[-1] == "d", description="a later one to be done")
    await errands.close()


async def test_an_errand_is_repeated_while_redis_is_away_and_holds_the_later_ones_back() -> None:
    errands, done = Quick(), list[str]()
    away = RedisUnavailableError("away")
    errands.add("a", errand(done, "a", away, away))
    errands.add("b", errand(done, "b"))
    await eventually(ended(errands), description="the errands to be done")
    assert done == ["a", "a", "a", "b"]


async def test_an_errand_that_redis_refuses_is_logged_and_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    errands, done = Quick(), list[str]()
    errands.add("a", errand(done, "a", ProtocolError("no")))
    errands.add("b", errand(done, "b"))
    await eventually(ended(errands), description="the errands to be done")
    assert done == ["a", "b"]
    assert "a failed: no" in caplog.text


async def test_an_errand_of_the_same_name_replaces_the_one_that_waits() -> None:
    errands, done = Quick(), list[str]()
    errands.add("a", errand(done, "first"))
    errands.add("a", errand(done, "second"))
    await eventually(ended(errands), description="the errands to be done")
    assert done == ["second"]


async def test_a_replacement_that_comes_while_its_predecessor_runs_is_not_lost() -> None:
    errands, done = Quick(), list[str]()

    async def replaces_itself() -> None:
        done.append("first")
        errands.add("a", errand(done, "second"))

    errands.add("a", replaces_itself)
    await eventually(ended(errands), description="the errands to be done")
    assert done == ["first", "second"]


async def test_too_many_are_dropped_and_told(caplog: pytest.LogCaptureFixture) -> None:
    errands, done = Quick(), list[str]()
    errands.MOST = 2  # type: ignore[misc]
    for name in "abc":
        errands.add(name, errand(done, name))
    errands.add("a", errand(done, "a again"))  # one that is known already takes no room
    await eventually(ended(errands), description="the errands to be done")
    assert done == ["a again", "b"]
    assert "dropped c" in caplog.text


async def test_close_tries_each_that_is_left_once_more() -> None:
    errands, done = Errands(), list[str]()
    errands.add("a", errand(done, "a", RedisUnavailableError("away")))
    errands.add("b", errand(done, "b"))
    await eventually(lambda: done, description="the first attempt")
    await errands.close()
    assert done == ["a", "a", "b"]


async def test_close_does_not_insist_while_redis_is_away() -> None:
    errands, done = Errands(), list[str]()
    away = RedisUnavailableError("away")
    errands.add("a", errand(done, "a", away, away, away))
    errands.add("b", errand(done, "b"))
    await eventually(lambda: done, description="the first attempt")
    await errands.close()
    assert done == ["a", "a"]
