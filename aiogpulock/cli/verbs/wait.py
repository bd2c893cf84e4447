"""``aiogpulock wait``: until a GPU is free, without taking it."""

from __future__ import annotations

import math
import sys

import click

from aiogpulock.cli.options import WAIT, GpuId, Target, target_options


@click.command(short_help="Wait until nobody holds a GPU.")
@click.argument("gpu", type=GpuId(), metavar="[GPU]", default="0")
@click.option("-w", "--timeout", type=WAIT, metavar="S", help="For at most S seconds, then 75; 0 only asks.")
@target_options
def command(gpu: str, timeout: float | None, target: Target) -> None:
    """Wait until nobody holds a GPU (by default 0).

    It is not reserved: the next one may be faster. To use it, take it with `aiogpulock run`. Exit status 0: it was free
    at that moment; 75: not in time.
    """
    from aiogpulock.cli.app import complain
    from aiogpulock.cli.exits import CONFLICT
    from aiogpulock.cli.lock_words import holder_words, is_free
    from aiogpulock.cli.session import with_manager
    from aiogpulock.cli.until_free import until_free

    lock = with_manager(target, lambda manager: until_free(manager, gpu, None if timeout == math.inf else timeout))
    if not is_free(lock):
        complain(f"gpu {gpu} is not free after {timeout:g} s: {holder_words(lock, lock.age)}")
        sys.exit(CONFLICT)
