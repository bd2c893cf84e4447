"""What people get to read."""

from __future__ import annotations

import re
import socket
from datetime import UTC, datetime
from typing import Literal, get_args

import msgspec

from aiogpulock.keys import printable
from aiogpulock.models import Alert, AlertLevel

_MARKUP = {"<": "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", ">": "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"}
_MENTION = re.compile(r"@(?=\w)")


MOST_OF_A_HOLDER = 32


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One message about an alert."""

    alert: Alert
    kind: Literal["raised", "repeated", "resolved", "test"]
    at: float
    """Epoch seconds."""
    held_back: int = 0
    """Notices that the rate limit has kept from people since the last one."""

    @property
    def subject(self) -> str:
        return _harmless(" ".join(filter(None, (self.alert.type, self.alert.lock_key))))

    @property
    def incident(self) -> str:
        """The same from the first notice of an alert to its end, and another one for another holder."""
        return " ".join(filter(None, (self.subject, _harmless(self.alert.holder[-MOST_OF_A_HOLDER:]))))

    @property
    def title(self) -> str:
        return f"[{'resolved' if self.kind == 'resolved' else self.alert.level}] {self.subject}"

    @property
    def urgency(self) -> int:
        return get_args(AlertLevel).index(self.alert.level)

    @property
    def body(self) -> str:
        alert = self.alert
        lines = [
            alert.message,
            f"level: {alert.level}" + (", resolved" if self.kind == "resolved" else ""),
            *([f"lock: {alert.lock_key}"] if alert.lock_key else []),
            *([f"task: {alert.task_name}"] if alert.task_name else []),
            f"told by: {socket.gethostname()}",
            f"at: {datetime.fromtimestamp(self.at, UTC).isoformat(timespec='seconds')}",
            *([f"record: {msgspec.json.encode(alert.record).decode()}"] if alert.record else []),
            *([f"{self.held_back} further notices were held back"] if self.held_back else []),
        ]
        return "\n".join(map(_harmless, lines))


def _harmless(text: str) -> str:
    """Task names come from anybody: they must neither be markup nor call people in somebody's chat."""
    plain = "".join(_MARKUP.get(character, character) for character in printable(text))
    return _MENTION.sub("@\N{ZERO WIDTH SPACE}", plain)
