"""What is remembered of the programs around the scripts, in canonical form.

A world is a value: the store's number, one record per client, what is on its way, the faults left, and the highest
token under which a body started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from tests.model.calls import Call, Caller, Note
from tests.model.configs import Config, Faults
from tests.model.normal import NEW, STALE, Rank

IDLE, WAIT, HELD, DRAINING, RELEASING, LEAVING, FINISHED, DEAD = range(8)
CALM, NOTICE, MISSING, FORCED = range(4)
UNSURE, SEATED, UNREAD, ENDED = range(4)


class Client(NamedTuple):
    """One program, as it sees itself."""

    phase: int
    turn: int = 0
    subscribed: bool = True
    timer: int = 0
    """Waiting: ticks until its next check. Holding: ticks until its own deadline."""
    token: Rank = 0
    arrival: Rank = 0
    flag: int = CALM
    """Holding: a restart was noticed; a beat answered 'missing'; FORCED more if an operator ended it.
    Waiting: SEATED if Redis confirmed the seat; UNREAD if it gave the lock, and nobody read that reply; ENDED if an
    operator ended the grant or the lease of which it does not know."""

    @property
    def holds(self) -> bool:
        """By its own word: its body runs, or is over and the memory is waited for."""
        return self.phase in (HELD, DRAINING)

    @property
    def forced(self) -> bool:
        """An operator ended its lease, which it may not know yet: its word that it holds does not count."""
        return self.holds and self.flag >= FORCED

    @property
    def alarm(self) -> int:
        """What a holder has noticed: CALM, NOTICE or MISSING."""
        return self.flag % FORCED

    def noticing(self, alarm: int) -> Client:
        """A holder that has noticed something, or has settled it."""
        return self._replace(flag=self.flag - self.alarm + alarm)


class Flight(NamedTuple):
    """A call that was sent and has not run. `age`: ticks since. `awaited`: somebody still reads its reply."""

    call: Call
    age: int
    awaited: bool


class World(NamedTuple):
    state: int
    clients: tuple[Client, ...]
    notes: tuple[Note, ...]
    flights: tuple[Flight, ...]
    faults: Faults
    top: Rank
    """The highest token under which a body ever started."""
    saved: int = -1
    """State of the server's last copy of its data, as old as it is; -1: none."""
    back: tuple[str, ...] = ()
    """Ids that came back, in the queue or holding, when their programs waited for them no more: they may stay until
    they expire."""


_DENSE_ARRIVALS = tuple(frozenset(range(size)) for size in range(64))
_DENSE_TOKENS = tuple(frozenset(range(STALE, size - 1)) for size in range(64))

Step: TypeAlias = tuple[str, World, str]
"""What happened, the world after it, and the promise it broke, if any."""


class Worlds:
    """Canonical worlds of one configuration, and their parts changed."""

    def __init__(self, config: Config, edit: Callable[[str, str], str] | None = None) -> None:
        self.config = config
        self.caller = Caller(config, edit)
        self.full = config.lease - config.margin
        """Ticks that a lease lasts on its holder's clock."""
        self._left: dict[tuple[Faults, str], Faults] = {}
        self._known_parts: dict[int, tuple[tuple[Rank, ...], tuple[Rank, ...], Rank]] = {}
        clients = tuple(Client(IDLE, subscribed=not spec.polls) for spec in config.clients)
        self.start = World(self.caller.empty, clients, (), (), config.faults, 0)

    def spend(self, world: World, fault: str) -> World:
        key = (world.faults, fault)
        left = self._left.get(key)
        if left is None:
            left = self._left[key] = world.faults._replace(**{fault: getattr(world.faults, fault) - 1})
        return World(world.state, world.clients, world.notes, world.flights, left, world.top, world.saved, world.back)

    def without(self, world: World, note: Note) -> World:
        return world._replace(notes=tuple(n for n in world.notes if n != note))

    def seal(self, world: World) -> World:
        """Tokens and arrivals become dense; a grant that was overtaken keeps no token."""
        known_tokens, known_arrivals, current = self._parts(world.state)
        notes = world.notes
        if notes:
            fresh = {n._replace(value=STALE) if n.kind == "grant" and n.value != current else n for n in notes}
            if fresh != set(notes):
                notes = tuple(sorted(fresh))
                world = world._replace(notes=notes)
        tokens, arrivals = {0, STALE, world.top}, {0}
        tokens.update(known_tokens)
        arrivals.update(known_arrivals)
        if world.saved >= 0:
            saved_tokens, saved_arrivals, _ = self._parts(world.saved)
            tokens.update(saved_tokens)
            arrivals.update(saved_arrivals)
        for client in world.clients:
            tokens.add(client.token)
            arrivals.add(client.arrival)
        for note in notes:
            tokens.add(note.value)
        for flight in world.flights:
            tokens.add(flight.call.token)
            arrivals.add(flight.call.arrival)
        if tokens == _DENSE_TOKENS[len(tokens)] and arrivals == _DENSE_ARRIVALS[len(arrivals)]:
            return world
        return self._rerank(world, tuple(sorted(tokens - {0, STALE})), tuple(sorted(arrivals - {0})))

    def _parts(self, state: int) -> tuple[tuple[Rank, ...], tuple[Rank, ...], Rank]:
        known = self._known_parts.get(state)
        if known is None:
            full = self.caller.states[state]
            current = full.holder.token if full.holder else STALE
            known = self._known_parts[state] = (full.tokens, full.arrivals, current)
        return known

    def _rerank(self, world: World, tokens: tuple[Rank, ...], arrivals: tuple[Rank, ...]) -> World:
        token = {value: rank for rank, value in enumerate(tokens, 1)}
        arrival = {value: rank for rank, value in enumerate(arrivals, 1)}
        return World(
            self.caller.rerank(world.state, tokens, arrivals),
            tuple(
                Client(*c[:4], token.get(c.token, c.token), arrival.get(c.arrival, 0), c.flag)
                if c.token or c.arrival
                else c
                for c in world.clients
            ),
            world.notes and tuple(sorted(n._replace(value=token.get(n.value, n.value)) for n in world.notes)),
            world.flights and tuple(sorted(_reranked(flight, token, arrival) for flight in world.flights)),
            world.faults,
            token.get(world.top, 0),
            self.caller.rerank(world.saved, tokens, arrivals) if world.saved >= 0 else -1,
            world.back,
        )


def _reranked(flight: Flight, token: dict[Rank, int], arrival: dict[Rank, int]) -> Flight:
    call = flight.call
    call = call._replace(token=token.get(call.token, call.token), arrival=arrival.get(call.arrival, 0))
    return flight._replace(call=call)


def with_client(world: World, index: int, client: Client) -> World:
    clients = put(world.clients, index, client)
    return World(world.state, clients, world.notes, world.flights, world.faults, world.top, world.saved, world.back)


def put(clients: tuple[Client, ...], index: int, client: Client) -> tuple[Client, ...]:
    return (*clients[:index], client, *clients[index + 1 :])


def name(index: int) -> str:
    return chr(ord("a") + index)


def show(reply: tuple[object, ...]) -> str:
    """A reply in words; what was just taken from the clock has no rank yet."""
    return " ".join("new" if isinstance(part, int | float) and part >= NEW else str(part) for part in reply)


def describe(note: Note) -> str:
    value = "old" if note.value == STALE else f"{note.value:g}"
    return f"{note.kind} for {name(note.client)}{note.turn} (token {value})"


def describe_call(call: Call) -> str:
    details = f" token {call.token:g}" if call.token else ""
    details += f", {call.mode}" if call.name == "acquire" else ""
    return f"{name(call.client)}{call.turn} {call.name}{details}"
