"""The programs around the scripts: what clients, the network, the clock and faults may do next.

A world is a value: the store's number, one record per client, what is on its way, the faults left, and the highest
token that was ever held. Calls are atomic unless the fault `slow` splits one; a client that is late is a client that
was not chosen, so every delay of a program is covered without a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from tests.model.calls import Call, Caller, Note, Result
from tests.model.configs import Config, Faults
from tests.model.normal import STALE, Rank

IDLE, WAIT, HELD, RELEASING, LEAVING, FINISHED, DEAD = range(7)
PHASES = ("idle", "waiting", "holding", "releasing", "leaving", "finished", "dead")
CALM, NOTICE, MISSING = range(3)


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
    """Holding: a restart was noticed; a beat answered 'missing'. Waiting: 1 if Redis confirmed the seat."""


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


_DENSE_ARRIVALS = tuple(frozenset(range(size)) for size in range(64))
_DENSE_TOKENS = tuple(frozenset(range(STALE, size - 1)) for size in range(64))

Step: TypeAlias = tuple[str, World, str]
"""What happened, the world after it, and the promise it broke, if any."""


class Rules:
    """All steps of one configuration."""

    def __init__(self, config: Config, edit: Callable[[str, str], str] | None = None) -> None:
        self.config = config
        self.caller = Caller(config, edit)
        self.full = config.lease - config.margin
        self._left: dict[tuple[Faults, str], Faults] = {}
        self._known_parts: dict[int, tuple[tuple[Rank, ...], tuple[Rank, ...], Rank]] = {}
        self.start = World(
            self.caller.empty,
            tuple(Client(IDLE, subscribed=not spec.polls) for spec in config.clients),
            (),
            (),
            config.faults,
            0,
        )

    # steps ----------------------------------------------------------------------------------------------------

    def steps(self, world: World) -> Iterator[Step]:
        """Everything that can happen next."""
        for index, client in enumerate(world.clients):
            if client.phase not in (FINISHED, DEAD):
                yield from self._client_steps(world, index, client)
        for note in world.notes:
            yield from self.deliver(world, note)
            if world.faults.message:
                yield f"a message is lost: {describe(note)}", self._without(self._spend(world, "message"), note), ""
        for flight in world.flights:
            yield self.arrive(world, flight)
        yield from self._faults(world)
        yield from self._reap(world)
        if self.may_tick(world):
            if not self._somebody_is_due(world):
                yield "1 tick passes", self.tick(world), ""
            elif world.faults.stall:
                yield "1 tick passes, somebody is late", self.tick(self._spend(world, "stall")), ""

    def _client_steps(self, world: World, index: int, client: Client) -> Iterator[Step]:
        phase = client.phase
        if phase == IDLE and self._may_start(world, index):
            yield from self.start_waiting(world, index)
        elif phase == WAIT:
            if client.timer == 0:
                yield from self.check(world, index)
            if not client.subscribed and not self.config.clients[index].polls:
                yield self.resubscribe(world, index)
            if world.faults.quit:
                left = _with(self._spend(world, "quit"), index, client._replace(phase=LEAVING))
                yield from self.leave(left, index)
        elif phase == HELD:
            yield from self.release(world, index)
            if client.flag == MISSING:
                yield from self._send(world, Call("reassert", index, client.turn, client.token))
            elif client.timer < self.full or client.flag == NOTICE:
                yield from self._send(world, Call("heartbeat", index, client.turn, client.token))
        elif phase == RELEASING:
            yield from self.release(world, index)
        elif phase == LEAVING:
            yield from self.leave(world, index)

    def _may_start(self, world: World, index: int) -> bool:
        """Equal programs start in their order: the other orders are the same histories under other names."""
        spec, client = self.config.clients[index], world.clients[index]
        if index == 0 or client.turn:
            return True
        before = self.config.clients[index - 1]
        return before._replace(manager=0) != spec._replace(manager=0) or world.clients[index - 1].phase != IDLE

    def start_waiting(self, world: World, index: int) -> Iterator[Step]:
        spec, client = self.config.clients[index], world.clients[index]
        begun = Client(WAIT, client.turn, not spec.polls)
        yield from self.check(_with(world, index, begun), index)

    def check(self, world: World, index: int, hint: Rank = 0) -> Iterator[Step]:
        client = world.clients[index]
        mode = "push" if client.subscribed else "poll"
        yield from self._send(world, Call("acquire", index, client.turn, hint, client.arrival, mode))

    def release(self, world: World, index: int) -> Iterator[Step]:
        client = world.clients[index]
        call = Call("release", index, client.turn, client.token)
        leaving = _with(world, index, client._replace(phase=RELEASING, timer=0, flag=CALM))
        yield from self._send(leaving, call, sure=client.phase == HELD)

    def leave(self, world: World, index: int) -> Iterator[Step]:
        yield from self._send(world, Call("withdraw", index, world.clients[index].turn, mode="own"))

    def resubscribe(self, world: World, index: int) -> Step:
        """The inbox is connected again; its owner re-reads the state at once."""
        manager = self.config.clients[index].manager
        clients = tuple(
            c._replace(subscribed=True, timer=0 if c.phase == WAIT else c.timer)
            if self.config.clients[other].manager == manager and c.phase != DEAD
            else c
            for other, c in enumerate(world.clients)
        )
        return f"{name(index)} subscribes again", world._replace(clients=clients), ""

    def deliver(self, world: World, note: Note) -> Iterator[Step]:
        """A message reaches its client, which acts on it at once."""
        client, rest = world.clients[note.client], self._without(world, note)
        text = f"{name(note.client)} reads {describe(note)}"
        if note.kind == "lost":
            current = client.phase == HELD and client.token == note.value
            yield text, _with(rest, note.client, client._replace(flag=NOTICE)) if current else rest, ""
        elif client.phase == WAIT and client.turn == note.turn:
            for then, after, fault in self.check(rest, note.client, note.value):
                yield f"{text}; {then}", after, fault
        elif client.phase in (HELD, RELEASING, LEAVING) and client.turn == note.turn:
            yield text, rest, ""
        else:
            # Not waited for any more: it is handed on.
            for then, after, fault in self._send(rest, Call("withdraw", note.client, note.turn, mode="told")):
                yield f"{text}; {then}", after, fault

    # calls ----------------------------------------------------------------------------------------------------

    def _send(self, world: World, call: Call, sure: bool = False) -> Iterator[Step]:
        """A call with each fate that the faults left allow. `sure`: the sender's lease is not over."""
        text = describe_call(call)
        index = call.client
        world = self._abandon(world, call)
        result = self._run(world, call)
        after, fault = self._ran(world, call, result)
        if sure and result.reply[0] == "other":
            fault = fault or f"{name(index)}'s lease was taken although its deadline had not come"
        if fault:
            yield f"{text} -> {show(result.reply)}", after, fault
            return
        after, fault = self._answer(after, call, result, 0)
        yield f"{text} -> {show(result.reply)}", self._seal(after), fault
        if world.faults.reply:
            unknown, fault = self._ran(self._unanswered(self._spend(world, "reply"), index), call, result)
            yield f"{text} -> {show(result.reply)}, but the reply is lost", self._seal(unknown), fault
        if world.faults.message and any(note.kind == "watch" for note in result.notes):
            unwatched = result._replace(notes=tuple(note for note in result.notes if note.kind != "watch"))
            after, fault = self._ran(self._spend(world, "message"), call, unwatched)
            after, fault = self._answer(after, call, result, 0)
            yield f"{text} -> {show(result.reply)}, and the next one's message is lost", self._seal(after), fault
        if world.faults.slow:
            sent = self._unanswered(self._spend(world, "slow"), index)
            flights = tuple(sorted((*sent.flights, Flight(call, 0, True))))
            yield f"{text}: sent, not run yet", self._seal(sent._replace(flights=flights)), ""
        if world.faults.refuse:
            refused = self._run(world, call, refuse=True)
            if refused.fault or refused.notes or refused.state != world.state:
                after, fault = self._ran(self._spend(world, "refuse"), call, refused)
                yield f"{text}: the server refuses the write", self._seal(after), fault

    def _unanswered(self, world: World, index: int) -> World:
        """A waiter without an answer asks again soon, and knows nothing of its seat."""
        client = world.clients[index]
        if client.phase != WAIT:
            return world
        return _with(world, index, client._replace(timer=0, flag=0))

    def arrive(self, world: World, flight: Flight) -> Step:
        """A slow call runs, and its reply comes back."""
        call = flight.call
        flights = list(world.flights)
        flights.remove(flight)
        world = world._replace(flights=tuple(flights))
        result = self._run(world, call)
        after, fault = self._ran(world, call, result)
        if not fault and flight.awaited:
            after, fault = self._answer(after, call, result, flight.age)
        return f"the delayed {describe_call(call)} runs -> {show(result.reply)}", self._seal(after), fault

    def _abandon(self, world: World, call: Call) -> World:
        """A new call of an acquisition means that the answer to the one on its way is not read, but for beats."""
        if not world.flights:
            return world
        flights = tuple(
            f._replace(awaited=False)
            if f.awaited and f.call.client == call.client and (f.call.name != "heartbeat" or call.name == "release")
            else f
            for f in world.flights
        )
        return world._replace(flights=flights)

    def _run(self, world: World, call: Call, refuse: bool = False) -> Result:
        subscribed = 0
        for index, client in enumerate(world.clients):
            if client.subscribed and client.phase != DEAD:
                subscribed |= 1 << index
        return self.caller.run(world.state, subscribed, call, refuse)

    def _ran(self, world: World, call: Call, result: Result) -> tuple[World, str]:
        """What a call did on the server, whoever reads its reply."""
        notes, clients = world.notes, world.clients
        if result.notes:
            kept = set(notes)
            for note in result.notes:
                client = world.clients[note.client]
                if note.kind != "watch":
                    kept.add(note)
                elif client.phase == WAIT and note.value < client.timer:
                    clients = _put(clients, note.client, client._replace(timer=int(note.value)))
            notes = tuple(sorted(kept))
        return World(result.state, clients, notes, world.flights, world.faults, world.top, world.saved), result.fault

    def _answer(self, world: World, call: Call, result: Result, age: int) -> tuple[World, str]:
        """What the reply means to its reader."""
        client = world.clients[call.client]
        if client.turn != call.turn:
            return world, ""
        match call.name, client.phase:
            case "acquire", 1:
                return self._acquired(world, call.client, client, result, age)
            case "heartbeat" | "reassert", 2:
                return self._beaten(world, call, client, result, age)
            case ("release", 3) | ("withdraw", 4):
                return _with(world, call.client, self._next_turn(call.client, client)), ""
            case _:
                return world, ""

    def _acquired(self, world: World, index: int, client: Client, result: Result, age: int) -> tuple[World, str]:
        match result.reply:
            case ("held", token, *_):
                left = self.full - age
                phase = HELD if left > 0 else RELEASING
                client = Client(phase, client.turn, client.subscribed, max(0, left), token)
                if token <= world.top:
                    return world, f"{name(index)} starts with token {token:g}, not above {world.top:g} of a body before"
                world = world._replace(top=token)
            case ("waiting", position, arrival, recheck, more):
                timer = self.config.fallback if client.subscribed else self.config.poll
                if recheck >= 0 and position <= 3:
                    timer = min(timer, max(1, recheck) + (position - 1) * self.config.claim_window)
                client = Client(WAIT, client.turn, client.subscribed, 0 if more else timer, 0, arrival, 1)
            case ("busy",) | ("full",):
                client = self._next_turn(index, client)
            case ("stale",):
                client = client._replace(timer=0)
            case ("done", "reaped") if self._reply_was_lost(world):
                client = self._next_turn(index, client)  # it held the lock without knowing, for a whole lease
            case ("done", outcome):
                return world, f"{name(index)} waits, and was ended as {outcome}"
        return _with(world, index, client), ""

    def _reply_was_lost(self, world: World) -> bool:
        left, at_first = world.faults, self.config.faults
        return left.reply < at_first.reply or left.slow < at_first.slow

    def _beaten(self, world: World, call: Call, client: Client, result: Result, age: int) -> tuple[World, str]:
        index = call.client
        if client.token != call.token:
            return world, ""
        match result.reply[0]:
            case "renewed":
                timer = max(client.timer, self.full - age)
                client = client._replace(timer=timer, flag=CALM)
            case "missing":
                client = client._replace(flag=MISSING)
            case _:
                lost = client._replace(phase=RELEASING, timer=0, flag=CALM)
                return _with(world, index, lost), f"{name(index)}'s lease was taken although its deadline had not come"
        return _with(world, index, client), ""

    def _next_turn(self, index: int, client: Client) -> Client:
        spec = self.config.clients[index]
        last = client.turn + 1 >= spec.turns
        return Client(FINISHED if last else IDLE, client.turn if last else client.turn + 1, client.subscribed)

    # faults and time ------------------------------------------------------------------------------------------

    def _faults(self, world: World) -> Iterator[Step]:
        faults = world.faults
        if faults.crash:
            for index, client in enumerate(world.clients):
                if client.phase in (WAIT, HELD, RELEASING, LEAVING):
                    yield f"{name(index)} is killed", self._crash(world, index), ""
        if faults.data and world.state != self.caller.restarted:
            yield "the server restarts, empty", self._restart(world, "data", self.caller.restarted), ""
        if faults.restart:
            kept = self.caller.restart_with_data(world.state)
            yield "the server restarts with its data", self._restart(world, "restart", kept), ""
        if faults.old:
            if world.saved < 0 and world.state != self.caller.empty:
                yield "the server copies its data", world._replace(saved=world.state), ""
            elif world.saved >= 0 and world.saved != world.state:
                older = self.caller.restart_with_data(world.saved)
                back = self._restart(world._replace(saved=-1), "old", older)
                yield "the server restarts with its old copy", back, ""
        if faults.cut:
            for index, client in enumerate(world.clients):
                if client.subscribed and client.phase == WAIT:
                    gone = self._housemates(index)
                    yield f"{name(index)} loses its inbox", self._cut(self._spend(world, "cut"), gone), ""

    def _housemates(self, index: int) -> set[int]:
        """All clients in the process of one."""
        manager = self.config.clients[index].manager
        return {other for other, spec in enumerate(self.config.clients) if spec.manager == manager}

    def _crash(self, world: World, index: int) -> World:
        gone = self._housemates(index)
        world = self._cut(self._spend(world, "crash"), gone)
        for other in gone:
            world = _with(world, other, Client(DEAD, world.clients[other].turn, subscribed=False))
        flights = tuple(f._replace(awaited=f.awaited and f.call.client not in gone) for f in world.flights)
        return self._seal(world._replace(flights=flights))

    def _restart(self, world: World, fault: str, state: int) -> World:
        """Every connection drops. Holders and waiters notice by that; calls on their way may still run."""
        clients = []
        for client in world.clients:
            if client.phase == HELD:
                client = client._replace(flag=max(client.flag, NOTICE))
            elif client.phase == WAIT:
                client = client._replace(flag=0, subscribed=False)
            clients.append(client)
        world = self._spend(world, fault)
        return self._seal(world._replace(state=state, clients=tuple(clients), notes=()))

    def _cut(self, world: World, gone: set[int]) -> World:
        clients = tuple(c._replace(subscribed=False) if i in gone else c for i, c in enumerate(world.clients))
        notes = tuple(note for note in world.notes if note.client not in gone)
        return self._seal(world._replace(clients=clients, notes=notes))

    def _reap(self, world: World) -> Iterator[Step]:
        """Somebody on its host sees that the holder's process is gone."""
        holder = self.caller.states[world.state].holder
        for index, client in enumerate(world.clients):
            if client.phase == DEAD and holder and holder.id == f"{name(index)}{client.turn}":
                call = Call("reap", index, client.turn)
                result = self._run(world, call)
                after, fault = self._ran(world, call, result)
                yield f"the dead {holder.id} is reaped -> {show(result.reply)}", self._seal(after), fault

    def may_tick(self, world: World) -> bool:
        """Holders notice a restart and beat within its grace: the promise ends where they do not."""
        state = self.caller.states[world.state]
        if state.grace_left(self.config.grace) == 1:
            return not any(c.phase == HELD and c.flag != CALM and c.timer > 1 for c in world.clients)
        return True

    def _somebody_is_due(self, world: World) -> bool:
        """A message waits to be read, a check, a beat, or the repetition of a call that was not answered."""
        if world.notes:
            return True
        waiting_for_replies = world.flights and {flight.call.client for flight in world.flights if flight.awaited}
        for index, client in enumerate(world.clients):
            if index in waiting_for_replies:
                continue
            if client.phase == WAIT:
                if not client.timer or not (client.subscribed or self.config.clients[index].polls):
                    return True
            elif client.phase == HELD:
                if client.flag or client.timer <= self.config.margin:
                    return True
            elif client.phase in (RELEASING, LEAVING):
                return True
        return False

    def tick(self, world: World) -> World:
        clients = []
        for client in world.clients:
            phase, turn, subscribed, timer, token, arrival, flag = client
            if timer and (phase in (WAIT, HELD)):
                if phase == HELD and timer == 1:
                    phase, flag = RELEASING, CALM
                client = Client(phase, turn, subscribed, timer - 1, token, arrival, flag)
            clients.append(client)
        flights = world.flights and tuple(f._replace(age=min(f.age + 1, self.full)) for f in world.flights)
        saved = self.caller.later(world.saved) if world.saved >= 0 else -1
        state = self.caller.later(world.state)
        return World(state, tuple(clients), world.notes, flights, world.faults, world.top, saved)

    # the suffix without faults --------------------------------------------------------------------------------

    def prompt_step(self, world: World) -> tuple[str, World, str] | None:
        """The next step where nothing fails and nobody is late; None when all is over. Ticks if nobody can act."""
        if world.notes:
            return next(self.deliver(world, world.notes[0]))
        if world.flights:
            return self.arrive(world, world.flights[0])
        for index, client in enumerate(world.clients):
            if client.phase in (HELD, RELEASING):
                return next(self.release(world, index))
            if client.phase == LEAVING:
                return next(self.leave(world, index))
            if client.phase == WAIT:
                if not client.subscribed and not self.config.clients[index].polls:
                    return self.resubscribe(world, index)
                if client.timer == 0:
                    return next(self.check(world, index))
        if any(client.phase == WAIT for client in world.clients):
            return "1 tick passes", self.tick(world), ""
        return None

    # canonical worlds -----------------------------------------------------------------------------------------

    def _spend(self, world: World, fault: str) -> World:
        key = (world.faults, fault)
        left = self._left.get(key)
        if left is None:
            left = self._left[key] = world.faults._replace(**{fault: getattr(world.faults, fault) - 1})
        return World(world.state, world.clients, world.notes, world.flights, left, world.top, world.saved)

    def _without(self, world: World, note: Note) -> World:
        return world._replace(notes=tuple(n for n in world.notes if n != note))

    def _seal(self, world: World) -> World:
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
        )


def _reranked(flight: Flight, token: dict[Rank, int], arrival: dict[Rank, int]) -> Flight:
    call = flight.call
    call = call._replace(token=token.get(call.token, call.token), arrival=arrival.get(call.arrival, 0))
    return flight._replace(call=call)


def _with(world: World, index: int, client: Client) -> World:
    clients = _put(world.clients, index, client)
    return World(world.state, clients, world.notes, world.flights, world.faults, world.top, world.saved)


def _put(clients: tuple[Client, ...], index: int, client: Client) -> tuple[Client, ...]:
    return (*clients[:index], client, *clients[index + 1 :])


def name(index: int) -> str:
    return chr(ord("a") + index)


def show(reply: tuple[object, ...]) -> str:
    return " ".join(str(part) for part in reply)


def describe(note: Note) -> str:
    value = "old" if note.value == STALE else f"{note.value:g}"
    return f"{note.kind} for {name(note.client)}{note.turn} (token {value})"


def describe_call(call: Call) -> str:
    details = f" token {call.token:g}" if call.token else ""
    details += f", {call.mode}" if call.name == "acquire" else ""
    return f"{name(call.client)}{call.turn} {call.name}{details}"
