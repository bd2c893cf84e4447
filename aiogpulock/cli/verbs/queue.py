"""``aiogpulock queue``: who waits for a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aiogpulock.cli.options import GpuId, Target, json_option, target_options

if TYPE_CHECKING:
    from aiogpulock.models import LockSnapshot


@click.command(short_help="Show who waits for a GPU, and for how long still.")
@click.argument("gpu", type=GpuId(), metavar="[GPU]", default="0")
@json_option
@target_options
def command(gpu: str, as_json: bool, target: Target) -> None:
    """Show who waits for a GPU (by default 0), in order, and for how long still.

    The expected wait is made of the median of the last 20 holds.
    """
    from aiogpulock.cli.lock_words import expected_waits, is_free
    from aiogpulock.cli.session import look_at, print_json, usual_hold, with_manager
    from aiogpulock.manager import GpuLockManager
    from aiogpulock.models import for_outside

    async def work(manager: GpuLockManager) -> None:
        lock = await look_at(manager, gpu)
        if is_free(lock):
            await manager.device(gpu)  # one that is not there has no queue
        typical = await usual_hold(manager, lock)
        if as_json:
            expected = expected_waits(lock, typical)
            print_json(server=manager.server, lock=for_outside(lock), typical_hold=typical, expected_waits=expected)
        else:
            _show(gpu, lock, typical)

    with_manager(target, work)


def _show(gpu: str, lock: LockSnapshot, typical: float | None) -> None:
    from aiogpulock.cli.lock_words import QUEUE_HEADS, holder_words, queue_rows
    from aiogpulock.cli.tables import make_table, show
    from aiogpulock.cli.words import duration

    usual = f" · usual hold {duration(typical)}" if typical is not None else ""
    click.echo(f"gpu {gpu} · {holder_words(lock, lock.age)}{usual}", err=True)
    if not lock.queue:
        click.echo("nobody waits", err=True)
        return
    show(make_table(QUEUE_HEADS, queue_rows(lock, typical), gives_way=["TASK"]))
    unlisted = lock.waiters - lock.dead_waiters - len(lock.queue)
    if unlisted > 0:
        click.echo(f"and {unlisted} more", err=True)
