"""Exhaustive search: every reachable world of a configuration, its promises, and the shortest way to a broken one."""

from __future__ import annotations

import gc
import resource
import time
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.model.configs import Config
from tests.model.normal import POLL_SLACK, State
from tests.model.rules import Rules
from tests.model.worlds import DEAD, FINISHED, IDLE, SEATED, WAIT, World, name


class Violation(NamedTuple):
    """A broken promise, and the steps that lead to it."""

    promise: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        steps = "\n".join(f"  {number:2}. {step}" for number, step in enumerate(self.trace, 1))
        return f"{self.promise}\n{steps}"


class Report(NamedTuple):
    """What a search found."""

    config: str
    states: int
    steps: int
    script_runs: int
    longest_wait: int
    """Most ticks that a suffix without faults took to serve everybody."""
    seconds: float
    memory_mib: float
    """The most that this process ever took."""
    exhausted: bool
    violation: Violation | None

    def __str__(self) -> str:
        extent = "exhausted" if self.exhausted else "stopped early"
        verdict = str(self.violation) if self.violation else "0 violations"
        return (
            f"{self.config}: {self.states:,} distinct states, {self.steps:,} steps, {self.script_runs:,} script runs, "
            f"{extent}, {self.seconds:.1f} s, {self.memory_mib:,.0f} MiB; "
            f"served within {self.longest_wait} ticks of the last fault\n{verdict}"
        )


class Explorer:
    """Breadth first, so that the first violation has the shortest trace."""

    def __init__(self, config: Config, edit: Callable[[str, str], str] | None = None) -> None:
        self.config = config
        self.rules = Rules(config, edit)
        self._index: dict[World, int] = {}
        self._worlds: list[World] = []
        self._parents = array("q")
        self._steps = 0
        self._longest = 0

    def run(self, max_states: int | None = None, max_seconds: float | None = None) -> Report:
        started = time.monotonic()
        gc.disable()  # nothing here is cyclic, and looking through millions of tuples takes a third of the time
        try:
            return self._run(started, max_states, max_seconds)
        finally:
            gc.enable()

    def _run(self, started: float, max_states: int | None, max_seconds: float | None) -> Report:
        self._add(self.rules.start, -1)
        position, violation = 0, None
        while violation is None and position < len(self._worlds):
            if max_states and len(self._worlds) >= max_states:
                break
            if max_seconds and position % 1000 == 0 and time.monotonic() - started > max_seconds:
                break
            violation = self._expand(position)
            position += 1
        exhausted = violation is None and position == len(self._worlds)
        if violation is None:
            violation = self._everybody_is_served(position)
        return Report(
            self.config.name,
            len(self._worlds),
            self._steps,
            self.rules.caller.runs,
            self._longest,
            time.monotonic() - started,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            exhausted,
            violation,
        )

    def _add(self, world: World, parent: int) -> None:
        self._index[world] = len(self._worlds)
        self._worlds.append(world)
        self._parents.append(parent)

    def _expand(self, position: int) -> Violation | None:
        world = self._worlds[position]
        known = self._index
        for text, after, fault in self.rules.steps(world):
            self._steps += 1
            if fault:
                return Violation(fault, (*self.trace(position), text))
            if after not in known:
                self._add(after, position)
                broken = self.broken(after)
                if broken:
                    return Violation(broken, (*self.trace(position), text))
        return None

    def trace(self, position: int) -> tuple[str, ...]:
        """The steps from the start to a world."""
        steps: list[str] = []
        while (parent := self._parents[position]) >= 0:
            target = self._worlds[position]
            steps.append(next(text for text, after, _ in self.rules.steps(self._worlds[parent]) if after == target))
            position = parent
        return tuple(reversed(steps))

    # promises of one world ------------------------------------------------------------------------------------

    def broken(self, world: World) -> str:
        """The promise that this world breaks, or ''."""
        holding = [index for index, client in enumerate(world.clients) if client.holds and not client.forced]
        if len(holding) > 1:
            return f"{' and '.join(map(name, holding))} both hold the lock by their own deadlines"
        state = self.rules.caller.states[world.state]
        if holding and state.foreign:
            return f"{name(holding[0])} holds the lock beside an older program"
        return (
            self._seat_lost(world, state)
            or self._left_idle(world, state)
            or self._left_over(world, state)
            or self._left_behind(world, state)
        )

    def _seat_lost(self, world: World, state: State) -> str:
        """A waiter that is not late for its check has its seat."""
        for index, client in enumerate(world.clients):
            if client.phase == WAIT and client.flag == SEATED and client.timer:
                seat = f"{name(index)}{client.turn}"
                holds = state.holder and state.holder.id == seat and state.holder.phase == "held"
                if not holds and seat not in [queued for queued, _ in state.queue]:
                    return f"the seat of {seat} is gone although it is a live waiter"
        return ""

    def _left_idle(self, world: World, state: State) -> str:
        """The lock is not free while a waiter could have it and nobody is about to ask."""
        soon = 2 * self.config.claim_window  # the first three in line look one window after the other
        if state.holder or state.lock or not state.queue or world.notes or world.flights:
            return ""
        if state.grace_left(self.config.grace) or any(c.phase == WAIT and c.timer <= soon for c in world.clients):
            return ""
        for queued, _ in state.queue:
            index, turn = ord(queued[0]) - ord("a"), int(queued[1:])
            client, seat = world.clients[index], state.seat(queued)
            inbox = state.inbox(seat.inbox) if seat else None
            if client.phase != WAIT or client.turn != turn or not inbox or not inbox.expires:
                continue
            on_time, reachable = inbox.next_check + POLL_SLACK > 0, not inbox.deaf and client.subscribed
            if on_time if inbox.mode == "poll" else reachable:
                return f"the lock is free and {queued} could have it, but nobody tells it"
        return ""

    def _left_over(self, world: World, state: State) -> str:
        """A lease that is over is looked at soon while somebody waits: an expiry announces itself to nobody.

        Whom no message told of the new holder looks when the one that it knew would be over. Within a restart's grace
        nobody may end a lease, and its deadline may be an old one: who waits knows the newer.
        """
        message_lost = world.faults.message < self.config.faults.message
        if not state.holder or state.holder.deadline or world.notes or world.flights or message_lost:
            return ""
        if (
            state.grace_left(self.config.grace) or state.foreign
        ):  # while an older program has the lock nobody may end it
            return ""
        soon = 3 * self.config.claim_window  # the first three in line look one window after the other
        waiting = [client for client in world.clients if client.phase == WAIT]
        if not waiting or any(client.timer <= soon for client in waiting):
            return ""
        return f"the lease of {state.holder.id} is over, and nobody is going to look"

    def _left_behind(self, world: World, state: State) -> str:
        """When all is over, nothing stays but what belonged to the dead, whom nobody may have missed yet, and what came
        back: an end was forgotten with the data, and then an old copy or a delayed acquire brought its id again."""
        if world.notes or world.flights or any(c.phase not in (FINISHED, IDLE, DEAD) for c in world.clients):
            return ""
        ended = {one for one, _ in state.done}
        if returned := [one for one in world.back if one in ended]:
            return f"{returned[0]} is there although its end is known"
        gone = {f"{name(index)}{c.turn}" for index, c in enumerate(world.clients) if c.phase == DEAD} | {*world.back}
        holds = state.holder is not None and state.holder.id not in gone
        queued = [seat for seat, _ in state.queue if seat not in gone]
        ours = state.lock if not state.foreign and (state.holder is None or holds) else None
        waiters = state.inboxes if not state.queue else ()
        parts = {"lock": ours, "holder": holds, "queue": queued, "waiters": waiters}
        left = [part for part, value in parts.items() if value]
        return f"nobody is there, but {', '.join(left)} stayed" if left else ""

    # liveness -------------------------------------------------------------------------------------------------

    def _everybody_is_served(self, explored: int) -> Violation | None:
        """From each world that was looked at, the suffix without faults ends, and everybody alive got the lock."""
        ticks: dict[World, int] = {}
        for position in range(explored):
            violation = self._served(position, ticks)
            if violation:
                return violation
        return None

    def _served(self, position: int, ticks: dict[World, int]) -> Violation | None:
        world, path, texts = self._worlds[position], [], []
        on_path: set[World] = set()
        end = 0
        while world not in ticks:
            if world in on_path:
                return Violation("nobody ever serves the waiters", (*self.trace(position), *texts, "… and so on"))
            on_path.add(world)
            step = self.rules.prompt_step(world)
            if step is None:
                path.append((world, 0))
                break
            text, after, fault = step
            if fault:
                return Violation(fault, (*self.trace(position), *texts, text))
            path.append((world, int(text == "1 tick passes")))
            texts.append(text)
            world = after
        else:
            end = ticks[world]
        for passed, tick in reversed(path):
            end += tick
            ticks[passed] = end
        self._longest = max(self._longest, end)
        if end > self.config.served_within:
            return Violation(
                f"it takes {end} ticks to serve everybody, more than {self.config.served_within}",
                (*self.trace(position), *self._rest(position)),
            )
        return None

    def _rest(self, position: int) -> Iterator[str]:
        """The steps of the suffix without faults."""
        world = self._worlds[position]
        while step := self.rules.prompt_step(world):
            text, world, _ = step
            yield text
