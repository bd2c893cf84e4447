"""Cancel a coroutine at every await in turn, to see what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Literal

Moment = Literal["waiting", "answered"]
"""waiting: what is awaited is cancelled with the task. answered: it was done just before, and its result is lost."""


class Cut:
    """Awaits `operation` and cancels the current task at its `number`-th suspension, and at the `more` after it.

    `meanwhile` is called just before the first cancellation: something that happens at that very moment.
    """

    def __init__(
        self,
        number: int,
        moment: Moment = "waiting",
        *,
        more: int = 0,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        self.count = 0
        """Suspensions so far."""
        self.fired = False
        self._cuts = range(number, number + more + 1)
        self._moment = moment
        self._meanwhile = meanwhile
        self._operation: Awaitable[Any] | None = None

    def __call__(self, operation: Awaitable[Any]) -> Cut:
        self._operation = operation
        return self

    def __await__(self) -> Generator[Any, Any, Any]:
        assert self._operation is not None
        steps = self._operation.__await__()
        error: BaseException | None = None
        while True:
            try:
                awaited = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.count += 1
            if self.count in self._cuts:
                self._cancel(awaited)
            try:
                yield awaited
            except BaseException as raised:
                error = raised
            else:
                error = None

    def _cancel(self, awaited: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not self.fired:
            self.fired = True
            self._meanwhile()
        if self._moment == "waiting" or awaited is None:
            task.cancel()
        else:
            # Called before the task's own wake-up, which is registered after this.
            awaited.add_done_callback(lambda _: task.cancel())
