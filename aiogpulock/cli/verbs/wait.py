"""``aiogpulock wait``: until a GPU is free, without taking it."""

from __future__ import annotations

import sys

import click

from aiogpulock.cli.options import Target, target_options

LOOK_EVERY = 0.5
"""Seconds. Waiters of a script that then starts something else: half a second is nothing to them."""


@click.command(short_help="Wait until nobody holds a GPU.")
@click.argument("gpu", default="0")
@click.option("-w", "--timeout", type=click.FloatRange(min=0), metavar="S", help="For at most S seconds; then 75.")
@target_options
def command(gpu: str, timeout: float | None, target: Target) -> None:
    """Wait until nobody holds a GPU (by default 0).

    It is not reserved: the next one may be faster. To use it, take it with `aiogpulock run`. Exit status 0: it was free
    at that moment; 75: not in time.
    """
    import asyncio

    from aiogpulock.cli.app import complain
    from aiogpulock.cli.exits import CONFLICT
    from aiogpulock.cli.lock_words import holder_words, state_of
    from aiogpulock.cli.session import look_at, with_manager
    from aiogpulock.manager import GpuLockManager
    from aiogpulock.models import LockSnapshot

    seen: list[LockSnapshot] = []

    async def work(manager: GpuLockManager) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    seen[:] = await look_at(manager, [gpu])
                    if state_of(seen[0]) in ("free", "dead", "expired", "quarantined") and not seen[0].queue:
                        return True
                    await asyncio.sleep(LOOK_EVERY)
        except TimeoutError:
            return False

    if not with_manager(target, work):
        complain(
            f"gpu {gpu} is not free after {timeout:g} s" + "".join(f": {holder_words(lock, lock.age)}" for lock in seen)
        )
        sys.exit(CONFLICT)
