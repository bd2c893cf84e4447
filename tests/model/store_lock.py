"""The shipped scripts called one by one on the model's store, with a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.model.runner import ScriptFailed, ScriptRunner
from tests.model.store import Session, Store

START_US = 1_800_000_000_000_000
PROCESS = '{"pid":1}'


class StoreLock:
    """One lock. Times in ms; `edit` plants a bug in the scripts."""

    def __init__(self, edit: Callable[[str, str], str] | None = None) -> None:
        self.runner = ScriptRunner(edit=edit)
        self.store = Store()
        self.now_us = START_US
        self.inboxes: set[str] = set()
        self.sent: list[tuple[str, dict[str, Any]]] = []
        """What the last call published and somebody received: channel and message."""
        self.window, self.grace = 2000, 5000
        self.commands = 0
        """Of the last call's script."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What the last call published, to whom it reached."""
        return [message for _, message in self.sent]

    def advance(self, ms: float) -> None:
        self.now_us += round(ms * 1000)

    def call(self, name: str, *arguments: Any) -> list[Any]:
        self.now_us += 1
        session = Session(self.store, self.now_us, frozenset(self.inboxes))
        outcome = self.runner.run(name, (self.window, self.grace, "", *arguments), session)
        if outcome.error:
            raise ScriptFailed(f"{name}: {outcome.error}")
        self.store, self.commands = outcome.store, session.calls
        self.sent = [(m.channel, json.loads(m.payload)) for m in outcome.messages if m.receivers]
        return outcome.reply

    def acquire(self, waiter: str, **changed: Any) -> list[Any]:
        """The keywords are ARGV by name. The waiter's inbox is its own, and listens, unless told otherwise."""
        arguments: dict[str, Any] = {
            "hint": 0, "inbox": f"inbox-{waiter}", "mode": "push", "next_check": 30_000, "expires": 90_000,
            "lease": 60_000, "ttl": 600_000, "arrival": 0, "priority": 0, "most": -1, "may_wait": 1, "task": "train",
            "process": PROCESS,
        }  # fmt: skip
        return self.call("acquire", waiter, *{**arguments, **changed}.values())

    def beat(self, holder: str, token: int, phase: str = "") -> list[Any]:
        return self.call("heartbeat", holder, token, 60_000, 600_000, phase)

    def reassert(self, holder: str, token: int) -> list[Any]:
        lease = (60_000, 600_000)
        return self.call("reassert", holder, token, *lease, f"inbox-{holder}", "train", PROCESS, self.now_us, 0)

    def release(self, holder: str, token: int, quarantine: str = "") -> list[Any]:
        return self.call("release", holder, token, "normal", quarantine)

    def withdraw(self, waiter: str) -> list[Any]:
        return self.call("withdraw", waiter, "timeout", "")

    def resume(self) -> list[Any]:
        return self.call("resume")

    def lapse(self, part: str) -> None:
        """The key of that part goes, as when it expires."""
        key = f"{{{self.runner.keys.lock}}}:{part}"
        self.store = self.store._replace(entries=tuple(entry for entry in self.store.entries if entry[0] != key))

    def granted(self) -> tuple[str, int]:
        """Whom the last call's message gave the lock, and the token."""
        grants = [(m["id"], m["token"]) for m in self.messages if m.get("type") == "grant"]
        assert len(grants) == 1, f"not one grant: {self.messages}"
        return grants[0]

    def holder(self) -> dict[str, str]:
        """The holder's record."""
        return self._fields("holder")

    def waiters(self) -> dict[str, str]:
        """The records beside the queue: of seats, of inboxes, and how many seats each has."""
        return self._fields("waiters")

    def _fields(self, part: str) -> dict[str, str]:
        key = f"{{{self.runner.keys.lock}}}:{part}"
        return next((dict(entry.value) for name, entry in self.store.entries if name == key), {})
