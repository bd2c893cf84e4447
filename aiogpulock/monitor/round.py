"""What one round of the monitor saw and did."""

from __future__ import annotations

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
    """There is no further attempt until the lock changes."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all locks."""

    at: float
    """Epoch seconds, this host's clock."""
    error: str = ""
    """Why Redis could not be looked at; everything else is empty then."""
    speaks: bool = True
    """Of several monitors, this one tells people."""
    locks: tuple[LockSnapshot, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Locks that are in a state that no program of ours leaves, each with the reason."""
    zombies: tuple[Zombie, ...] = ()
    repaired: tuple[Repair, ...] = ()
    """What this monitor did; another one may have done the rest."""
    failed: tuple[FailedRepair, ...] = ()
    rates: ExceptionRates | None = None
    told: tuple[Alert, ...] = ()
    """Alerts of other processes since the last round."""
    idle: tuple[Alert, ...] = ()
    """Holders on this host whose GPU has nothing to do."""
    audit_error: str = ""
    complete: bool = False
    """Every key of the namespace was looked at; otherwise the next round goes on from here."""
    seconds: float = 0.0
    """How long it took."""
