"""All steps of a configuration: the programs', the faults', and the clock's."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.outsiders import Outsiders
from tests.model.worlds import (
    CALM,
    DEAD,
    DRAINING,
    FINISHED,
    HELD,
    IDLE,
    LEAVING,
    NOTICE,
    RELEASING,
    UNREAD,
    UNSURE,
    WAIT,
    Client,
    Step,
    World,
    describe,
    name,
    with_client,
)


class Rules(Outsiders):
    """Everything that can happen in a world."""

    def steps(self, world: World) -> Iterator[Step]:
        """Everything that can happen next."""
        for index, client in enumerate(world.clients):
            if client.phase not in (FINISHED, DEAD):
                yield from self.client_steps(world, index, client)
        for note in world.notes:
            yield from self.deliver(world, note)
            if world.faults.message:
                yield f"a message is lost: {describe(note)}", self.without(self.spend(world, "message"), note), ""
        for flight in world.flights:
            yield self.arrive(world, flight)
        yield from self._faults(world)
        yield from self.outsiders_steps(world)
        if self.may_tick(world):
            if not self.somebody_is_due(world):
                yield "1 tick passes", self.tick(world), ""
            elif world.faults.stall:
                yield "1 tick passes, somebody is late", self.tick(self.spend(world, "stall")), ""

    # faults and time ------------------------------------------------------------------------------------------

    def _faults(self, world: World) -> Iterator[Step]:
        faults = world.faults
        if faults.crash:
            for index, client in enumerate(world.clients):
                if client.phase not in (IDLE, FINISHED, DEAD):
                    yield f"{name(index)} is killed", self._crash(world, index), ""
        if faults.cut:
            for index, client in enumerate(world.clients):
                if client.subscribed and client.phase == WAIT:
                    gone = self._housemates(index)
                    yield f"{name(index)} loses its inbox", self._cut(self.spend(world, "cut"), gone), ""
        yield from self._restarts(world)

    def _restarts(self, world: World) -> Iterator[Step]:
        faults = world.faults
        if faults.data and world.state != self.caller.restarted:
            yield "the server restarts, empty", self._restart(world, "data", self.caller.restarted), ""
        if faults.flush and world.state != self.caller.empty:
            clients = tuple(c._replace(flag=UNSURE) if c.phase == WAIT else c for c in world.clients)
            flushed = self.spend(world, "flush")._replace(state=self.caller.empty, clients=clients)
            yield "all data is deleted", self.seal(flushed), ""
        if faults.jump:
            state = world.state
            for _ in range(self.config.lease):
                state = self.caller.later(state)
            yield "the server's clock jumps ahead", self.spend(world, "jump")._replace(state=state), ""
        if faults.restart:
            kept = self.caller.restart_with_data(world.state)
            yield "the server restarts with its data", self._restart(world, "restart", kept), ""
        if faults.old and world.saved < 0 and world.state != self.caller.empty:
            yield "the server copies its data", world._replace(saved=world.state), ""
        if faults.old and world.saved >= 0 and world.saved != world.state:
            older = self.caller.restart_with_data(world.saved)
            back = tuple(sorted(one for one in self.caller.states[older].ids if not self.waits_for(world, one)))
            after = self._restart(world._replace(saved=-1, back=back), "old", older)
            yield "the server restarts with its old copy", after, ""

    def _housemates(self, index: int) -> set[int]:
        """All clients in the process of one."""
        manager = self.config.clients[index].manager
        return {other for other, spec in enumerate(self.config.clients) if spec.manager == manager}

    def _crash(self, world: World, index: int) -> World:
        gone = self._housemates(index)
        world = self._cut(self.spend(world, "crash"), gone)
        for other in gone:
            world = with_client(world, other, Client(DEAD, world.clients[other].turn, subscribed=False))
        flights = tuple(f._replace(awaited=f.awaited and f.call.client not in gone) for f in world.flights)
        return self.seal(world._replace(flights=flights))

    def _restart(self, world: World, fault: str, state: int) -> World:
        """Every connection drops. Holders and waiters notice by that; calls on their way may still run."""
        clients = []
        for client in world.clients:
            if client.holds:
                client = client.noticing(max(client.alarm, NOTICE))
            elif client.phase == WAIT:
                # An old copy may know a lease that its holder never heard of.
                unread = fault != "data" and client.flag == UNREAD
                client = client._replace(flag=UNREAD if unread else UNSURE, subscribed=False)
            clients.append(client)
        world = self.spend(world, fault)
        return self.seal(world._replace(state=state, clients=tuple(clients), notes=()))

    def _cut(self, world: World, gone: set[int]) -> World:
        clients = tuple(c._replace(subscribed=False) if i in gone else c for i, c in enumerate(world.clients))
        notes = tuple(note for note in world.notes if note.client not in gone)
        return self.seal(world._replace(clients=clients, notes=notes))

    def may_tick(self, world: World) -> bool:
        """Holders notice a restart and beat within its grace: the promise ends where they do not."""
        state = self.caller.states[world.state]
        if state.grace_left(self.config.grace) == 1:
            return not any(c.holds and c.alarm != CALM and c.timer > 1 for c in world.clients)
        return True

    def somebody_is_due(self, world: World) -> bool:
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
            elif client.holds:
                if client.alarm or client.timer <= self.config.margin:
                    return True
            elif client.phase in (RELEASING, LEAVING):
                return True
        return False

    def tick(self, world: World) -> World:
        clients = []
        for client in world.clients:
            phase, turn, subscribed, timer, token, arrival, flag = client
            if timer and phase in (WAIT, HELD, DRAINING):
                if phase != WAIT and timer == 1:
                    phase, flag = RELEASING, CALM
                client = Client(phase, turn, subscribed, timer - 1, token, arrival, flag)
            clients.append(client)
        flights = world.flights and tuple(f._replace(age=min(f.age + 1, self.full)) for f in world.flights)
        saved = self.caller.later(world.saved) if world.saved >= 0 else -1
        state = self.caller.later(world.state)
        return World(state, tuple(clients), world.notes, flights, world.faults, world.top, saved, world.back)

    # the suffix without faults --------------------------------------------------------------------------------

    def prompt_step(self, world: World) -> tuple[str, World, str] | None:
        """The next step where nothing fails and nobody is late; None when all is over.

        A tick passes only if nobody can act.
        """
        if world.notes:
            return next(self.deliver(world, world.notes[0]))
        if world.flights:
            return self.arrive(world, world.flights[0])
        for index, client in enumerate(world.clients):
            if client.holds or client.phase == RELEASING:
                return next(self.end_body(world, index))
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
