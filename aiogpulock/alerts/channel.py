"""One place that notices go to, on a thread of its own: a web hook that hangs delays no lock and no other place."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections import deque
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import unquote

import msgspec

from aiogpulock.alerts.notice import Notice
from aiogpulock.config import redact_alert_url
from aiogpulock.errors import ConfigError

logger = logging.getLogger(__name__)

HOW_TO_INSTALL = "pip install 'aiogpulock[alerts]'"
_PAGERDUTY = re.compile(r"pagerduty://", re.IGNORECASE)
_BAD = ("WARNING", "ERROR", "CRITICAL")
_TALKATIVE = ("apprise", "urllib3.connectionpool", "urllib3.util.retry", "requests")


class Sent(msgspec.Struct, frozen=True):
    """What became of a notice at one place."""

    place: str
    """The URL without its secrets."""
    error: str
    """Empty: it was delivered."""


class Channel:
    """Delivers to one Apprise URL. Raises `ConfigError` for a URL that Apprise does not know, or without Apprise."""

    PAUSES: ClassVar[tuple[float, ...]] = (1.0, 5.0)
    """Seconds before each further attempt."""
    WAITING: ClassVar[int] = 100

    def __init__(self, url: str) -> None:
        self.place = redact_alert_url(url)
        self._veil = _Veil(url)
        self._by_title = bool(_PAGERDUTY.match(url))
        """An incident is known by its title there, from its beginning to its end: no state in it."""
        self._target = _target(_with_ends(url), self.place, self._veil)
        self._waiting: deque[Notice] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        """There is one while something waits, and until `end`."""

    @property
    def busy(self) -> bool:
        """Something is being delivered, or waits."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def post(self, notice: Notice) -> None:
        """Deliver soon, the urgent first; does not wait. Of too many the last in line is dropped: the log says so."""
        with self._changed:
            place = sum(other.urgency >= notice.urgency for other in self._waiting)
            self._waiting.insert(place, notice)
            if len(self._waiting) > self.WAITING:
                logger.error("%s takes no alerts: %s was dropped", self.place, self._waiting.pop().title)
            self._changed.notify()
            if not self.busy:  # the first one; or the thread stayed behind in another process, at a fork
                self._thread = threading.Thread(target=self._run, name="aiogpulock-alerts", daemon=True)
                self._thread.start()

    def end(self, *, hurry: bool = False) -> None:
        """The thread ends when nothing waits any more. `hurry`: a further attempt that is due comes now, the last."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if hurry:
            self._hurry.set()

    def join(self, timeout: float) -> None:
        """Wait until all is delivered, for at most `timeout` seconds; the log says what was not."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive():
                logger.error("%s took no alert in time; %d more were not sent", self.place, len(self._waiting))

    def send(self, notice: Notice) -> Sent:
        """Deliver now, on this thread; one attempt, in the time that Apprise allows it: some 8 s per request."""
        with self._veil:
            try:
                title = notice.incident if self._by_title else notice.title
                result = self._target.notify(
                    title=title, body=notice.body, notify_type=_kind(notice), body_format="text"
                )
                told = [
                    entry.message for service in result.results for entry in service.logs() if entry.level != "INFO"
                ]
            except Exception as error:
                return Sent(self.place, self._veil.over(f"{type(error).__name__}: {error}"))
        return Sent(self.place, "" if result else self._veil.over("; ".join(told) or "it was refused"))

    def _run(self) -> None:
        while (notice := self._next()) is not None:
            sent = self.send(notice)
            for pause in self.PAUSES:
                if not sent.error or self._hurry.is_set():
                    break
                self._hurry.wait(pause)
                sent = self.send(notice)
            if sent.error:
                logger.error("the alert %s did not reach %s: %s", notice.title, sent.place, sent.error)

    def _next(self) -> Notice | None:
        """None: this thread is no longer there, and whoever posts starts another one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            if self._waiting:
                return self._waiting.popleft()
            self._thread = None
            return None


class _Veil(logging.Filter):
    """Hides the keys of one URL in what the libraries log while it is used: they log whole URLs, on any thread."""

    def __init__(self, url: str) -> None:
        super().__init__()
        shown = redact_alert_url(url)
        parts = {form for part in re.split(r"[/?&=:@#]", url.partition("://")[2]) for form in (part, unquote(part))}
        self._secrets = sorted((part for part in parts if len(part) >= 4 and part not in shown), key=len, reverse=True)

    def __enter__(self) -> None:
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(self)

    def __exit__(self, *_: object) -> None:
        for name in _TALKATIVE:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        veiled = self.over(text)
        if veiled != text:
            record.msg, record.args, record.exc_info = veiled, (), None
        return True

    def over(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _with_ends(url: str) -> str:
    """Apprise opens incidents at PagerDuty, and ends none of them unless the URL asks for it."""
    if not _PAGERDUTY.match(url) or re.search(r"[?&]action=", url):
        return url
    return f"{url}{'&' if '?' in url else '?'}action=map"


def _target(url: str, place: str, veil: _Veil) -> Any:
    if find_spec("apprise") is None:
        raise ConfigError(f"gpu_lock_alerts.urls: {place} needs Apprise: {HOW_TO_INSTALL}")
    with warnings.catch_warnings(), veil:
        warnings.simplefilter("ignore", DeprecationWarning)  # its own, of modules that it imports
        import apprise

        target = apprise.Apprise()
        known = target.add(url)
    if not known:
        raise ConfigError(
            f"gpu_lock_alerts.urls: {place} is no URL that Apprise can use: see https://github.com/caronc/apprise/wiki"
        )
    return target


def _kind(notice: Notice) -> str:
    if notice.kind == "resolved":
        return "success"
    if notice.kind == "test":
        return "info"
    return "warning" if notice.alert.level == "warning" else "failure"
