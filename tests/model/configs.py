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
    grace: int = 2
    fallback: int = 5
    poll: int = 2
    expires: int = 7


def push(count: int, **changes: int) -> tuple[ClientSpec, ...]:
    """`count` event-driven clients in processes of their own."""
    return tuple(ClientSpec(manager=index, **changes) for index in range(count))


CONFIGS = {
    config.name: config
    for config in (
        *(Config(f"q{n}", push(2), Faults(crash=1, reply=1, message=1, data=1, stall=n)) for n in range(5)),
        *(Config(f"t{n}", push(3), Faults(crash=1, reply=1, message=1, data=1, stall=n)) for n in range(5)),
        Config("s2", push(2), Faults(slow=1, quit=1, stall=1)),
        Config("s3", push(3), Faults(slow=1, quit=1, stall=1)),
        Config("sr", push(2), Faults(slow=1, quit=1, reply=1, data=1, stall=1)),
        Config("s2t", push(2, turns=2), Faults(slow=1, quit=1, reply=1)),
        Config("p3", (ClientSpec(0, polls=True), ClientSpec(1), ClientSpec(2)), Faults(crash=1, quit=1, stall=2)),
        Config(
            "pp", (ClientSpec(0, polls=True), ClientSpec(1, polls=True), ClientSpec(2)), Faults(data=1, quit=1, stall=1)
        ),
        Config("prio", (ClientSpec(0), ClientSpec(1), ClientSpec(2, priority=1)), Faults(message=1, quit=1, stall=1)),
        Config(
            "once",
            (ClientSpec(0), ClientSpec(1), ClientSpec(2, may_wait=False)),
            Faults(message=1, crash=1, quit=1, stall=1),
        ),
        Config("cut", push(3), Faults(cut=1, restart=1, refuse=1, stall=1)),
        Config("shared", (ClientSpec(0), ClientSpec(0), ClientSpec(1)), Faults(message=1, crash=1, quit=1, stall=1)),
        Config("shared2", (ClientSpec(0), ClientSpec(0), ClientSpec(1)), Faults(slow=1, reply=1, cut=1)),
        Config(
            "pslow",
            (ClientSpec(0, polls=True), ClientSpec(1)),
            Faults(slow=1, reply=1, data=1, crash=1, quit=1, stall=2),
        ),
        Config("o2all", push(2), Faults(old=1, crash=1, message=1, reply=1, stall=2)),
        Config("turns", push(2, turns=2), Faults(crash=1, reply=1, data=1, stall=1)),
        Config("sall", push(2), Faults(slow=2, quit=1, reply=1, data=1, stall=1)),
        Config("delays", push(3), Faults(slow=1, quit=1, reply=1, crash=1)),
        Config("o2", push(2), Faults(old=1, stall=1)),
        Config("o3", push(3), Faults(old=1, stall=1)),
        Config("o2r", push(2), Faults(old=1, reply=1, quit=1, slow=1)),
        Config("ci", push(3), Faults(crash=1, reply=1, message=1, data=1, quit=1, slow=1)),
    )
}
