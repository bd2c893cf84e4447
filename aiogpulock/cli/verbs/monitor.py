"""``aiogpulock monitor``: free what is dead, and tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aiogpulock.cli.options import Target, target_options

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager
    from aiogpulock.models import Alert
    from aiogpulock.monitor import Round


@click.command(short_help="Free what is dead, and tell.")
@click.option("--once", is_flag=True, help="One round, for cron; status 1 if it was in vain.")
@click.option("--dry-run", is_flag=True, help="Only tell what is dead; as auto_recovery: false.")
@target_options
def command(once: bool, dry_run: bool, target: Target) -> None:
    """Watch all locks, free what is dead, and tell on stdout what was found and done.

    It goes by the section gpu_lock_monitor, and does nothing if `enabled` is false there. Waiters repair most of this
    themselves; a monitor also sees to locks that nobody waits for, and to values of other programs. Several monitors
    may run at once.
    """
    import asyncio
    import os
    import signal
    from contextlib import suppress

    from aiogpulock.cli.session import end_in_order_at_hang_up
    from aiogpulock.config import redact_url
    from aiogpulock.errors import RedisUnavailableError
    from aiogpulock.monitor import GpuLockMonitor

    async def start(manager: GpuLockManager) -> str:
        """Whoever watches Redis tells people that it is away, also at the start. Answers what it watches."""
        with suppress(RedisUnavailableError):
            await manager.started()
        return redact_url(manager.link.url) or "the embedded Redis"

    async def work() -> None:
        """A service manager ends it by SIGTERM: what waits is still sent, and another monitor may speak at once."""
        if (me := asyncio.current_task()) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
            end_in_order_at_hang_up()
        manager = target.manager()
        overrides: dict[str, Any] = {"auto_recovery": False} if dry_run else {}
        teller = _Teller()
        monitor = GpuLockMonitor(manager, on_round=teller.tell, alert_log=teller.alert, **overrides)
        try:
            if once:
                await manager.started()
                _judge(await monitor.round())
            else:
                where = await start(manager)
                click.echo(f"watching {where} every {monitor.settings.monitor_interval:g} s", err=True)
                await monitor.run()
        finally:
            await monitor.close()
            await manager.close()

    source = target.source()
    if not source.current().gpu_lock_monitor.enabled:
        by = source.origins.get("gpu_lock_monitor.enabled", "default")
        click.echo(f"the monitor is switched off: gpu_lock_monitor.enabled is false ({by})", err=True)
        return
    try:
        asyncio.run(work())
    except asyncio.CancelledError:
        os.kill(os.getpid(), signal.SIGTERM)  # its handler went with the loop: die of it as without us


def _judge(seen: Round) -> None:
    """For cron. Raises what ends the program if the round was in vain."""
    from aiogpulock.errors import GpuLockError

    if seen.error:
        raise GpuLockError(seen.error)
    if seen.failed:
        failure = seen.failed[0]
        raise GpuLockError(f"{failure.repair.key} could not be repaired ({failure.repair.detail}): {failure.error}")


class _Teller:
    """Says each thing once: what stays dead is no news in the next round."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def tell(self, seen: Round) -> None:
        repaired = {repair.key for repair in seen.repaired}
        for repair in seen.repaired:
            self._say(repair.key, f"{repair.action.replace('_', ' ')}: {repair.detail}")
        if seen.error:
            return  # there is an alert of its own; what was known stays known
        for zombie in seen.zombies:
            if zombie.key not in repaired and (zombie.key, zombie.kind) not in self._known:
                self._say(zombie.key, f"found dead: {zombie.detail}")
        self._known = {(zombie.key, zombie.kind) for zombie in seen.zombies}

    def alert(self, alert: Alert) -> None:
        if not alert.type.startswith("zombie_lock"):  # those are told as what they are: found, and repaired
            self._say(alert.type, alert.message)

    def _say(self, what: str, text: str) -> None:
        from datetime import datetime

        from aiogpulock.cli.words import plain

        click.echo(f"{datetime.now().strftime('%Y-%m-%d %H:%M:%S')} {plain(what)}: {plain(text)}")
