"""Named configurations of the model. Times are ticks (1 s in the scripts)."""

from __future__ import annotations

from typing import NamedTuple


class ClientSpec(NamedTuple):
    """One program that wants the lock."""

    manager: int
    """Clients of one manager share an inbox, and die together."""
    polls: bool = False
    turns: int = 1
    """Acquisitions, one after the other, each with an id of its own."""
    priority: int = 0
    may_wait: bool = True
    drains: bool = False
    """It waits for the GPU's memory after its body, and beats meanwhile."""


class Faults(NamedTuple):
    """How many of each may happen."""

    crash: int = 0
    reply: int = 0
    """A script ran, its reply is lost."""
    message: int = 0
    """A published message is lost."""
    data: int = 0
    """The server comes back empty."""
    slow: int = 0
    """A call that was sent runs at any later time, also after its sender gave it up."""
    quit: int = 0
    """A waiter times out."""
    restart: int = 0
    """The server comes back with its data."""
    cut: int = 0
    """An inbox loses its connection, and what was on its way."""
    refuse: int = 0
    """The server refuses all writes of one call."""
    old: int = 0
    """The server comes back with an older copy of its data."""
    foreign: int = 0
    """An older program sets its value under the free key, and deletes it before it expires or not."""
    force: int = 0
    """An operator ends the holder that it sees."""
    flush: int = 0
    """The data is deleted under a running server: FLUSHALL. Out of the promise."""
    jump: int = 0
    """The server's clock jumps past every lease. Out of the promise."""
    stall: int = 0
    """Ticks that pass although somebody should have acted."""


class Config(NamedTuple):
    name: str
    clients: tuple[ClientSpec, ...]
    faults: Faults
    claim_window: int = 1
    lease: int = 3
    margin: int = 1
    ttl: int = 3
    grace: int = 1
    fallback: int = 5
    poll: int = 2
    expires: int = 7
    monitor: bool = False
    """Somebody watches: ends leases that are over, and takes the seats of the dead away."""

    @property
    def served_within(self) -> int:
        """Ticks in which everybody is served once nothing fails any more: whom no message reached looks by itself, and
        each of the others may have a claim window that it lets pass."""
        return self.fallback + (len(self.clients) - 1) * self.claim_window


def push(count: int, **changes: int) -> tuple[ClientSpec, ...]:
    """`count` event-driven clients in processes of their own."""
    return tuple(ClientSpec(manager=index, **changes) for index in range(count))


CONFIGS = {
    config.name: config
    for config in (
        # three programs, and one of each fault that the promise names
        Config("faults", push(3), Faults(crash=1, reply=1, message=1, data=1, quit=1, stall=1)),
        Config("delays", push(2), Faults(slow=1, quit=1, reply=1, data=1, stall=1)),
        Config("guard", push(2), Faults(slow=2, quit=1, data=1)),
        Config("queue", push(3), Faults(slow=1, quit=1, reply=1, stall=1)),
        Config("turns", push(2, turns=2), Faults(slow=1, reply=1, quit=1)),
        Config("polls", (ClientSpec(0, polls=True), ClientSpec(1), ClientSpec(2)), Faults(crash=1, quit=1, stall=2)),
        Config("priority", (*push(2), ClientSpec(2, priority=1)), Faults(message=1, quit=1, stall=1)),
        Config("once", (*push(2), ClientSpec(2, may_wait=False)), Faults(crash=1, message=1, quit=1, stall=1)),
        Config("once-data", (ClientSpec(0), ClientSpec(1, may_wait=False)), Faults(reply=1, data=1, slow=1, stall=1)),
        Config("shared", (ClientSpec(0), ClientSpec(0), ClientSpec(1)), Faults(crash=1, message=1, quit=1, stall=1)),
        Config("old-data", push(3), Faults(old=1, stall=1)),
        Config(
            "old-polls", (ClientSpec(0, polls=True, turns=2), ClientSpec(0, polls=True)), Faults(old=1, quit=1, stall=1)
        ),
        Config("restart", push(3), Faults(restart=1, cut=1, refuse=1)),
        Config("forced", push(3), Faults(force=1, reply=1, message=1, stall=1)),
        Config("draining", push(3, drains=True), Faults(crash=1, reply=1, message=1, stall=1)),
        Config("draining-data", push(2, drains=True), Faults(data=1, slow=1, stall=1)),
        Config("watched", push(3), Faults(crash=1, message=1, quit=1, stall=2), monitor=True),
        Config("older", push(3), Faults(foreign=1, quit=1, message=1, stall=1)),
        Config("older-crash", (ClientSpec(0), ClientSpec(0), ClientSpec(1)), Faults(foreign=1, crash=1, quit=1)),
        Config("small", push(2), Faults(crash=1, reply=1, message=1, data=1)),
        # larger ones, for a quiet hour
        Config("late", push(3), Faults(crash=1, reply=1, message=1, data=1, stall=3)),
        Config("twice", push(3), Faults(crash=2, reply=1, message=2, data=1, stall=1)),
        Config("delays-3", push(3), Faults(slow=1, crash=1, data=1, stall=1)),
        Config("four", push(4), Faults(crash=1, reply=1, message=1)),
        Config("old-data-3", push(3), Faults(old=1, crash=1, message=1, reply=1, stall=1)),
        Config(
            "polls-data", (ClientSpec(0, polls=True), *push(3)[1:]), Faults(crash=1, reply=1, data=1, quit=1, stall=1)
        ),
        Config("draining-3", push(3, drains=True), Faults(crash=1, reply=1, message=1, data=1, quit=1, stall=1)),
        Config("slow-polls", (ClientSpec(0, polls=True), *push(3)[1:]), Faults(slow=1, reply=1, data=1, quit=1)),
    )
}

BEYOND = {
    config.name: config
    for config in (
        Config("flush", push(2), Faults(flush=1)),
        Config("jump", push(2), Faults(jump=1)),
        # a clock that stands still while the holder is suspended: its own deadline comes after the server's
        Config("slow-clock", push(2), Faults(stall=4), margin=-2),
    )
}
"""What the promise excludes: each shows an overlap."""

SUITES = {
    "ci": (
        "faults", "delays", "guard", "queue", "turns", "polls", "priority", "once", "once-data", "shared", "old-data",
        "old-polls", "restart", "forced", "watched", "older", "older-crash", "draining", "draining-data",
    ),
    "large": ("late", "twice", "delays-3", "four", "old-data-3", "slow-polls", "polls-data", "draining-3"),
}  # fmt: skip
"""Several configurations under one name."""
