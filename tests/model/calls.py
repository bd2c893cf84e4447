"""Script calls as the library sends them, run on canonical states. Each (state, call) is run once and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.model.configs import Config
from tests.model.normal import (
    BASE_US,
    NEW,
    POLL_SLACK,
    STALE,
    TICK_MS,
    Forms,
    Rank,
    Seat,
    State,
    rerank,
    to_number,
    to_rank,
)
from tests.model.runner import ScriptFailed, ScriptRunner
from tests.model.store import Session

REFUSED_WRITE = "READONLY You can't write against a read only replica."


class Call(NamedTuple):
    """One script call of a client's acquisition."""

    name: str
    client: int
    turn: int
    """Which of the client's acquisitions, from 0: each has an id of its own."""
    token: Rank = 0
    arrival: Rank = 0
    mode: str = "push"
    """Of an acquire: push or poll; of a withdrawal: own or told; of a beat: draining or not; of a sweep: the ids of
    the dead."""


class Note(NamedTuple):
    """A message on its way to a client."""

    client: int
    kind: str
    """grant, watch or lost."""
    turn: int
    value: Rank
    """Token of the grant or loss; ticks until the deadline to watch."""


class Result(NamedTuple):
    """What a call did."""

    reply: tuple[Any, ...]
    state: int
    notes: tuple[Note, ...]
    fault: str
    """A broken promise that this one step shows."""


def holder_id(client: int, turn: int) -> str:
    return f"{chr(ord('a') + client)}{turn}"


def owner(name: str) -> tuple[int, int]:
    """The client and turn of an id."""
    return ord(name[0]) - ord("a"), int(name[1:])


class Caller:
    """Runs calls and remembers them. States are numbered; number 0 is the empty store of a server up for long."""

    def __init__(self, config: Config, edit: Callable[[str, str], str] | None = None) -> None:
        self.config = config
        self.runner = ScriptRunner(edit=edit)
        self.forms = Forms(self.runner.keys, config.grace)
        self.states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._results: dict[tuple[int, int, Call, bool], Result] = {}
        self._runs: dict[tuple[int, int, Call, bool], Result] = {}
        self._later: dict[int, int] = {}
        self._reranked: dict[tuple[int, tuple[Rank, ...], tuple[Rank, ...]], int] = {}
        self.runs = 0
        self.empty = self.number(State(uptime=config.grace))
        self.restarted = self.number(State())

    def number(self, state: State) -> int:
        known = self._numbers.get(state)
        if known is None:
            known = self._numbers[state] = len(self.states)
            self.states.append(state)
        return known

    def later(self, state: int) -> int:
        known = self._later.get(state)
        if known is None:
            known = self._later[state] = self.number(self.forms.later(self.states[state]))
        return known

    def rerank(self, state: int, tokens: tuple[Rank, ...], arrivals: tuple[Rank, ...]) -> int:
        """The state with each token and arrival replaced by its place in the sorted `tokens` and `arrivals`, from 1."""
        key = (state, tokens, arrivals)
        known = self._reranked.get(key)
        if known is None:
            token, arrival = rank_of(tokens), rank_of(arrivals)
            known = self._reranked[key] = self.number(rerank(self.states[state], token, arrival))
        return known

    def restart_with_data(self, state: int) -> int:
        """Another run of the server, with the same data."""
        before = self.states[state]
        fence = before.fence and before.fence._replace(run="old" if before.fence.run else "", since=0)
        return self.number(before._replace(fence=fence, uptime=0))

    def run(self, state: int, subscribed: int, call: Call, refuse: bool = False) -> Result:
        """`subscribed`: bit per client whose inbox has a receiver. `refuse`: the server accepts no write."""
        key = (state, subscribed, call, refuse)
        known = self._results.get(key)
        if known is None:
            known = self._results[key] = self._run_alike(state, subscribed, call, refuse)
        return known

    def _run_alike(self, number: int, subscribed: int, call: Call, refuse: bool) -> Result:
        """Run the call on the part of the state that it can see, so that states that differ elsewhere share one run.

        A script looks up no other id in `done`, and compares the tokens and arrivals that are there and its own.
        """
        state = self.states[number]
        mine = holder_id(call.client, call.turn)
        others = tuple(pair for pair in state.done if pair[0] != mine)
        tokens, arrivals = _sorted_ranks(state.tokens, call.token), _sorted_ranks(state.arrivals, call.arrival)
        token, arrival = rank_of(tokens), rank_of(arrivals)
        seen = rerank(state._replace(done=tuple(p for p in state.done if p[0] == mine)), token, arrival)
        call = call._replace(token=token(call.token), arrival=arrival(call.arrival))
        here = {inbox.name for inbox in state.inboxes} | {self.inbox(call.client)}
        here |= {state.holder.inbox} if state.holder else set()
        for client in range(len(self.config.clients)):
            if self.inbox(client) not in here:
                subscribed &= ~(1 << client)
        key = (self.number(seen), subscribed, call, refuse)
        known = self._runs.get(key)
        if known is None:
            known = self._runs[key] = self._run(key[0], subscribed, call, refuse)
        token, arrival = _back(tokens), _back(arrivals)
        after = rerank(self.states[known.state], token, arrival)
        after = after._replace(done=tuple(sorted({**dict(others), **dict(after.done)}.items())))
        reply = known.reply
        if reply[0] == "held":
            reply = ("held", token(reply[1]))
        elif reply[0] == "waiting":
            reply = (*reply[:2], arrival(reply[2]), *reply[3:])
        notes = tuple(n if n.kind == "watch" else n._replace(value=token(n.value)) for n in known.notes)
        return Result(reply, self.number(after), notes, known.fault)

    def _run(self, number: int, subscribed: int, call: Call, refuse: bool) -> Result:
        self.runs += 1
        before = self.states[number]
        inboxes = frozenset(self.inbox(c) for c in range(len(self.config.clients)) if subscribed >> c & 1)
        session = Session(self.forms.to_store(before), BASE_US, inboxes, REFUSED_WRITE if refuse else "")
        script = "reap" if call.name in ("force", "expire") else call.name
        outcome = self.runner.run(script, self._arguments(call), session)
        if outcome.error and outcome.error != REFUSED_WRITE:
            raise ScriptFailed(f"{call}: {outcome.error}")
        after = self.forms.from_session(session.data, session.started_ms)
        notes = tuple(note for m in outcome.messages if m.receivers for note in self._notes(m.channel, m.payload))
        granted = after.holder is not None and after.holder.token >= NEW
        fault = self._order_broken(before, after, inboxes, call) if granted else ""
        fault = fault or after.miscounted
        if call.name == "heartbeat" and after.holder and before.holder is None:
            fault = "a beat made a lock"
        if before.foreign and not after.foreign:
            fault = "an older program's value is gone, and it did not delete it"
        if refuse and outcome.error and outcome.messages:
            fault = f"a call whose writes were refused published {outcome.messages[0].payload}"
        return Result(_reply(call.name, outcome.reply), self.number(after), notes, fault)

    def inbox(self, client: int) -> str:
        return f"inbox{self.config.clients[client].manager}"

    def _notes(self, channel: str, payload: str) -> list[Note]:
        message = json.loads(payload)
        kind = message.get("type")
        if kind in ("grant", "lost"):
            client, turn = owner(message["id"])
            return [Note(client, kind, turn, to_rank(message["token"]))]
        if kind == "watch":
            left = message["deadline_in"] // TICK_MS
            return [Note(c, kind, 0, left) for c in range(len(self.config.clients)) if self.inbox(c) == channel]
        return []

    def _arguments(self, call: Call) -> tuple[Any, ...]:
        config = self.config
        spec, name = config.clients[call.client], holder_id(call.client, call.turn)
        terms = (config.claim_window * TICK_MS, config.grace * TICK_MS, "")
        lease = (config.lease * TICK_MS, config.ttl * TICK_MS)
        token, task, process = to_number(call.token), "task", '{"pid":1}'
        match call.name:
            case "acquire":
                next_check = (config.poll if call.mode == "poll" else config.fallback) * TICK_MS
                return (
                    *terms, name, token, self.inbox(call.client), call.mode, next_check, config.expires * TICK_MS,
                    *lease, to_number(call.arrival), spec.priority, -1, int(spec.may_wait), task, process,
                )  # fmt: skip
            case "release":
                return (*terms, name, token, "normal")
            case "withdraw":
                # What a message made a manager withdraw must belong to its inbox.
                return (*terms, name, "timeout", self.inbox(call.client) if call.mode == "told" else "")
            case "heartbeat":
                return (0, 0, "", name, token, *lease, call.mode if call.mode == "draining" else "")
            case "reassert":
                # A re-assertion and a beat are not told the terms: they grant nothing.
                return (0, 0, "", name, token, *lease, self.inbox(call.client), task, process, BASE_US, 0)
            case "reap":
                return (*terms, f"locked_by_{task}:{name}", "reaped", "process_gone", "monitor", "")
            case "expire":
                return (*terms, f"locked_by_{task}:{name}", "reaped", "lease_expired", "monitor", "")
            case "sweep":
                return (*terms, "monitor", *call.mode.split())
            case "force":
                return (*terms, f"locked_by_{task}:{name}", "forced", "forced", "operator", "")
            case _:
                raise AssertionError(call)

    def _order_broken(self, before: State, after: State, subscribed: frozenset[str], call: Call) -> str:
        """First come, first served, but for those that could not be given the lock. Names one that was passed over."""
        assert after.holder
        given = after.holder.id
        unclaimed = before.holder if before.holder and before.holder.phase == "granted" else None
        for name, _ in before.queue:
            if name == given:
                return ""
            seat = before.seat(name)
            inbox = before.inbox(seat.inbox) if seat else None
            left = name not in [other for other, _ in after.queue]
            if (
                seat is None
                or inbox is None
                or not inbox.expires
                or left
                or self._returns_before(call, given, name, seat)
            ):
                continue
            if inbox.mode == "poll":
                able = inbox.next_check + POLL_SLACK > 0 and name != (unclaimed and unclaimed.id)
            else:
                deaf = inbox.deaf or (unclaimed is not None and unclaimed.inbox == inbox.name)
                able = not deaf and inbox.name in subscribed
            if able:
                return f"{given} was given the lock before {name}, which was first and could take it"
        return ""

    def _returns_before(self, call: Call, given: str, name: str, seat: Seat) -> bool:
        """The one who got the lock came back with an arrival before that of `name`: its seat had been lost."""
        mine, theirs = self.config.clients[call.client].priority, self.config.clients[owner(name)[0]].priority
        earlier = 0 < call.arrival < seat.arrival if mine == theirs else mine > theirs
        return given == holder_id(call.client, call.turn) and earlier


def _sorted_ranks(ranks: tuple[Rank, ...], own: Rank) -> tuple[Rank, ...]:
    return tuple(sorted({*ranks, own} - {0, STALE}))


def _back(values: tuple[Rank, ...]) -> Callable[[Rank], Rank]:
    """From a rank among `values` to the value; what was bumped stays between, what is new stays above."""

    def back(rank: Rank) -> Rank:
        whole = int(rank)
        return values[whole - 1] + (rank - whole) if 1 <= whole <= len(values) else rank

    return back


def rank_of(values: tuple[Rank, ...]) -> Callable[[Rank], Rank]:
    ranks = {value: rank for rank, value in enumerate(values, 1)}
    return lambda value: ranks.get(value, value)


def _reply(name: str, reply: list[Any]) -> tuple[Any, ...]:
    """The parts of a reply that a client acts on, with ranks for tokens and ticks for times."""
    match reply:
        case ["held", token, *_]:
            return ("held", to_rank(token))
        case ["waiting", position, arrival, _, recheck, value, holder, *_, more, _]:
            left = -1 if recheck < 0 else recheck // TICK_MS
            return ("waiting", position, to_rank(arrival), left, more, holder or (value and "foreign"))
        case [kind, *rest]:
            return (kind, *rest) if kind in ("done", "released", "withdrawn") else (kind,)
    return ("error",)
