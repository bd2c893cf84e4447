"""``aiogpulock status``: who has which GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aiogpulock.cli.options import GpuId, Target, json_option, target_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiogpulock.manager import GpuLockManager
    from aiogpulock.models import LockSnapshot


@click.command()
@click.argument("gpus", type=GpuId(), nargs=-1, metavar="[GPU]...")
@json_option
@target_options
def command(gpus: tuple[str, ...], as_json: bool, target: Target) -> None:
    """Show who holds which GPU, and how many wait.

    Without GPU, every lock that is known. States: free, held, handing over, draining (its memory is not back yet),
    foreign (another program's value), dead (its processes have ended), expired (no sign of life for a whole lease),
    quarantined (memory did not come back), unreadable (stderr says why, and what to do).
    """
    from aiogpulock.cli.app import complain
    from aiogpulock.cli.lock_words import gpu_name, is_free, known_devices
    from aiogpulock.cli.session import print_json, with_manager
    from aiogpulock.models import for_outside

    async def work(manager: GpuLockManager) -> None:
        locks, unreadable = await manager.look(gpus or None)
        missing = await _missing(manager, [lock for lock in locks if lock.gpu_id in gpus and is_free(lock)])
        locks = tuple(lock for lock in locks if lock.gpu_id not in missing)
        unreadable = {**unreadable, **missing}
        if as_json:
            print_json(server=manager.server, locks=[for_outside(lock) for lock in locks], unreadable=unreadable)
            return
        embedded = f", the embedded server, {manager.link.scope}" if manager.link.scope else ""
        click.echo(f"{manager.server}{embedded}", err=True)
        gpu_ids = [*(lock.gpu_id for lock in locks), *unreadable]
        devices = await known_devices(manager, gpu_ids)
        if gpu_ids:
            _show(locks, [gpu_name(gpu_id, devices) for gpu_id in gpu_ids])
        else:
            click.echo("no lock was used yet", err=True)
        for why in unreadable.values():
            complain(why)

    with_manager(target, work)


async def _missing(manager: GpuLockManager, free: Sequence[LockSnapshot]) -> dict[str, str]:
    """Which of these are no GPU of this host, and why: it would read as free."""
    from aiogpulock.errors import InvalidGpuError

    missing = {}
    for lock in free:
        try:
            await manager.device(lock.gpu_id)
        except InvalidGpuError as error:
            missing[lock.gpu_id] = str(error)
    return missing


def _show(locks: Sequence[LockSnapshot], names: Sequence[str]) -> None:
    """Names beyond those of the locks are of such as cannot be read."""
    from aiogpulock.cli.lock_words import STYLES, state_of, task_words
    from aiogpulock.cli.tables import Cell, make_table, show
    from aiogpulock.cli.words import duration, who

    def row(lock: LockSnapshot, name: str) -> tuple[Cell, ...]:
        state = state_of(lock)
        age = duration(lock.age) if lock.age is not None and state not in ("free", "quarantined") else ""
        holder = who(lock.user, lock.host, lock.pid)
        return name, (state, STYLES.get(state, "")), age, task_words(lock), holder, str(lock.waiters)

    rows = [row(lock, name) for lock, name in zip(locks, names, strict=False)]
    rows += [(name, ("unreadable", "red"), "", "", "", "") for name in names[len(locks) :]]
    heads = ("GPU", "STATE", ">FOR", "TASK", "HOLDER", ">WAITING")
    show(make_table(heads, rows, gives_way=["TASK"]))
