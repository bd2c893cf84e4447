"""``aiogpulock serve``: health, status, metrics and a live page over HTTP."""

from __future__ import annotations

import sys

import click

LEVELS = ("critical", "error", "warning", "info", "debug")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8470, show_default=True, help="0 takes a free one.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", help="A further name of this server.")
@click.option("--monitor/--no-monitor", default=None, help="Free what is dead, too; else as gpu_lock_monitor.enabled.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What stderr tells.")
@click.option("--redis-url", metavar="URL", help="Server of the locks; else REDIS_URL, config.yml, the embedded one.")
@click.option("--config", metavar="FILE", help="Settings; else AIOGPULOCK_CONFIG, ./config.yml, defaults.")
def command(
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    monitor: bool | None,
    log_level: str,
    redis_url: str | None,
    config: str | None,
) -> None:
    """Serve health, status, metrics and a live page over HTTP.

    Read-only, unless AIOGPULOCK_SERVER_TOKEN is set: then whoever has the token may release a lock by force. Needs the
    extra [server].
    """
    from aiogpulock.cli.app import complain, listen
    from aiogpulock.cli.exits import FAILED, USAGE
    from aiogpulock.cli.session import end_in_order_at_hang_up

    try:
        from aiogpulock.web import serve
    except ImportError as error:
        complain(str(error))
        sys.exit(USAGE)
    listen(log_level)
    end_in_order_at_hang_up()
    try:
        serve(
            host=host,
            port=port,
            redis_url=redis_url,
            config=config,
            allowed_hosts=allowed_hosts,
            monitor=monitor,
            log_level=log_level,
        )
    except SystemExit:  # it could not listen, and has said why
        sys.exit(FAILED)
