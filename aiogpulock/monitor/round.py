"""What one round of the monitor saw and did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec

from aiogpulock.models import Alert, LockSnapshot
from aiogpulock.monitor.plan import Repair
from aiogpulock.rates import ExceptionRates
from aiogpulock.zombies import Zombie


class FailedRepair(msgspec.Struct, frozen=True):
    """A repair that Redis refused."""

    repair: Repair
    error: str
    failures: int
    given_up: bool
    """There is no further attempt until the lock changes, or for 10 minutes."""


@dataclass(slots=True)
class Deeds:
    """The repairs of a round as they happen: a round that fails later has done them all the same."""

    repaired: list[Repair] = field(default_factory=list)
    failed: list[FailedRepair] = field(default_factory=list)


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all locks."""

    at: float
    """Epoch seconds, this host's clock."""
    error: str = ""
    """Why Redis could not be looked at to the end; then only the repairs are known."""
    speaks: bool = True
    """Of the monitors with the same alert URLs, this one tells people; without URLs each does."""
    spoken_until: float = -math.inf
    """Another one has told all that there was until then, on this host's `clock.now`."""
    locks: tuple[LockSnapshot, ...] = ()
    unreadable: dict[str, str] = {}
    """Why, by key: locks in a state that no program of ours leaves, or their index."""
    zombies: tuple[Zombie, ...] = ()
    repaired: tuple[Repair, ...] = ()
    """What this monitor did; another one may have done the rest."""
    failed: tuple[FailedRepair, ...] = ()
    rates: ExceptionRates | None = None
    told: tuple[Alert, ...] = ()
    """Alerts of other processes since people were last told of any; empty for who does not speak."""
    idle: tuple[Alert, ...] = ()
    """Holders on this host whose GPU has nothing to do."""
    audit_error: str = ""
    complete: bool = False
    """Every key of the namespace was looked at; otherwise the next round goes on from here."""
    seconds: float = 0.0
    """How long it took."""
