"""``aiogpulock release``: take a GPU away from its holder."""

from __future__ import annotations

import getpass
import sys

import click

from aiogpulock.cli.options import Target, target_options


@click.command()
@click.argument("gpu")
@click.option("-f", "--force", is_flag=True, help="Do not ask. Needed where there is no terminal.")
@click.option("--holder", metavar="ID", help="Only this holder (holder_id in status --json).")
@click.option("--reason", metavar="TEXT", default="operator", show_default=True, help="For the history of the lock.")
@target_options
def command(gpu: str, force: bool, holder: str | None, reason: str, target: Target) -> None:
    """Take a GPU away from whoever holds it now, and give it to the next in line.

    The holder's program is told at once, and is ended if it runs under `aiogpulock run`; a program that hangs may go on
    computing. Exactly the holder that was shown is ended, never its successor. Exit status 1: there was none to end.
    """
    if not force and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: say --force")

    from aiogpulock.cli.app import complain
    from aiogpulock.cli.exits import FAILED
    from aiogpulock.cli.lock_words import holder_words
    from aiogpulock.cli.session import look_at, with_manager
    from aiogpulock.liveness import this_process
    from aiogpulock.manager import GpuLockManager

    async def work(manager: GpuLockManager) -> str:
        seen = (await look_at(manager, [gpu]))[0]
        if seen.value is None:
            return f"nobody holds gpu {gpu}"
        if holder not in (None, seen.holder_id or seen.value):
            return f"gpu {gpu} is {holder_words(seen, seen.age)}, not by {holder}"
        if not force:
            click.echo(f"gpu {gpu} is {holder_words(seen, seen.age)}", err=True)
            click.confirm("Take it away?", abort=True, err=True)
        me = this_process()
        released = await manager.force_release(
            gpu,
            holder_id=seen.holder_id or seen.value,
            reason=reason,
            actor=f"{me.user or getpass.getuser()}@{me.host}",
        )
        return "" if released else f"gpu {gpu} was released meanwhile: nothing was done"

    trouble = with_manager(target, work)
    if trouble:
        complain(trouble)
        sys.exit(FAILED)
    click.echo(f"gpu {gpu} is released", err=True)
