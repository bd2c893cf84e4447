"""``aiogpulock history``: who had a GPU, and how that ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aiogpulock.cli.options import GpuId, Target, json_option, target_options

if TYPE_CHECKING:
    from aiogpulock.models import HistoryEvent


@click.command(short_help="Show who had a GPU, and how that ended.")
@click.argument("gpu", type=GpuId(), metavar="[GPU]", default="0")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N", help="How many."
)
@json_option
@target_options
def command(gpu: str, limit: int, as_json: bool, target: Target) -> None:
    """Show the last holds of a GPU (by default 0), newest first, and whatever else was done to its lock.

    About 1,000 events of each lock are kept in Redis.
    """
    from aiogpulock.cli.session import print_json, with_manager
    from aiogpulock.manager import GpuLockManager

    async def work(manager: GpuLockManager) -> None:
        events = await manager.history(gpu, limit=limit)
        if not events:
            await manager.device(gpu)  # one that is not there has none
        if as_json:
            print_json(server=manager.server, events=events)
        elif events:
            _show(events)
        else:
            click.echo(f"gpu {gpu} has no history yet", err=True)

    with_manager(target, work)


def _show(events: list[HistoryEvent]) -> None:
    from datetime import datetime

    from aiogpulock.cli.tables import make_table, show
    from aiogpulock.cli.words import duration

    rows = [
        (
            datetime.fromtimestamp(event.at).strftime("%m-%d %H:%M:%S"),
            event.event,
            event.task_name,
            duration(event.wait),
            duration(event.hold),
            event.reason + (f", by {event.actor}" if event.actor else ""),
        )
        for event in events
    ]
    heads = ("ENDED", "EVENT", "TASK", ">WAITED", ">HELD", "REASON")
    show(make_table(heads, rows, gives_way=["TASK", "REASON"]))
