"""What the programs do: wait, claim, beat, release and leave as the library does, each call with its possible fates.

Calls are atomic unless the fault `slow` splits one. A client that is late is one that was not chosen, so every delay of
a program is covered, within the ticks of lateness that the configuration allows.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.calls import Call, Note, Result, holder_id, owner
from tests.model.configs import ClientSpec
from tests.model.normal import STALE, Rank
from tests.model.worlds import (
    CALM,
    DEAD,
    DRAINING,
    ENDED,
    FINISHED,
    HELD,
    IDLE,
    LEAVING,
    MISSING,
    NOTICE,
    RELEASING,
    SEATED,
    UNREAD,
    UNSURE,
    WAIT,
    Client,
    Flight,
    Step,
    World,
    Worlds,
    describe,
    describe_call,
    name,
    put,
    show,
    with_client,
)


class Programs(Worlds):
    """Steps of the clients and of their calls."""

    def client_steps(self, world: World, index: int, client: Client) -> Iterator[Step]:
        phase = client.phase
        if phase == IDLE and self._may_start(world, index):
            yield from self.start_waiting(world, index)
        elif phase == WAIT:
            yield from self._waiter_steps(world, index, client)
        elif client.holds:
            yield from self.end_body(world, index)
            if client.alarm == MISSING:
                yield from self._send(world, Call("reassert", index, client.turn, client.token))
            elif client.timer < self.full or client.alarm == NOTICE:
                yield from self._send(world, Call("heartbeat", index, client.turn, client.token))
        elif phase == RELEASING:
            yield from self.release(world, index)
        elif phase == LEAVING:
            yield from self.leave(world, index)

    def _waiter_steps(self, world: World, index: int, client: Client) -> Iterator[Step]:
        if client.timer == 0:
            yield from self.check(world, index)
        if not client.subscribed and not self.config.clients[index].polls:
            yield self.resubscribe(world, index)
        if world.faults.quit:
            left = with_client(self.spend(world, "quit"), index, client._replace(phase=LEAVING))
            yield from self.leave(left, index)

    def _may_start(self, world: World, index: int) -> bool:
        """Equal programs start first in their order: the other orders are the same histories under other names."""
        if index == 0 or world.clients[index].turn:
            return True
        before = world.clients[index - 1]
        return before.phase != IDLE or before.turn > 0 or self._role(index) != self._role(index - 1)

    def _role(self, index: int) -> ClientSpec:
        """Equal for programs that can exchange their names: who shares a manager is like its housemates only."""
        spec = self.config.clients[index]
        alone = sum(other.manager == spec.manager for other in self.config.clients) == 1
        return spec._replace(manager=-1) if alone else spec

    def start_waiting(self, world: World, index: int) -> Iterator[Step]:
        spec, client = self.config.clients[index], world.clients[index]
        begun = Client(WAIT, client.turn, not spec.polls)
        yield from self.check(with_client(world, index, begun), index)

    def check(self, world: World, index: int, hint: Rank = 0) -> Iterator[Step]:
        client = world.clients[index]
        mode = "push" if client.subscribed else "poll"
        yield from self._send(world, Call("acquire", index, client.turn, hint, client.arrival, mode))

    def end_body(self, world: World, index: int) -> Iterator[Step]:
        """Under a strict memory policy it waits for the memory, while it beats; then it releases."""
        client = world.clients[index]
        if client.phase == HELD and self.config.clients[index].drains:
            draining = with_client(world, index, client._replace(phase=DRAINING))
            yield from self._send(draining, Call("heartbeat", index, client.turn, client.token, mode="draining"))
        else:
            yield from self.release(world, index)

    def release(self, world: World, index: int) -> Iterator[Step]:
        client = world.clients[index]
        call = Call("release", index, client.turn, client.token)
        leaving = with_client(world, index, client._replace(phase=RELEASING, timer=0, flag=CALM))
        yield from self._send(leaving, call, sure=client.holds and not client.forced)

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
        client, rest = world.clients[note.client], self.without(world, note)
        text = f"{name(note.client)} reads {describe(note)}"
        if note.kind == "lost":
            current = client.holds and client.token == note.value
            yield text, with_client(rest, note.client, client.noticing(NOTICE)) if current else rest, ""
        elif client.phase == WAIT and client.turn == note.turn:
            for then, after, fault in self.check(rest, note.client, note.value):
                yield f"{text}; {then}", after, fault
        elif client.phase in (HELD, DRAINING, RELEASING, LEAVING) and client.turn == note.turn:
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
        result = self.run(world, call)
        after, fault = self.ran(world, call, result)
        if sure and result.reply[0] != "released":
            fault = fault or f"{name(index)}'s lease was taken although its deadline had not come"
        if fault:
            yield f"{text} -> {show(result.reply)}", after, fault
            return
        after, fault = self._answer(after, call, result, 0)
        yield f"{text} -> {show(result.reply)}", self.seal(after), fault
        if world.faults.reply:
            lost = self._unanswered(self.spend(world, "reply"), index, result)
            unknown, fault = self.ran(lost, call, result)
            yield f"{text} -> {show(result.reply)}, but the reply is lost", self.seal(unknown), fault
        if world.faults.message and any(note.kind == "watch" for note in result.notes):
            unwatched = result._replace(notes=tuple(note for note in result.notes if note.kind != "watch"))
            after, fault = self.ran(self.spend(world, "message"), call, unwatched)
            after, fault = self._answer(after, call, result, 0)
            yield f"{text} -> {show(result.reply)}, and the next one's message is lost", self.seal(after), fault
        if world.faults.slow:
            sent = self._unanswered(self.spend(world, "slow"), index)
            flights = tuple(sorted((*sent.flights, Flight(call, 0, True))))
            yield f"{text}: sent, not run yet", self.seal(sent._replace(flights=flights)), ""
        if world.faults.refuse:
            refused = self.run(world, call, refuse=True)
            if refused.fault or refused.notes or refused.state != world.state:
                after, fault = self.ran(self.spend(world, "refuse"), call, refused)
                yield f"{text}: the server refuses the write", self.seal(after), fault

    def _unanswered(self, world: World, index: int, result: Result | None = None) -> World:
        """A waiter without an answer asks again soon, and knows nothing of its seat. `result`: what nobody reads."""
        client = world.clients[index]
        if client.phase != WAIT:
            return world
        flag = client.flag if client.flag in (UNREAD, ENDED) else UNSURE
        if result is not None and result.reply[0] == "held":
            flag = UNREAD
        return with_client(world, index, client._replace(timer=0, flag=flag))

    def arrive(self, world: World, flight: Flight) -> Step:
        """A slow call runs, and its reply comes back."""
        call = flight.call
        flights = list(world.flights)
        flights.remove(flight)
        world = world._replace(flights=tuple(flights))
        result = self.run(world, call)
        after, fault = self.ran(world, call, result)
        if not fault and flight.awaited:
            after, fault = self._answer(after, call, result, flight.age)
        elif call.name == "acquire":
            after = self._unread(after, call, result)
        return f"the delayed {describe_call(call)} runs -> {show(result.reply)}", self.seal(after), fault

    def _unread(self, world: World, call: Call, result: Result) -> World:
        """An acquire ran behind its sender's back: it may hold without knowing, or be there when it waits no more."""
        client, one = world.clients[call.client], holder_id(call.client, call.turn)
        if self.waits_for(world, one):
            known = client if result.reply[0] != "held" else client._replace(flag=UNREAD)
            return with_client(world, call.client, known)
        back = {*world.back, one} & self.caller.states[world.state].ids
        return world._replace(back=tuple(sorted(back)))

    def waits_for(self, world: World, one: str) -> bool:
        """Whether the program of that id waits for it."""
        index, turn = owner(one)
        client = world.clients[index]
        return client.phase == WAIT and client.turn == turn

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

    def run(self, world: World, call: Call, refuse: bool = False) -> Result:
        subscribed = 0
        for index, client in enumerate(world.clients):
            if client.subscribed and client.phase != DEAD:
                subscribed |= 1 << index
        return self.caller.run(world.state, subscribed, call, refuse)

    def ran(self, world: World, call: Call, result: Result) -> tuple[World, str]:
        """What a call did on the server, whoever reads its reply."""
        notes, clients = world.notes, world.clients
        if result.notes:
            kept = set(notes)
            for note in result.notes:
                client = world.clients[note.client]
                if note.kind != "watch":
                    kept.add(note)
                elif client.phase == WAIT and note.value < client.timer:
                    clients = put(clients, note.client, client._replace(timer=int(note.value)))
            notes = tuple(sorted(kept))
        back = world.back and tuple(one for one in world.back if one in self.caller.states[result.state].ids)
        after = World(result.state, clients, notes, world.flights, world.faults, world.top, world.saved, back)
        return after, result.fault

    def _answer(self, world: World, call: Call, result: Result, age: int) -> tuple[World, str]:
        """What the reply means to its reader."""
        client = world.clients[call.client]
        if client.turn != call.turn:
            return world, ""
        if call.name == "acquire" and client.phase == WAIT:
            return self._acquired(world, call.client, client, result, age)
        if call.name in ("heartbeat", "reassert") and client.holds:
            return self._beaten(world, call, client, result, age)
        if (call.name, client.phase) in (("release", RELEASING), ("withdraw", LEAVING)):
            return with_client(world, call.client, self._next_turn(call.client, client)), ""
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
            case ("waiting", position, arrival, recheck, more, holder):
                timer = 0 if more else self._next_check(client, position, recheck, holder == "foreign")
                client = Client(WAIT, client.turn, client.subscribed, timer, 0, arrival, SEATED)
                world = self._with_ghost(world, index, holder)
            case ("busy",) | ("full",):
                state = self.caller.states[world.state]
                free = not state.lock and not state.holder and not state.grace_left(self.config.grace)
                if free or self.config.clients[index].may_wait:
                    return world, f"{name(index)} was refused as {result.reply[0]}"
                client = self._next_turn(index, client)
            case ("stale",):
                client = client._replace(timer=0)
            case ("done", "reaped") if client.flag == UNREAD:
                client = self._next_turn(index, client)  # it held the lock without knowing, for a whole lease
            case ("done", "forced") if client.flag == ENDED:
                client = self._next_turn(index, client)
            case ("done", outcome):
                return world, f"{name(index)} waits, and was ended as {outcome}"
        return with_client(world, index, client), ""

    def _with_ghost(self, world: World, index: int, holder: str) -> World:
        """A holder of the same process that this does not know will be withdrawn, as by a message that names it."""
        if holder in ("", "foreign"):
            return world
        other, turn = owner(holder)
        client = world.clients[other]
        known = client.turn == turn and client.phase in (WAIT, HELD, DRAINING, RELEASING, LEAVING)
        if known or self.config.clients[other].manager != self.config.clients[index].manager:
            return world
        return world._replace(notes=tuple(sorted({*world.notes, Note(other, "grant", turn, STALE)})))

    def _next_check(self, client: Client, position: int, recheck: int, foreign: bool) -> int:
        timer = self.config.fallback if client.subscribed else self.config.poll
        if recheck >= 0:
            timer = min(timer, max(1, recheck) + min(position - 1, 3) * self.config.claim_window)
        return min(timer, self.config.poll * min(position, 4)) if foreign else timer

    def _data_was_lost(self, world: World) -> bool:
        left, at_first = world.faults, self.config.faults
        return left.data < at_first.data or left.old < at_first.old

    def _beaten(self, world: World, call: Call, client: Client, result: Result, age: int) -> tuple[World, str]:
        index = call.client
        if client.token != call.token:
            return world, ""
        match result.reply[0]:
            case "renewed":
                timer = max(client.timer, self.full - age)
                if client.forced and not self._data_was_lost(world):
                    return world, f"{name(index)}'s lease was renewed although an operator had ended it"
                client = client._replace(timer=timer).noticing(CALM)
            case "missing":
                client = client.noticing(MISSING)
            case _:
                lost = client._replace(phase=RELEASING, timer=0, flag=CALM)
                taken = "" if client.forced else f"{name(index)}'s lease was taken although its deadline had not come"
                return with_client(world, index, lost), taken
        return with_client(world, index, client), ""

    def _next_turn(self, index: int, client: Client) -> Client:
        spec = self.config.clients[index]
        last = client.turn + 1 >= spec.turns
        return Client(FINISHED if last else IDLE, client.turn if last else client.turn + 1, client.subscribed)
