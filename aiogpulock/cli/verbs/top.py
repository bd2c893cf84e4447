"""``aiogpulock top``: a live view of all locks."""

from __future__ import annotations

import click

from aiogpulock.cli.options import Seconds, Target, target_options


@click.command()
@click.option(
    "--interval",
    type=Seconds(0.2, 3600),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print one picture and end, as in a pipe.")
@target_options
def command(interval: float, once: bool, target: Target) -> None:
    """Watch holders, queues and GPU memory. q quits.

    GPU memory is that of this host, and needs its NVIDIA driver; everything else comes from Redis and covers all hosts.
    """
    import sys

    from aiogpulock.cli.session import with_manager
    from aiogpulock.cli.top_loop import print_once, watch
    from aiogpulock.manager import GpuLockManager

    async def work(manager: GpuLockManager) -> None:
        if once or not sys.stdout.isatty():
            await print_once(manager)
        else:
            await watch(manager, interval)

    with_manager(target, work)
