"""The audit log: one JSON line for each repair and each forced release."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from aiogpulock.json_lines import JsonLines

AuditAction = Literal["reap", "force_release", "end_foreign", "sweep"]
"""reap: a dead holder was replaced · force_release: a live one was · end_foreign: the value of another program was
deleted · sweep: dead waiters lost their seats."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to a lock, by whom and why."""

    action: AuditAction
    lock_key: str
    lock_value: str | None
    """As it was seen, and compared."""
    holder: str | None
    """Task name, if it is known."""
    reason: str
    actor: str
    timestamp: str
    """ISO 8601, UTC, this host's clock."""
    details: str = ""


class AuditLog:
    """Writes `AuditEntry` lines to the file that `gpu_lock_monitor.audit_log` names at that time, if it names one."""

    def __init__(self, path: Callable[[], str | None]) -> None:
        self._lines = JsonLines(lambda: Path(name) if (name := path()) else None, "gpu_lock_monitor.audit_log")

    @property
    def error(self) -> str:
        """Why not all entries are written; empty if they are."""
        return self._lines.error

    def check(self) -> str:
        """Why no entry can be written now; empty if one can, and those that could not be written before are."""
        self._lines.check()
        return self._lines.error

    def record(
        self,
        action: AuditAction,
        lock_key: str,
        lock_value: str | None,
        *,
        holder: str | None,
        reason: str,
        actor: str,
        details: str = "",
    ) -> None:
        """Never raises."""
        self._lines.append(
            AuditEntry(
                action=action,
                lock_key=lock_key,
                lock_value=lock_value,
                holder=holder,
                reason=reason,
                actor=actor,
                timestamp=datetime.now(UTC).isoformat(),
                details=details,
            )
        )
