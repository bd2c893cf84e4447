"""All faults by name."""

from __future__ import annotations

from tests.faults import network, of_the_server, processes
from tests.faults.fault import Fault

# The long ones first: run side by side, they would be what the others wait for.
_ALL: tuple[type[Fault], ...] = (
    *of_the_server.RESTARTS,
    network.IsolatedHolder,
    processes.BlockedTooLong,
    processes.KeepGil,
    processes.BlockedLoop,
    processes.StopHolder,
    processes.StopLoneHolder,
    processes.KillHolderElsewhere,
    processes.KillHolder,
    processes.KillWaiter,
    processes.KillHolderAndWaiter,
    processes.KillGrantee,
    processes.StopWaiter,
    processes.Fork,
    processes.Repeated,
    of_the_server.InboxKill,
    of_the_server.ClientPause,
    of_the_server.ScriptFlush,
    of_the_server.OutOfMemory,
    of_the_server.ReadOnly,
    of_the_server.Forged,
    of_the_server.FlushAll,
    network.Cut,
    network.Delay,
    network.HalfOpen,
    network.Partition,
    network.DropReplies,
)

KINDS: dict[str, type[Fault]] = {kind.name: kind for kind in _ALL}
