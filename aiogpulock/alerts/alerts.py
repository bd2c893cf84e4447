"""The one object that takes alerts and gets them to people."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterable
from functools import cache

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
        self._channels = {url: Channel(url) for url in settings.urls}
        self._retired: list[Channel] = []
        self._ledger = Ledger(settings.repeat_after)
        self._log = log
        self._lock = threading.Lock()

    @property
    def audience(self) -> str:
        """Who is told, as a short text, the same for the same URLs; empty: a log alone, which is nobody else's."""
        return _digest(tuple(sorted(self._channels))) if self._channels else ""

    def __call__(self, alert: Alert, *, spoken_until: float | None = None) -> None:
        """Something happened. `spoken_until` as for `conditions`."""
        with self._lock:
            notices = self._ledger.event(alert, spoken_until=spoken_until)
            self._post(notices)
        self._tell_log(notices)

    def conditions(
        self,
        active: Iterable[Alert],
        *,
        own: Iterable[Alert] = (),
        complete: bool = True,
        spoken_until: float | None = None,
    ) -> None:
        """All that is the case now; what was the case at the last call and is not any more is resolved.

        Not `complete`: only what is in `active` is known, and nothing is resolved. With `spoken_until`, on `clock.now`,
        it is only remembered: somebody else tells people, and had told all until then. `own` is the case as well, and
        nobody else can see it.
        """
        with self._lock:
            notices = self._ledger.conditions(active, own=own, complete=complete, spoken_until=spoken_until)
            self._post(notices)
        self._tell_log(notices)

    def reconfigure(self, settings: AlertSettings) -> None:
        """Go on with other settings, and with what has been told already. Raises `ConfigError`, and changes nothing."""
        channels = {url: self._channels.get(url) or Channel(url) for url in settings.urls}
        with self._lock:
            dropped = [channel for url, channel in self._channels.items() if url not in channels]
            self._retired = [channel for channel in self._retired if channel.busy] + dropped
            self.settings, self._channels = settings, channels
            self._ledger.repeat_after = settings.repeat_after
        for channel in dropped:
            channel.end()

    async def close(self) -> None:
        """Deliver what waits, for at most `CLOSE_TIMEOUT` seconds."""
        deadline = time.monotonic() + self.CLOSE_TIMEOUT
        channels = [*self._channels.values(), *self._retired]
        for channel in channels:
            channel.end(hurry=True)
        for channel in channels:
            await asyncio.to_thread(channel.join, max(0.0, deadline - time.monotonic()))

    def _post(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            for channel in self._channels.values():
                channel.post(notice)

    def _tell_log(self, notices: Iterable[Notice]) -> None:
        """Outside the lock: the hook is somebody else's code."""
        for notice in notices:
            alert = notice.alert
            if notice.kind == "resolved":
                alert = Alert(alert.type, "warning", alert.lock_key, f"resolved: {alert.message}")
            self._log(alert)


@cache
def _digest(urls: tuple[str, ...]) -> str:
    """Slow, since a URL may have a password that can be guessed: the result stands in Redis. Monitors alone need it."""
    return hashlib.pbkdf2_hmac("sha256", "\n".join(urls).encode(), b"aiogpulock", 200_000, dklen=4).hex()


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
