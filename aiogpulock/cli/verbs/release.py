"""``aiogpulock release``: take a GPU away from its holder, or lift its quarantine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from aiogpulock.cli.options import GpuId, Target, target_options

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager


@click.command(short_help="Take a GPU away from its holder.")
@click.argument("gpu", type=GpuId(), metavar="GPU")
@click.option("-f", "--force", is_flag=True, help="Do not ask. Needed where there is no terminal.")
@click.option("--holder", metavar="ID", help="Only this holder (holder_id in status --json).")
@click.option("--quarantine", is_flag=True, help="Lift the GPU's quarantine instead.")
@click.option("--reason", metavar="TEXT", default="operator", show_default=True, help="For the history of the lock.")
@target_options
def command(gpu: str, force: bool, holder: str | None, quarantine: bool, reason: str, target: Target) -> None:
    """Take a GPU away from whoever holds it now, and give it to the next in line.

    The holder's program is told at once, and is ended if it runs under `aiogpulock run`; a program that hangs may go on
    computing. Exactly the holder that was shown is ended, never its successor. Exit status 1: there was none to end.
    """
    if not force and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: say --force")
    if holder and quarantine:
        raise click.UsageError("--holder and --quarantine exclude each other")

    from aiogpulock.cli.app import complain
    from aiogpulock.cli.exits import FAILED
    from aiogpulock.cli.session import with_manager

    async def work(manager: GpuLockManager) -> str:
        if quarantine:
            return await _lift(manager, gpu, reason, force=force)
        return await _end_holder(manager, gpu, holder, reason, force=force)

    trouble = with_manager(target, work)
    if trouble:
        complain(trouble)
        sys.exit(FAILED)
    click.echo(f"gpu {gpu} is released", err=True)


async def _end_holder(manager: GpuLockManager, gpu: str, holder: str | None, reason: str, *, force: bool) -> str:
    """Answers why nothing was done; empty if it was."""
    from aiogpulock.cli.lock_words import holder_words
    from aiogpulock.cli.session import look_at

    seen = await look_at(manager, gpu)
    if seen.ownership is None:
        return f"nobody holds gpu {gpu}"
    if holder not in (None, seen.holder_id or seen.ownership):
        return f"gpu {gpu} is {holder_words(seen, seen.age)}, not by {holder}"
    _ask(f"gpu {gpu} is {holder_words(seen, seen.age)}", "Take it away?", force=force)
    who = seen.holder_id or seen.ownership
    released = await manager.force_release(seen, holder_id=who, reason=reason, actor=_actor())
    return "" if released else f"gpu {gpu} was released meanwhile: nothing was done"


async def _lift(manager: GpuLockManager, gpu: str, reason: str, *, force: bool) -> str:
    from aiogpulock.cli.session import look_at

    seen = await look_at(manager, gpu)
    if seen.quarantine is None:
        return f"gpu {gpu} is not quarantined"
    _ask(f"gpu {gpu} is quarantined: {seen.quarantine}", "Lift it?", force=force)
    lifted = await manager.lift_quarantine(gpu, reason=reason, actor=_actor())
    return "" if lifted else f"the quarantine of gpu {gpu} was lifted meanwhile"


def _ask(what: str, question: str, *, force: bool) -> None:
    from aiogpulock.cli.words import plain

    if not force:
        click.echo(plain(what), err=True)
        click.confirm(question, abort=True, err=True)


def _actor() -> str:
    from aiogpulock.liveness import this_process

    me = this_process()
    return f"{me.user}@{me.host}"
