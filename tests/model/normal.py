"""The canonical form of a store: times relative, tokens and arrivals by rank, no events, stats, heartbeat or
`dirty` (which no script decides by).

Two stores with one form behave alike in everything that the model asks. A field that this file does not know is an
error: whoever adds one to the scripts says here whether it is a time, a rank or plain text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from aiogpulock.keys import LockKeys
from tests.model.store import Entry, Store

TICK_MS = 1000
POLL_SLACK = 2  # ticks; that of lua/parts/seats.lua
BASE_MS = 1_000_000_000_000
BASE_US = BASE_MS * 1000
CURRENT_RUN, OLD_RUN = "c" * 40, "d" * 40
NEW = 1_000_000
"""Rank of a number that was taken from the clock in the script that just ran: above all others."""
STALE = -1
"""A token that nobody holds any more."""
FOREIGN_VALUE = "locked_by_older:1"
_SPACING = 4
_UPTIME_ERROR = 1
"""Ticks more than it has been up that a server may say: it subtracts two clocks cut to seconds."""
_KEEP_MS = 30 * 24 * 3600 * 1000

Rank = float


class Holder(NamedTuple):
    id: str
    phase: str
    deadline: int
    token: Rank
    inbox: str
    rest: tuple[tuple[str, str], ...]
    """Plain text: lease, task, process, v."""


class Seat(NamedTuple):
    id: str
    inbox: str
    arrival: Rank
    lease: int
    ttl: int
    task: str


class Inbox(NamedTuple):
    name: str
    mode: str
    next_check: int
    expires: int
    deaf: bool
    process: str


class Fence(NamedTuple):
    token: Rank
    run: str
    """'' unknown, 'current' or 'old'."""
    since: int
    """Ticks of the restart grace left."""
    cursor: int


class State(NamedTuple):
    """What Redis knows of one lock. Times in ticks from now, 0 when over."""

    lock: tuple[str, int] | None = None
    holder: Holder | None = None
    queue: tuple[tuple[str, int], ...] = ()
    """(id, bonus of its priority) in order."""
    seats: tuple[Seat, ...] = ()
    inboxes: tuple[Inbox, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    """(inbox, how many seats it has)."""
    done: tuple[tuple[str, int], ...] = ()
    fence: Fence | None = None
    uptime: int = 0

    def inbox(self, name: str) -> Inbox | None:
        return next((inbox for inbox in self.inboxes if inbox.name == name), None)

    def seat(self, seat_id: str) -> Seat | None:
        return next((seat for seat in self.seats if seat.id == seat_id), None)

    def grace_left(self, grace: int) -> int:
        """Ticks until new grants are allowed."""
        if self.fence is None or not self.fence.run:
            return max(0, grace - self.uptime)
        return self.fence.since if self.fence.run == "current" else grace

    @property
    def ids(self) -> frozenset[str]:
        """Who waits or holds."""
        queued = frozenset(name for name, _ in self.queue)
        return queued | {self.holder.id} if self.holder else queued

    @property
    def foreign(self) -> bool:
        """The value under the key is an older program's."""
        return self.lock is not None and self.lock[0] == FOREIGN_VALUE

    @property
    def miscounted(self) -> str:
        """What is wrong with the records beside the queue, or '': one for each seat, and for each inbox that has a seat
        one record and their number."""
        seats = Counter(seat.inbox for seat in self.seats)
        if {name for name, _ in self.queue} != {seat.id for seat in self.seats}:
            return "the queue and the records of its seats differ"
        if dict(self.counts) != seats:
            return f"the seats are counted as {dict(self.counts)}"
        inboxes = {inbox.name for inbox in self.inboxes}
        return f"there are records of the inboxes {inboxes or '{}'}" if inboxes != seats.keys() else ""

    @property
    def tokens(self) -> tuple[Rank, ...]:
        holder = (self.holder.token,) if self.holder else ()
        return (*holder, self.fence.token) if self.fence else holder

    @property
    def arrivals(self) -> tuple[Rank, ...]:
        return tuple(seat.arrival for seat in self.seats)


def to_number(rank: Rank) -> int:
    """A token or arrival as the scripts see it. Rank 0 is 'none'; halves are bumps between two ranks."""
    if rank == 0:
        return 0
    return 7 if rank == STALE else BASE_US - 1_000_000 + int(rank * _SPACING)


def to_rank(value: int) -> Rank:
    if value <= 0:
        return 0
    if value >= BASE_US:
        return NEW + (value - BASE_US)
    return STALE if value == 7 else (value - BASE_US + 1_000_000) / _SPACING


def ticks(deadline_ms: int) -> int:
    """Whole ticks until a time, 0 if it is over."""
    left = deadline_ms - BASE_MS
    assert left <= 0 or left % TICK_MS == 0, f"{left} ms is not a whole tick"
    return max(0, left // TICK_MS)


class Forms:
    """Between canonical states and stores, for one set of keys and one restart grace (ticks)."""

    def __init__(self, keys: LockKeys, grace: int) -> None:
        self.keys = [key.decode() for key in keys.script_keys]
        self.grace = grace

    def to_store(self, state: State) -> Store:
        lock, holder_key, _, queue, waiters, done, fence_key, _, _ = self.keys
        entries: dict[str, Entry] = {}
        keep = BASE_MS + _KEEP_MS
        if state.lock:
            entries[lock] = Entry("string", state.lock[0], BASE_MS + state.lock[1] * TICK_MS)
        if state.holder:
            entries[holder_key] = Entry("hash", self._holder_fields(state.holder), keep)
        if state.queue:
            pairs = []
            for name, bonus in state.queue:
                seat = state.seat(name)
                pairs.append((name, float(to_number(seat.arrival if seat else 0) - bonus)))
            entries[queue] = Entry("zset", tuple(pairs), keep)
        if state.seats or state.inboxes or state.counts:
            fields = [
                (s.id, f"{s.inbox} {s.lease * TICK_MS} {s.ttl * TICK_MS} {to_number(s.arrival)} {s.task}")
                for s in state.seats
            ]
            fields += [("@" + inbox.name, _inbox_text(inbox)) for inbox in state.inboxes]
            fields += [("#" + name, str(count)) for name, count in state.counts]
            entries[waiters] = Entry("hash", tuple(fields), keep)
        if state.done:
            entries[done] = Entry("zset", tuple((name, float(BASE_MS * 8 + code)) for name, code in state.done), keep)
        if state.fence:
            entries[fence_key] = Entry("hash", self._fence_fields(state.fence), keep)
        return Store(tuple(entries.items()), CURRENT_RUN, BASE_MS - (state.uptime + _UPTIME_ERROR) * TICK_MS)

    def _holder_fields(self, holder: Holder) -> tuple[tuple[str, str], ...]:
        return (
            ("id", holder.id),
            ("phase", holder.phase),
            ("deadline", str(BASE_MS + holder.deadline * TICK_MS)),
            ("token", str(to_number(holder.token))),
            ("inbox", holder.inbox),
            ("arrival", str(BASE_US)),
            ("since", str(BASE_MS)),
            ("dirty", ""),
            *holder.rest,
        )

    def _fence_fields(self, fence: Fence) -> tuple[tuple[str, str], ...]:
        fields = [("token", str(to_number(fence.token))), ("arrival", "1"), ("dirty", "")]
        if fence.run:
            fields.append(("run", CURRENT_RUN if fence.run == "current" else OLD_RUN))
            fields.append(("since", str(BASE_MS - (self.grace - fence.since) * TICK_MS)))
        if fence.cursor:
            fields.append(("cursor", str(fence.cursor)))
        return tuple(fields)

    def from_session(self, data: dict[str, list[Any]], started_ms: int) -> State:
        """The canonical form, but for tokens and arrivals that are new: `rerank` makes them dense."""
        lock, holder_key, _, queue, waiters, done, fence_key, _, _ = self.keys
        for key, entry in data.items():
            assert key in self.keys, f"unknown key {key}"
            assert entry[2] is not None, f"{key} never expires"
        seats, inboxes, counts = _waiters(data[waiters][1]) if waiters in data else ((), (), ())
        return State(
            lock=(data[lock][1], ticks(data[lock][2])) if lock in data else None,
            holder=_holder(data[holder_key][1]) if holder_key in data else None,
            queue=_queue(data[queue][1], seats) if queue in data else (),
            seats=seats,
            inboxes=inboxes,
            counts=counts,
            done=tuple(sorted((name, int(score) % 8) for name, score in data[done][1].items())) if done in data else (),
            fence=self._fence(data[fence_key][1]) if fence_key in data else None,
            uptime=min(self.grace, (BASE_MS - started_ms) // TICK_MS - _UPTIME_ERROR),
        )

    def _fence(self, fields: dict[str, str]) -> Fence:
        unknown = fields.keys() - {"token", "arrival", "run", "since", "dirty", "cursor"}
        assert not unknown, f"unknown fields of the fence: {unknown}"
        run = fields.get("run")
        since = ticks(int(fields["since"]) + self.grace * TICK_MS) if run == CURRENT_RUN else 0
        return Fence(
            to_rank(int(fields.get("token", "0"))),
            "" if run is None else "current" if run == CURRENT_RUN else "old",
            since,
            int(fields.get("cursor", "0")),
        )

    def later(self, state: State) -> State:
        """`state` one tick later: keys expire, deadlines come closer."""
        lock, holder, fence = state.lock, state.holder, state.fence
        if lock:
            lock = (lock[0], lock[1] - 1) if lock[1] > 1 else None
        if holder and holder.deadline:
            holder = holder._replace(deadline=holder.deadline - 1)
        if fence and fence.since:
            fence = fence._replace(since=fence.since - 1)
        inboxes = tuple(
            inbox._replace(
                expires=max(0, inbox.expires - 1),
                next_check=max(_OVERDUE, inbox.next_check - 1) if inbox.mode == "poll" else 0,
            )
            for inbox in state.inboxes
        )
        uptime = min(self.grace, state.uptime + 1)
        return state._replace(lock=lock, holder=holder, fence=fence, inboxes=inboxes, uptime=uptime)


_OVERDUE = -POLL_SLACK


def _inbox_text(inbox: Inbox) -> str:
    next_check, expires = BASE_MS + inbox.next_check * TICK_MS, BASE_MS + inbox.expires * TICK_MS
    return f"{inbox.mode} {next_check} {expires} {int(inbox.deaf)} {inbox.process}"


def _holder(fields: dict[str, str]) -> Holder:
    plain = {"lease", "task", "process", "v"}
    unknown = fields.keys() - plain - {"id", "phase", "deadline", "token", "inbox", "arrival", "since", "dirty"}
    assert not unknown, f"unknown fields of the holder: {unknown}"
    return Holder(
        fields["id"],
        fields["phase"],
        ticks(int(fields["deadline"])),
        to_rank(int(float(fields["token"]))),
        fields["inbox"],
        tuple(sorted((name, value) for name, value in fields.items() if name in plain)),
    )


_INBOX = re.compile(r"(\w+) (\d+) (\d+) (\d) (.*)")


def _waiters(fields: dict[str, str]) -> tuple[tuple[Seat, ...], tuple[Inbox, ...], tuple[tuple[str, int], ...]]:
    seats, inboxes, counts = [], [], []
    for name, value in sorted(fields.items()):
        if name.startswith("#"):
            counts.append((name[1:], int(value)))
        elif name.startswith("@"):
            match = _INBOX.fullmatch(value)
            assert match, f"unknown record of an inbox: {value}"
            mode, next_check, expires, deaf, process = match.groups()
            # A push inbox's next check is not read: only a polling waiter's reservation goes by it.
            left = -((BASE_MS - int(next_check)) // TICK_MS) if mode == "poll" else 0
            inboxes.append(
                Inbox(name[1:], mode, max(_OVERDUE, left), ticks(int(expires)), deaf == "1" and mode == "push", process)
            )
        else:
            inbox, lease, ttl, arrival, task = value.split(" ", 4)
            seats.append(Seat(name, inbox, to_rank(int(arrival)), int(lease) // TICK_MS, int(ttl) // TICK_MS, task))
    return tuple(seats), tuple(inboxes), tuple(counts)


def _queue(scores: dict[str, float], seats: tuple[Seat, ...]) -> tuple[tuple[str, int], ...]:
    arrivals = {seat.id: to_number(seat.arrival) if seat.arrival < NEW else BASE_US for seat in seats}
    ranked = sorted(scores.items(), key=lambda pair: (pair[1], pair[0]))
    return tuple((name, int(arrivals.get(name, 0) - score)) for name, score in ranked)


def rerank(state: State, token: Callable[[Rank], Rank], arrival: Callable[[Rank], Rank]) -> State:
    """`state` with its tokens and arrivals mapped."""
    holder, fence = state.holder, state.fence
    return state._replace(
        holder=holder and holder._replace(token=token(holder.token)),
        fence=fence and fence._replace(token=token(fence.token)),
        seats=tuple(seat._replace(arrival=arrival(seat.arrival)) for seat in state.seats),
    )
