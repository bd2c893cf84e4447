"""What the server spends in each script while two processes hand the lock over, by its own slow log."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable

from aiogpulock.scripts import load_script
from benchmarks.results import Column, Row, Table
from tests.servers import RealServer

CALLS = {
    "release": "release, with the grant to the next",
    "claim": "claim of that grant",
    "enqueue": "taking a seat, while the lock is held",
}
_SHA, _HINT = 1, 16
"""Places in an EVALSHA with nine keys: of the script, and of the token that an acquire claims (0: it asks)."""


def script_times(server: RealServer, hand_over: Callable[[], object]) -> Table:
    """`hand_over` makes processes hand a lock over; the log itself adds some us to each call."""
    with server.client(decode_responses=False) as client:
        client.config_set("slowlog-max-len", 5000)
        client.config_set("slowlog-log-slower-than", 0)
        client.slowlog_reset()
        hand_over()
        client.config_set("slowlog-log-slower-than", -1)
        entries = client.slowlog_get(5000)
    spent: defaultdict[str, list[float]] = defaultdict(list)
    for entry in entries:
        if call := _call(entry["command"].split(b" ")):
            spent[call].append(entry["duration"] / 1e6)
    rows = [Row(title, [statistics.median(spent[call])]) for call, title in CALLS.items() if spent[call]]
    return Table("server time of a script, within a hand-off", [Column("p50", "s")], rows)


def _call(command: list[bytes]) -> str:
    if command[0] != b"EVALSHA":
        return ""
    if command[_SHA] == load_script("release").sha:
        return "release"
    if command[_SHA] != load_script("acquire").sha:
        return ""
    return "enqueue" if command[_HINT] == b"0" else "claim"
