"""Planted bugs: edits of the shipped scripts, and what catches each.

``python -m tests.model.mutants`` prints the matrix.

Each edit asserts that its text is there exactly once, so a change of the scripts cannot leave a bug unplanted. A killer
is a configuration of the explorer (its shortest trace is the evidence) or a test of `test_rules.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

from tests.model import test_rules
from tests.model.configs import CONFIGS, ClientSpec, Config, Faults, push
from tests.model.explore import Explorer
from tests.model.store_lock import StoreLock


class Edit(NamedTuple):
    script: str
    search: str
    replacement: str


class Mutant(NamedTuple):
    """A planted bug. `killer`: a configuration here or in `configs`, or the name of a test in `test_rules.py`."""

    name: str
    killer: str
    edits: tuple[Edit, ...]


class Verdict(NamedTuple):
    mutant: str
    killer: str
    killed: bool
    evidence: str
    seconds: float


def _text(name: str) -> str:
    return (resources.files("aiogpulock") / "lua" / f"{name}.lua").read_text(encoding="latin-1")


def plant(mutant: Mutant) -> Callable[[str, str], str]:
    """The edit of each script's full text that plants the bug."""
    changed: dict[str, str] = {}
    for script, search, replacement in mutant.edits:
        text = changed.get(script) or _text(script)
        assert text.count(search) == 1, f"{mutant.name}: {script}.lua has {text.count(search)} times: {search}"
        changed[script] = text.replace(search, replacement)

    def edit(name: str, source: str) -> str:
        prelude = _text("prelude")
        assert source.startswith(prelude)
        return changed.get("prelude", prelude) + changed.get(name, source[len(prelude) :])

    return edit


SMALL = {
    config.name: config
    for config in (
        Config("late", push(2), Faults(slow=1, quit=1)),
        Config("retry", push(2), Faults(reply=1)),
        Config("late-retry", push(2), Faults(reply=1, stall=3)),
        Config("crash", push(3), Faults(crash=1)),
        Config("lost-message", push(3), Faults(message=1, stall=1)),
        Config("quit", push(3), Faults(quit=1, message=1, stall=1)),
        Config("lost-data", push(3), Faults(data=1)),
        Config("lost-data-and-crash", push(3), Faults(data=1, crash=1)),
        Config("late-after-data", push(2), Faults(data=1, slow=1, crash=1, stall=1)),
        Config("retry-after-data", push(2), Faults(data=1, slow=1)),
        Config("polls", (ClientSpec(0), ClientSpec(1, polls=True), ClientSpec(2)), Faults(crash=1, stall=2)),
        Config("cut", push(3), Faults(cut=1)),
        Config("refused", push(2), Faults(refuse=1)),
        Config("old-copy", push(3), Faults(old=1, stall=1)),
    )
}

_DONE = "local outcome = outcome_of(id)\nif outcome then return {'done', outcome} end\n"
_NO_DONE = "local outcome\n"

MUTANTS = (
    Mutant(
        "a delayed acquire runs after its own withdraw or release",
        "late",
        (Edit("acquire", _DONE, _NO_DONE),),
    ),
    Mutant(
        "an old claim is accepted for an id that was granted again",
        "test_a_claim_of_an_older_grant_is_stale",
        (Edit("acquire", "  if hint ~= 0 and hint ~= holder.token then return {'stale'} end\n", ""),),
    ),
    Mutant(
        "a re-assertion knows no order of tokens",
        "late-after-data",
        (
            Edit("reassert", "if fence().token > token then return {'other', value or ''} end\n", ""),
            Edit("reassert", "  if holder.token >= token then return {'other', value_of(holder)} end\n", ""),
        ),
    ),
    Mutant(
        "a re-assertion brings a finished id back",
        "retry-after-data",
        (
            Edit("reassert", "if outcome then return {'done', outcome} end\n", ""),
            Edit("reassert", "if fence().token > token then return {'other', value or ''} end\n", ""),
        ),
    ),
    Mutant(
        "a release does not move the fence",
        "test_a_released_token_is_never_reasserted_even_when_the_outcome_is_forgotten",
        (Edit("prelude", "f.token = math.max(f.token, h.token + 1)", "f.token = math.max(f.token, h.token)"),),
    ),
    Mutant(
        "a release without data does not move the fence",
        "test_a_forgotten_token_that_was_released_is_never_reasserted",
        (
            Edit(
                "release", "redis.call('HSET', FENCE, 'token', token + 1)", "redis.call('HSET', FENCE, 'token', token)"
            ),
        ),
    ),
    Mutant(
        "PUBLISH comes before the write that can fail",
        "refused",
        (Edit("release", "local displaced\nif ours", "local displaced\nannounce_release(task, reason)\nif ours"),),
    ),
    Mutant(
        "a polling waiter is passed over for ever",
        "polls",
        (Edit("prelude", "if inbox.next_check + POLL_SLACK <= now then return false end", "do return false end"),),
    ),
    Mutant(
        "a polling waiter's reservation is over when it is made",
        "test_a_polling_waiter_is_overdue_two_seconds_after_its_check",
        (Edit("prelude", "inbox.next_check + POLL_SLACK <= now", "inbox.next_check + POLL_SLACK < now"),),
    ),
    Mutant(
        "a bounded walk forgets where it was",
        "test_many_unreachable_waiters_do_not_hide_the_one_behind_them",
        (Edit("prelude", "    if cursor > 0 then redis.call('HSET', FENCE, 'cursor', cursor) end\n", ""),),
    ),
    Mutant(
        "a walk ends at its bound",
        "test_many_unreachable_waiters_do_not_hide_the_one_behind_them",
        (Edit("prelude", "  return false, rank\nend", "  return false, 0\nend"),),
    ),
    Mutant(
        "a waiter's shorter timeout reaps somebody else's lease",
        "test_a_waiter_with_a_shorter_lease_does_not_reap_another_ones",
        (
            Edit(
                "prelude",
                "if not holder or foreign or holder.deadline > now then return end",
                "if not holder or foreign then return end\n"
                "  if math.min(holder.deadline, holder.since + (tonumber(ARGV[10]) or 1e15)) > now then return end",
            ),
        ),
    ),
    Mutant(
        "a lease is reaped before its deadline",
        "lost-message",
        (Edit("prelude", "holder.deadline > now then return end", "holder.deadline - 2000 > now then return end"),),
    ),
    Mutant(
        "the guard's beat lands after the release and makes a lock",
        "late",
        (
            Edit("heartbeat", _DONE, _NO_DONE),
            Edit(
                "heartbeat",
                "if not holder or holder.token < token then return {'missing'} end",
                "if not holder then write_holder({id = id, lease = lease, ttl = ttl, task = 'task', inbox = '', "
                "process = '', arrival = now_us}, 'held', token, now + lease, '') end",
            ),
        ),
    ),
    Mutant(
        "a beat takes a lost lock again without a word",
        "lost-data",
        (
            Edit(
                "heartbeat",
                "if not holder or holder.token < token then return {'missing'} end",
                "if not holder then write_holder({id = id, lease = lease, ttl = ttl, task = 'task', inbox = '', "
                "process = '', arrival = now_us}, 'held', token, now + lease, '') end",
            ),
        ),
    ),
    Mutant(
        "a newcomer takes the lock between the wake-up and the claim",
        "crash",
        (Edit("acquire", "if free and waiters == 0 and", "if free and"),),
    ),
    Mutant(
        "a retried release deletes a newer lock",
        "retry",
        (
            Edit("release", _DONE, _NO_DONE),
            Edit("release", "not foreign and holder.id == id and holder.token == token", "not foreign"),
        ),
    ),
    Mutant(
        "the ticket of a waiter that timed out stays",
        "quit",
        (
            Edit(
                "withdraw",
                "local seated = redis.call('ZREM', QUEUE, id) == 1\ndrop_seat(id)\n",
                "local seated = true\n",
            ),
            Edit("prelude", "  if redis.call('ZREM', QUEUE, id) == 1 then drop_seat(id) end\n", ""),
        ),
    ),
    Mutant(
        "a live waiter that missed its window is expelled",
        "lost-message",
        (
            Edit(
                "prelude", "    write_inbox(h.inbox, inbox)\n", "    write_inbox(h.inbox, inbox)\n    drop_seat(h.id)\n"
            ),
        ),
    ),
    Mutant(
        "live waiters are expelled before they expire",
        "lost-message",
        (
            Edit(
                "prelude",
                "local live = inbox and inbox.expires > now",
                "local live = inbox and inbox.expires > now + 4000",
            ),
        ),
    ),
    Mutant(
        "a waiter is forgotten when nobody received its grant",
        "cut",
        (
            Edit(
                "prelude",
                "    unreachable[seat.inbox] = undelivered   -- not reachable now: its seat stays\n",
                "    unreachable[seat.inbox] = undelivered\n    if undelivered then drop_seat(seat.id) end\n",
            ),
        ),
    ),
    Mutant(
        "a grant that nobody received stays",
        "test_a_grant_that_nobody_received_leaves_the_lock_free",
        (Edit("prelude", "    if undelivered then clear_lock() end\n", ""),),
    ),
    Mutant(
        "a waiter loses its seat at the grant, not at the claim",
        "lost-message",
        (
            Edit(
                "prelude",
                "    take(seat, 'granted', now + CLAIM_WINDOW)\n",
                "    drop_seat(seat.id)\n    take(seat, 'granted', now + CLAIM_WINDOW)\n",
            ),
        ),
    ),
    Mutant(
        "no grace after a restart",
        "lost-data",
        (Edit("prelude", "  return math.max(0, f.since + RESTART_GRACE - now)\n", "  return 0\n"),),
    ),
    Mutant(
        "the restart grace believes the server's uptime to the second",
        "lost-data",
        (
            Edit(
                "prelude",
                "(tonumber(info:match('uptime_in_seconds:(%d+)')) or 0) - 1)",
                "tonumber(info:match('uptime_in_seconds:(%d+)')) or 0)",
            ),
        ),
    ),
    Mutant(
        "two tokens tie: `..` keeps 14 digits",
        "test_two_tokens_within_100_microseconds_differ",
        (
            Edit(
                "prelude",
                "f.token = math.max(f.token + 1, now_us)",
                "f.token = tonumber(math.max(f.token + 1, now_us) .. '')",
            ),
        ),
    ),
    Mutant(
        "a waiter that missed its window is not deaf",
        "test_a_frozen_waiter_costs_one_window_in_all_and_keeps_its_place",
        (Edit("prelude", "    inbox.deaf = true\n", ""),),
    ),
    Mutant(
        "a withdrawn grant is not handed on",
        "quit",
        (Edit("withdraw", "  _, more = grant(nil)\n", "  more = false\n"),),
    ),
    Mutant(
        "a release hands nothing on",
        "retry",
        (Edit("release", "local _, more = grant(nil)\n", "local more = false\n"),),
    ),
    Mutant(
        "a release during the restart grace is noticed by nobody",
        "lost-data-and-crash",
        (Edit("acquire", "position <= WATCHERS and restart_grace_left() or 0", "0"),),
    ),
    Mutant(
        "a retried acquire reaps its own lease and locks for an ended id",
        "late-retry",
        (
            Edit(
                "acquire",
                "if not (holder and holder.id == id and holder.phase ~= 'granted') then reap_expired() end",
                "reap_expired()",
            ),
        ),
    ),
    Mutant(
        "an ended id keeps a seat",
        "retry-after-data",
        (Edit("prelude", "  if redis.call('ZREM', QUEUE, id) == 1 then drop_seat(id) end\n", ""),),
    ),
    Mutant(
        "a release does not see past an older holder that came back",
        "old-copy",
        (Edit("release", "(not holder or holder.token < token)", "not holder"),),
    ),
    Mutant(
        "an old deadline that came back ends a live lease",
        "old-copy",
        (
            Edit(
                "prelude",
                "  elseif restart_grace_left() == 0 then\n    end_hold('reaped'",
                "  else\n    end_hold('reaped'",
            ),
        ),
    ),
    Mutant(
        "an old grant that came back is claimed after its window",
        "old-copy",
        (
            Edit(
                "prelude",
                "  if holder.phase == 'granted' then\n    end_unclaimed()\n  elseif restart_grace_left() == 0",
                "  if restart_grace_left() > 0 then return end\n"
                "  if holder.phase == 'granted' then\n    end_unclaimed()\n  elseif restart_grace_left() == 0",
            ),
        ),
    ),
    Mutant(
        "an old grant that came back ends its waiter",
        "old-copy",
        (Edit("prelude", "  if old.phase == 'granted' then\n", "  if false then\n"),),
    ),
    Mutant(
        "a beat leaves a lease that came back as a grant",
        "test_a_claimed_lease_that_old_data_shows_as_a_grant_becomes_a_lease_again",
        (Edit("heartbeat", "if holder.phase == 'granted' or redis.call", "if redis.call"),),
    ),
    Mutant(
        "a crash leaves no mark on the next grant",
        "test_a_grant_after_a_crash_is_dirty_until_a_holder_releases",
        (Edit("prelude", "    f.dirty = '1' ", "    f.dirty = '' "),),
    ),
)


def judge(mutant: Mutant) -> Verdict:
    """Run the killer against the planted bug."""
    started = time.monotonic()
    edit = plant(mutant)
    config = SMALL.get(mutant.killer) or CONFIGS.get(mutant.killer)
    evidence = _by_search(config, edit) if config else _by_test(mutant.killer, edit)
    return Verdict(mutant.name, mutant.killer, bool(evidence), evidence, time.monotonic() - started)


def _by_search(config: Config, edit: Callable[[str, str], str]) -> str:
    try:
        violation = Explorer(config, edit).run(max_seconds=60).violation
    except AssertionError as error:
        return f"refused by the model: {error}"
    return f"{violation.promise} ({len(violation.trace)} steps)" if violation else ""


def _by_test(name: str, edit: Callable[[str, str], str]) -> str:
    test: Callable[[StoreLock], None] = getattr(test_rules, name)
    try:
        test(StoreLock(edit))
    except AssertionError as error:
        return str(error).splitlines()[0] if str(error) else str(traceback.extract_tb(error.__traceback__)[-1].line)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.mutants", description=__doc__)
    parser.add_argument("only", nargs="*", help="words of the bugs to plant; default: all")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if all(word in m.name for word in arguments.only)]
    verdicts = []
    for mutant in chosen:
        verdict = judge(mutant)
        verdicts.append(verdict)
        mark = "killed  " if verdict.killed else "SURVIVED"
        print(
            f"{mark}  {verdict.seconds:5.1f} s  {verdict.mutant}\n             by {verdict.killer}: {verdict.evidence}"
        )
    survived = sum(not verdict.killed for verdict in verdicts)
    print(f"{len(verdicts)} planted bugs, {len(verdicts) - survived} killed, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
