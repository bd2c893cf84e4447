"""`@gpu_lock(0)` on functions, methods and async generators."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from aiogpulock import GpuLockManager, LeaseLostError, gpu_lock
from tests.unit.support import current, eventually


async def value(manager: GpuLockManager) -> str:
    held_as = await current(manager)
    return held_as.rpartition(":")[0] if held_as else "free"


async def test_a_function_runs_under_the_lock_with_arguments_and_result_untouched(manager: GpuLockManager) -> None:
    @manager.lock(0)
    async def infer(batch: list[int], /, *more: int, scale: int = 1, **options: Any) -> tuple[Any, ...]:
        """Infers."""
        return batch, more, scale, options, await value(manager)

    batch = [1]
    result = await infer(batch, 2, 3, scale=4, key="v")
    assert result[0] is batch
    assert result[1:4] == ((2, 3), 4, {"key": "v"})
    assert "infer" in result[4]
    assert await value(manager) == "free"


def test_a_decorated_function_looks_like_itself() -> None:
    async def infer(batch: list[int], *, scale: int = 1) -> int:
        """Infers."""
        return scale

    decorated = gpu_lock(0)(infer)
    assert inspect.iscoroutinefunction(decorated)
    assert (decorated.__name__, decorated.__doc__) == ("infer", "Infers.")
    assert inspect.signature(decorated) == inspect.signature(infer)
    assert decorated.__wrapped__ is infer  # type: ignore[attr-defined]


async def test_the_function_s_name_is_shown_unless_the_user_gave_one(manager: GpuLockManager) -> None:
    async def infer() -> str:
        return await value(manager)

    assert (await manager.lock(0)(infer)()).endswith(".infer")
    assert await manager.lock(0, task_name="asr")(infer)() == "locked_by_asr"


async def test_methods_keep_their_instance_and_their_class(manager: GpuLockManager) -> None:
    lock = manager.lock(0)

    class Model:
        name = "class"

        def __init__(self) -> None:
            self.name = "instance"

        @lock
        async def method(self, x: int) -> tuple[str, int, bool]:
            return self.name, x, await value(manager) != "free"

        @classmethod
        @lock
        async def of_class(cls, x: int) -> tuple[str, int, bool]:
            return cls.name, x, await value(manager) != "free"

        @staticmethod
        @lock
        async def static(x: int) -> tuple[int, bool]:
            return x, await value(manager) != "free"

    assert await Model().method(1) == ("instance", 1, True)
    assert await Model.of_class(2) == ("class", 2, True)
    assert await Model.static(3) == (3, True)


async def test_an_exception_of_the_function_comes_out(manager: GpuLockManager) -> None:
    @manager.lock(0)
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await value(manager) == "free"


def test_a_plain_function_is_refused_and_told_where_to_go() -> None:
    with pytest.raises(TypeError, match=r"aiogpulock\.sync"):

        @gpu_lock(0)
        def infer() -> None: ...

    with pytest.raises(TypeError, match=r"aiogpulock\.sync"):

        @gpu_lock(0)
        def generate() -> Any:
            yield


# async generators


async def test_an_async_generator_holds_the_lock_from_its_first_step_to_its_end(manager: GpuLockManager) -> None:
    @manager.lock(0)
    async def tokens(count: int) -> AsyncGenerator[int, None]:
        for number in range(count):
            yield number

    generator = tokens(2)
    assert inspect.isasyncgen(generator)
    assert await value(manager) == "free"
    seen = [(number, await value(manager) != "free") async for number in generator]
    assert seen == [(0, True), (1, True)]
    assert await value(manager) == "free"


async def test_asend_and_athrow_reach_the_generator(manager: GpuLockManager) -> None:
    @manager.lock(0)
    async def echo() -> AsyncGenerator[Any, Any]:
        got: Any = "ready"
        while True:
            try:
                got = yield got
            except ValueError as error:
                got = f"caught {error}"

    generator = echo()
    assert await anext(generator) == "ready"
    assert await generator.asend("hello") == "hello"
    assert await generator.athrow(ValueError("this")) == "caught this"
    with pytest.raises(KeyError, match="that"):
        await generator.athrow(KeyError("that"))
    assert await value(manager) == "free"


async def test_aclose_closes_the_generator_before_the_lock_is_released(manager: GpuLockManager) -> None:
    at_close = []

    @manager.lock(0)
    async def tokens() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            at_close.append(await value(manager) != "free")

    generator = tokens()
    await anext(generator)
    await generator.aclose()
    assert at_close == [True]
    assert await value(manager) == "free"


async def test_an_exception_inside_a_step_comes_out_and_frees_the_lock(manager: GpuLockManager) -> None:
    @manager.lock(0)
    async def tokens() -> AsyncGenerator[int, None]:
        yield 1
        raise ZeroDivisionError

    generator = tokens()
    await anext(generator)
    with pytest.raises(ZeroDivisionError):
        await anext(generator)
    assert await value(manager) == "free"


async def test_a_loss_inside_a_step_cancels_it(manager: GpuLockManager) -> None:
    inside = asyncio.Event()
    cancelled = []

    @manager.lock(0)
    async def tokens() -> AsyncGenerator[int, None]:
        yield 1
        inside.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def use() -> None:
        async for _ in tokens():
            pass

    task = asyncio.create_task(use())
    await inside.wait()
    assert await manager.force_release(0)
    with pytest.raises(LeaseLostError) as caught:
        await task
    assert caught.value.reason == "forced"
    assert cancelled == [True]


async def test_a_loss_between_yields_cancels_nobody_and_shows_at_the_next_step(manager: GpuLockManager) -> None:
    closed = []

    @manager.lock(0, on_lost=closed.append)
    async def tokens() -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            closed.append("closed")

    generator = tokens()
    await anext(generator)
    assert await manager.force_release(0)
    await eventually(lambda: closed, description="the loss to be told")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with pytest.raises(LeaseLostError) as caught:
        await anext(generator)
    assert caught.value.reason == "forced"
    assert closed == ["forced", "closed"]


async def test_the_generator_s_own_exception_wins_over_a_loss_which_becomes_a_note(manager: GpuLockManager) -> None:
    inside = asyncio.Event()

    @manager.lock(0)
    async def tokens() -> AsyncGenerator[int, None]:
        inside.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ZeroDivisionError from None
        yield 1

    async def first() -> int:
        return await anext(tokens())

    task = asyncio.create_task(first())
    await inside.wait()
    assert await manager.force_release(0)
    with pytest.raises(ZeroDivisionError) as caught:
        await task
    assert [note for note in caught.value.__notes__ if note.startswith("LeaseLostError: the lease on gpu_lock:0")]
