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
    from aiogpulock.cli.lock_words import is_free
    from aiogpulock.cli.session import look_at, print_json, usual_hold, with_manager
    from aiogpulock.history import expected_wait
    from aiogpulock.manager import GpuLockManager
    from aiogpulock.models import for_outside

    async def work(manager: GpuLockManager) -> None:
        lock = await look_at(manager, gpu)
        if is_free(lock):
            await manager.device(gpu)  # one that is not there has no queue
        typical = await usual_hold(manager, lock)
        expected = [expected_wait(typical, place, lock.age) for place, _ in enumerate(lock.queue, start=1)]
        if as_json:
            print_json(server=manager.server, lock=for_outside(lock), typical_hold=typical, expected_waits=expected)
        else:
            _show(gpu, lock, typical, expected)

    with_manager(target, work)


def _show(gpu: str, lock: LockSnapshot, typical: float | None, expected: list[float | None]) -> None:
    from aiogpulock.cli.lock_words import holder_words
    from aiogpulock.cli.tables import make_table, show
    from aiogpulock.cli.words import duration, who

    usual = f" · usual hold {duration(typical)}" if typical is not None else ""
    click.echo(f"gpu {gpu} · {holder_words(lock, lock.age)}{usual}", err=True)
    if not lock.queue:
        click.echo("nobody waits", err=True)
        return
    rows = [
        (
            str(place),
            waiter.task_name,
            who(waiter.user, waiter.host, waiter.pid),
            duration(lock.at - waiter.since),
            f"~{duration(eta)}" if eta is not None else "",
        )
        for place, (waiter, eta) in enumerate(zip(lock.queue, expected, strict=True), start=1)
    ]
    show(make_table((">#", "TASK", "WHO", ">WAITED", ">EXPECTED"), rows, gives_way=["TASK"]))
    if lock.waiters > len(lock.queue):
        click.echo(f"and {lock.waiters - len(lock.queue)} more", err=True)
