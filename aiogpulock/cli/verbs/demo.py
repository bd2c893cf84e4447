"""``aiogpulock demo``: see the lock work."""

from __future__ import annotations

import click

from aiogpulock.cli.options import Seconds


@click.command(short_help="Watch processes take turns, and one of them die.")
@click.option(
    "--workers",
    type=click.IntRange(2, 32),
    default=4,
    show_default=True,
    metavar="N",
    help="How many processes contend.",
)
@click.option(
    "--seconds",
    type=Seconds(1, 3600),
    default=8,
    show_default=True,
    metavar="S",
    help="For how long they contend.",
)
@click.option(
    "--redis-url",
    metavar="URL",
    help="Use this Redis instead of the embedded server.",
)
def command(workers: int, seconds: float, redis_url: str | None) -> None:
    """Watch processes take turns on one GPU lock, and one of them die.

    Several worker processes contend for GPU 0. Midway the one that holds it is killed with SIGKILL; the next one enters
    as soon as the kernel tells that it is dead. No GPU is needed and none is touched.

    A referee that knows nothing of Redis compares the times at which the workers say that they entered and left. The
    exit status is 0 if no two of them were inside at once and the fencing tokens rose, else 1.

    The demo has a namespace of its own, which it removes at the end. It reads no settings, and without --redis-url it
    always uses the embedded server, whatever REDIS_URL says.
    """
    from aiogpulock.cli.demo import run_demo

    raise SystemExit(run_demo(workers, seconds, redis_url))
