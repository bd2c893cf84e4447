"""Loss reaches the body: cancelled as `asyncio.timeout` cancels its body, and told apart from other cancellations."""

from __future__ import annotations

import asyncio

from aiogpulock.errors import LeaseLostError, MemoryNotFreedError


class Body:
    """The code that one task runs under a lease. If its end is in another task, nothing is cancelled."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        self._cancelled = False

    @property
    def task(self) -> asyncio.Task[object] | None:
        return self._task

    def cancel(self, reason: str) -> None:
        """Cancel the body, unless its task has ended: a fixture's set-up task, for one."""
        if self._task is not None and not self._task.done() and not self._cancelled:
            self._cancelled = True
            self._task.cancel(f"GPU lease lost: {reason}")

    async def left(self, error: BaseException | None) -> bool:
        """Take our cancellation back. Answers whether `error` is that cancellation, and nobody else's."""
        task, self._task = self._task, None
        if not self._cancelled or task is None or task is not asyncio.current_task():
            return False
        pending = None
        if not isinstance(error, asyncio.CancelledError):
            # The body ended before our cancellation reached it: it would hit the next await.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as cancelled:
                pending = cancelled
        ours = task.uncancel() <= self._cancelling
        if pending is not None and not ours:
            raise pending  # an outside one came with it
        return ours and isinstance(error, asyncio.CancelledError)


def raise_loss(loss: LeaseLostError | MemoryNotFreedError, error: BaseException | None, *, ours: bool) -> None:
    """Decide what comes out of a body whose lease was lost, or whose memory did not come back.

    Its own exception stays, with the loss as a note; an outside cancellation wins; otherwise the loss is raised.
    """
    if error is None or ours:
        raise loss from None
    if not isinstance(error, asyncio.CancelledError | GeneratorExit) and str(error) != str(loss):
        error.add_note(f"{type(loss).__name__}: {loss}")
