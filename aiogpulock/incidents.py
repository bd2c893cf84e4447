"""When leaving goes wrong: the four exception counters, the critical-failure log, and the alert hook."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from aiogpulock.json_lines import JsonLines
from aiogpulock.keys import LockKeys, printable
from aiogpulock.models import Alert, AlertLevel, CriticalFailure

logger = logging.getLogger(__name__)

ExceptionCounter: TypeAlias = Literal[
    "normal_release_failures", "emergency_releases", "release_script_errors", "ownership_violations"
]
AlertHook: TypeAlias = Callable[[Alert], None]


class ExceptionStats(msgspec.Struct):
    """What went wrong while leaving, in this manager, since it was made."""

    normal_release_failures: int = 0
    """A release did not succeed at the first try."""
    emergency_releases: int = 0
    """A lock was released on a fresh connection after the normal release had failed."""
    release_script_errors: int = 0
    """The release script answered with an error."""
    ownership_violations: int = 0
    """A release found another holder, or a lease that had ended; not one that was ended by force."""


def log_alert(alert: Alert) -> None:
    """The default alert hook: one line in the log."""
    level = logging.WARNING if alert.level == "warning" else logging.CRITICAL
    extra = {"alert_type": alert.type, "lock_key": alert.lock_key}
    logger.log(level, "%s: %s", printable(alert.type), printable(alert.message), extra=extra)


def default_log_path() -> Path:
    """The user's state directory (XDG_STATE_HOME, else ~/.local/state)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "aiogpulock" / "critical_failures.log"


class CriticalFailureLog:
    """Appends one JSON line per failure. A path that cannot be written is reported once and harms nothing."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._lines = JsonLines(
            lambda: Path(path) if path is not None else default_log_path(),
            "the critical-failure log (gpu_lock.critical_failure_log)",
        )

    def record(self, lock_key: str, task_name: str, error: BaseException, *, released: bool) -> CriticalFailure:
        """`released`: the emergency release freed the lock after all. Answers what was written."""
        failure = CriticalFailure(
            lock_key=lock_key,
            task_name=task_name,
            error=f"{type(error).__name__}: {error}",
            traceback="".join(traceback.format_exception(error)),
            timestamp=datetime.now(UTC).isoformat(),
            hostname=socket.gethostname(),
            released=released,
        )
        self._lines.append(failure)
        return failure


class Incidents:
    """Counts, records and reports. Nothing here raises: it runs while a lock is being left.

    `on_unsent` is called with the lock whose shared counters in Redis have something to add, `on_alert` with each alert
    that others than this process should hear of.
    """

    def __init__(
        self,
        log: CriticalFailureLog,
        alert_hook: AlertHook,
        on_unsent: Callable[[LockKeys], None],
        on_alert: Callable[[LockKeys, Alert], None],
    ) -> None:
        self.stats = ExceptionStats()
        self._log = log
        self._alert_hook = alert_hook
        self._on_unsent = on_unsent
        self._on_alert = on_alert
        self._unsent: dict[LockKeys, Counter[str]] = {}

    def count(self, counter: ExceptionCounter, keys: LockKeys) -> None:
        setattr(self.stats, counter, getattr(self.stats, counter) + 1)
        self.keep(counter, keys)

    def keep(self, counter: str, keys: LockKeys) -> None:
        """Count what Redis could not count itself; it is sent when Redis is back."""
        self._unsent.setdefault(keys, Counter())[counter] += 1
        self._on_unsent(keys)

    def take_unsent(self, keys: LockKeys) -> Counter[str]:
        """The counts that Redis does not know yet: the caller sends them."""
        return self._unsent.pop(keys, Counter())

    def record(self, keys: LockKeys, task_name: str, error: BaseException, *, released: bool) -> CriticalFailure:
        return self._log.record(keys.lock, task_name, error, released=released)

    def alert(
        self,
        kind: str,
        level: AlertLevel,
        keys: LockKeys,
        message: str,
        *,
        holder: str = "",
        task_name: str = "",
        record: CriticalFailure | None = None,
    ) -> None:
        """Tell this process's hook, and through the lock's history whoever watches. Safe from any thread."""
        alert = Alert(kind, level, keys.lock, message, holder, task_name, record)
        for listener in (self._alert_hook, lambda alert: self._on_alert(keys, alert)):
            try:
                listener(alert)
            except Exception:
                logger.exception("the alert hook failed for %s", kind)
