"""The one object that takes alerts and gets them to people."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable

from aiogpulock.alerts.channel import Channel, Sent
from aiogpulock.alerts.ledger import Ledger
from aiogpulock.alerts.notice import Notice
from aiogpulock.config import AlertSettings, Settings
from aiogpulock.incidents import AlertHook, log_alert
from aiogpulock.models import Alert


class Alerts:
    """Takes alerts from any thread, and delivers them on threads of its own.

    ``GpuLockManager(alert_hook=Alerts(settings.gpu_lock_alerts))`` tells people what goes wrong in this process by
    itself; a `GpuLockMonitor` does so for all processes. `log` gets what people get, too. Raises `ConfigError` for a
    URL that cannot be used, and without Apprise if there are URLs.
    """

    CLOSE_TIMEOUT = 10.0

    def __init__(self, settings: AlertSettings, *, log: AlertHook = log_alert) -> None:
        self.settings = settings
        self._channels = [Channel(url) for url in settings.urls]
        self._ledger = Ledger(settings.repeat_after)
        self._log = log
        self._lock = threading.Lock()

    def __call__(self, alert: Alert) -> None:
        """Something happened."""
        with self._lock:
            notices = self._ledger.event(alert)
        self._post(notices)

    def conditions(self, active: Iterable[Alert], *, speak: bool = True) -> None:
        """All that is the case now; what was the case at the last call and is not any more is resolved.

        Without `speak` it is only remembered: somebody else tells.
        """
        with self._lock:
            notices = self._ledger.conditions(active, speak=speak)
        self._post(notices)

    def reconfigure(self, settings: AlertSettings) -> None:
        """Go on with other settings, and with what has been told already. Raises `ConfigError`, and changes nothing."""
        channels = [Channel(url) for url in settings.urls]
        self.settings, old, self._channels = settings, self._channels, channels
        self._ledger.repeat_after = settings.repeat_after
        for channel in old:
            channel.close(0)

    async def close(self) -> None:
        """Deliver what waits, for at most `CLOSE_TIMEOUT` seconds."""
        deadline = time.monotonic() + self.CLOSE_TIMEOUT
        for channel in self._channels:
            await asyncio.to_thread(channel.close, max(0.0, deadline - time.monotonic()))

    def _post(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            if notice.kind == "resolved":
                self._log(
                    Alert(notice.alert.type, "warning", notice.alert.lock_key, f"resolved: {notice.alert.message}")
                )
            else:
                self._log(notice.alert)
            for channel in self._channels:
                channel.post(notice)


def send_test(settings: Settings) -> list[Sent]:
    """Send one test notice to each URL of `gpu_lock_alerts.urls`, all at once, and wait: some 10 s at most.

    Answers what became of each, in the order of the settings; no URL, no answer. This is what the verb ``alerts test``
    of the command line calls. Raises `ConfigError` for a URL that cannot be used, and without Apprise.
    """
    channels = [Channel(url) for url in settings.gpu_lock_alerts.urls]
    alert = Alert("test", "warning", "", "This is a test: alerts of aiogpulock arrive here.")
    notice = Notice(alert=alert, kind="test", at=time.time())
    sent: dict[int, Sent] = {}

    def send(index: int) -> None:
        sent[index] = channels[index].send(notice)

    threads = [threading.Thread(target=send, args=(index,), daemon=True) for index in range(len(channels))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [sent.get(index, Sent(channel.place, "no answer within 30 s")) for index, channel in enumerate(channels)]
