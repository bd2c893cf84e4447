"""Those who neither hold nor wait: who reaps, an operator, a monitor, an older program."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.calls import Call, owner
from tests.model.normal import FOREIGN_VALUE
from tests.model.programs import Programs
from tests.model.worlds import DEAD, ENDED, FORCED, WAIT, Step, World, name, show, with_client


class Outsiders(Programs):
    """Their steps."""

    def outsiders_steps(self, world: World) -> Iterator[Step]:
        yield from self._reap(world)
        holder = self.caller.states[world.state].holder
        if world.faults.force and holder:
            yield self._force(world, holder.id)
        if self.config.monitor:
            yield from self._watch(world)
        if self.config.faults.foreign:
            yield from self._older_program(world)

    def _force(self, world: World, seen: str) -> Step:
        """An operator ends the holder that it sees. That one learns of it by a message, or by its next beat."""
        index, turn = owner(seen)
        call = Call("force", index, turn)
        result = self.run(world, call)
        after, fault = self.ran(self.spend(world, "force"), call, result)
        client = after.clients[index]
        if client.holds and client.turn == turn and not client.forced:
            after = with_client(after, index, client._replace(flag=client.flag + FORCED))
        elif client.phase == WAIT and client.turn == turn:
            after = with_client(after, index, client._replace(flag=ENDED))
        return f"an operator ends {seen} -> {show(result.reply)}", self.seal(after), fault

    def _reap(self, world: World) -> Iterator[Step]:
        """Somebody on its host sees that the holder's process is gone."""
        holder = self.caller.states[world.state].holder
        for index, client in enumerate(world.clients):
            if client.phase == DEAD and holder and holder.id == f"{name(index)}{client.turn}":
                call = Call("reap", index, client.turn)
                result = self.run(world, call)
                after, fault = self.ran(world, call, result)
                yield f"the dead {holder.id} is reaped -> {show(result.reply)}", self.seal(after), fault

    def _watch(self, world: World) -> Iterator[Step]:
        """A monitor ends a lease that is over, and takes the seats of the dead away."""
        state = self.caller.states[world.state]
        dead = [f"{name(i)}{client.turn}" for i, client in enumerate(world.clients) if client.phase == DEAD]
        calls = [Call("sweep", 0, 0, mode=" ".join(gone)) for gone in ([], dead)]
        if state.holder:
            calls.append(Call("expire", *owner(state.holder.id)))
        for call in calls:
            result = self.run(world, call)
            if result.state == world.state and not result.notes:
                continue
            after, fault = self.ran(world, call, result)
            if call.name == "expire" and state.holder and state.holder.deadline:
                fault = fault or "the monitor ended a lease before its deadline"
            yield f"the monitor: {call.name} -> {show(result.reply)}", self.seal(after), fault

    def _older_program(self, world: World) -> Iterator[Step]:
        """It knows nothing but the key: sets it if nobody has, deletes its own value and says so to all."""
        state = self.caller.states[world.state]
        if state.foreign:
            deleted = self.caller.number(state._replace(lock=None))
            clients = tuple(c._replace(timer=0) if c.phase == WAIT and c.subscribed else c for c in world.clients)
            after = world._replace(state=deleted, clients=clients)
            yield "the older program deletes its value", self.seal(after), ""
        elif world.faults.foreign and state.lock is None:
            locked = self.caller.number(state._replace(lock=(FOREIGN_VALUE, self.config.ttl)))
            after = self.spend(world, "foreign")._replace(state=locked)
            yield "an older program locks", self.seal(after), ""
