"""The bugs that are planted in the scripts, and the small configurations that catch them.

A killer is a configuration, here or in `configs`, whose shortest trace is the evidence; or a test of `test_rules.py`.
"""

from __future__ import annotations

from tests.model.configs import ClientSpec, Config, Faults, push
from tests.planted import Edit, Mutant

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
_BEAT_MAKES_A_LOCK = Edit(
    "heartbeat",
    "if not holder or holder.token < token then return {'missing'} end",
    "if not holder then redis.call('SET', LOCK, 'locked_by_task:' .. id, 'PX', ttl) redis.call('HSET', HOLDER, "
    "'id', id, 'v', PROTOCOL, 'token', token, 'deadline', now + lease, 'lease', lease, 'phase', 'held', 'task', 'task', "
    "'inbox', '', 'process', '', 'arrival', now_us, 'since', now, 'dirty', '') holder = read_holder() end",
)

MUTANTS = (
    Mutant(
        "a delayed acquire runs after its own withdraw or release",
        "late",
        (Edit("acquire", _DONE, _NO_DONE),),
        ("delayed acquire",),
    ),
    Mutant(
        "an old claim is accepted for an id that was granted again",
        "test_a_claim_of_an_older_grant_is_stale",
        (Edit("acquire", "  if hint ~= 0 and hint ~= holder.token then return {'stale'} end\n", ""),),
        ("old claim",),
    ),
    Mutant(
        "a re-assertion knows no order of tokens",
        "late-after-data",
        (
            Edit("reassert", "if fence().token > token then return {'other', value or ''} end\n", ""),
            Edit("reassert", "  if holder.token >= token then return {'other', value_of(holder)} end\n", ""),
        ),
        ("re-assertion order",),
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
        (Edit("parts/holding", "f.token = math.max(f.token, h.token + 1)", "f.token = math.max(f.token, h.token)"),),
        ("no fence at release",),
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
        ("publish first",),
    ),
    Mutant(
        "a polling waiter is passed over for ever",
        "polls",
        (Edit("parts/grant", "if inbox.next_check + POLL_SLACK <= now then return false end", "do return false end"),),
        ("poll head",),
    ),
    Mutant(
        "a polling waiter's reservation is over when it is made",
        "test_a_polling_waiter_is_overdue_two_seconds_after_its_check",
        (Edit("parts/grant", "inbox.next_check + POLL_SLACK <= now", "inbox.next_check + POLL_SLACK < now"),),
    ),
    Mutant(
        "a bounded walk forgets where it was",
        "test_many_unreachable_waiters_do_not_hide_the_one_behind_them",
        (Edit("parts/grant", "    if cursor > 0 then redis.call('HSET', FENCE, 'cursor', cursor) end\n", ""),),
        ("no cursor",),
    ),
    Mutant(
        "a walk ends at its bound",
        "test_many_unreachable_waiters_do_not_hide_the_one_behind_them",
        (Edit("parts/seats", "  return false, rank\nend", "  return false, 0\nend"),),
    ),
    Mutant(
        "a waiter's shorter timeout reaps somebody else's lease",
        "test_a_waiter_with_a_shorter_lease_does_not_reap_another_ones",
        (
            Edit(
                "parts/holding",
                "if not holder or foreign or holder.deadline > now then return end",
                "if not holder or foreign then return end\n"
                "  if math.min(holder.deadline, holder.since + (tonumber(ARGV[10]) or 1e15)) > now then return end",
            ),
        ),
        ("shorter timeout",),
    ),
    Mutant(
        "a lease is reaped before its deadline",
        "lost-message",
        (
            Edit(
                "parts/holding", "holder.deadline > now then return end", "holder.deadline - 2000 > now then return end"
            ),
        ),
    ),
    Mutant(
        "the guard's beat lands after the release and makes a lock",
        "late",
        (
            Edit("heartbeat", _DONE, _NO_DONE),
            _BEAT_MAKES_A_LOCK,
        ),
        ("late guard beat", "redisson#7272"),
    ),
    Mutant(
        "a beat takes a lost lock again without a word",
        "lost-data",
        (_BEAT_MAKES_A_LOCK,),
        ("redis-semaphore#175",),
    ),
    Mutant(
        "a holder that an operator ended renews its lease",
        "forced",
        (
            Edit("reassert", "if outcome then return {'done', outcome} end\n", ""),
            Edit("reassert", "if fence().token > token then return {'other', value or ''} end\n", ""),
            Edit("heartbeat", "if outcome then return {'done', outcome} end\n", ""),
        ),
    ),
    Mutant(
        "a newcomer takes the lock between the wake-up and the claim",
        "crash",
        (Edit("acquire", "if free and waiters == 0 and", "if free and"),),
        ("python-redis-lock#58",),
    ),
    Mutant(
        "a retried release deletes a newer lock",
        "retry",
        (
            Edit("release", _DONE, _NO_DONE),
            Edit("release", "not foreign and holder.id == id and holder.token == token", "not foreign"),
        ),
        ("etcd#22082",),
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
            Edit("parts/records", "  if redis.call('ZREM', QUEUE, id) == 1 then drop_seat(id) end\n", ""),
        ),
        ("zk-ruby#49",),
    ),
    Mutant(
        "a live waiter that missed its window is expelled",
        "lost-message",
        (
            Edit(
                "parts/holding",
                "    write_inbox(h.inbox, inbox)\n",
                "    write_inbox(h.inbox, inbox)\n    drop_seat(h.id)\n",
            ),
        ),
        ("redisson#3004",),
    ),
    Mutant(
        "live waiters are expelled before they expire",
        "lost-message",
        (
            Edit(
                "parts/seats",
                "if not mode or tonumber(expires) <= now then return nil end",
                "if not mode or tonumber(expires) <= now + 4000 then return nil end",
            ),
        ),
        ("redisson#3004",),
    ),
    Mutant(
        "a waiter is forgotten when nobody received its grant",
        "cut",
        (
            Edit(
                "parts/grant",
                "    unreachable[seat.inbox] = undelivered   -- not reachable now: its seat stays\n",
                "    unreachable[seat.inbox] = undelivered\n    if undelivered then drop_seat(seat.id) end\n",
            ),
        ),
    ),
    Mutant(
        "a grant that nobody received stays",
        "test_a_grant_that_nobody_received_leaves_the_lock_free",
        (Edit("parts/grant", "    if undelivered then clear_lock() end\n", ""),),
    ),
    Mutant(
        "a waiter loses its seat at the grant, not at the claim",
        "lost-message",
        (
            Edit(
                "parts/grant",
                "    take(seat, 'granted', now + CLAIM_WINDOW)\n",
                "    drop_seat(seat.id)\n    take(seat, 'granted', now + CLAIM_WINDOW)\n",
            ),
        ),
    ),
    Mutant(
        "no grace after a restart",
        "lost-data",
        (Edit("parts/holding", "  grace_left = math.max(0, f.since + RESTART_GRACE - now)\n", "  grace_left = 0\n"),),
    ),
    Mutant(
        "the restart grace believes the server's uptime to the second",
        "lost-data",
        (
            Edit(
                "parts/holding",
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
                "parts/holding",
                "f.token = math.max(f.token + 1, now_us)",
                "f.token = tonumber(math.max(f.token + 1, now_us) .. '')",
            ),
        ),
    ),
    Mutant(
        "a waiter that missed its window is not deaf",
        "test_a_frozen_waiter_costs_one_window_in_all_and_keeps_its_place",
        (Edit("parts/holding", "    inbox.deaf = true\n", ""),),
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
        (Edit("acquire", "    local grace = restart_grace_left()\n", "    local grace = 0\n"),),
    ),
    Mutant(
        "a waiter is not told when the lease ends",
        "crash",
        (Edit("acquire", "    recheck_in = math.max(0, holder.deadline - now)\n", ""),),
    ),
    Mutant(
        "a holder is watched by its own program alone",
        "test_the_first_of_another_program_watches_the_holder",
        (Edit("parts/grant", "if redis.call('ZCARD', QUEUE) ~= own then", "if false then"),),
    ),
    Mutant(
        "who was found behind many is searched for again",
        "test_who_was_found_behind_many_is_not_searched_for_again",
        (Edit("parts/grant", "redis.pcall('HSET', FENCE, 'watcher', seat.inbox)", "local _"),),
    ),
    Mutant(
        "who was found behind many is told before the next in line",
        "test_the_next_in_line_is_told_before_who_was_found_behind_many",
        (Edit("parts/grant", "if passed == CHUNK + 1 and not told", "if passed == 1"),),
    ),
    Mutant(
        "nobody on the holder's host is told where the next in line is elsewhere",
        "test_where_the_next_in_line_is_elsewhere_the_first_on_the_holders_host_is_told_too",
        (Edit("parts/grant", "      return here\n", "      return true\n"),),
    ),
    Mutant(
        "the second inbox of the holder's program is told nothing where nobody else waits",
        "test_a_second_inbox_of_the_holders_program_watches_it_where_nobody_else_waits",
        (Edit("parts/grant", "    told = told or mate and watches(mate, read_inbox(mate))\n", ""),),
    ),
    Mutant(
        "another pid namespace of the host is taken for the same",
        "test_another_pid_namespace_of_the_host_is_elsewhere",
        (Edit("parts/grant", '[^"]+","pidns":%d+,"timens":%d+', '[^"]+"'),),
    ),
    Mutant(
        "the second inbox of the holder's program watches it",
        "test_a_second_inbox_of_the_holders_program_would_die_with_it",
        (Edit("parts/grant", "and inbox.process == holder.process)", "and false)"),),
    ),
    Mutant(
        "the search for another program ends behind sixteen of the holder's own",
        "test_another_program_behind_forty_of_the_holders_own_watches_it",
        (
            Edit(
                "parts/grant",
                "      passed = passed + 1\n",
                "      passed = passed + 1\n      if passed > CHUNK then return true end\n",
            ),
        ),
    ),
    Mutant(
        "a program that has left is told to watch",
        "test_who_was_found_behind_many_watches_until_it_holds_or_leaves",
        (
            Edit("parts/grant", "if not inbox or inbox.mode ~= 'push'", "if inbox and inbox.mode ~= 'push'"),
            Edit("parts/grant", "or inbox.deaf or unreachable[name]", "or inbox and inbox.deaf or unreachable[name]"),
        ),
    ),
    Mutant(
        "the record of a program that has left stays",
        "quit",
        (
            Edit(
                "parts/seats",
                "redis.call('HDEL', WAITERS, '#' .. seat.inbox, '@' .. seat.inbox)",
                "redis.call('HDEL', WAITERS, '#' .. seat.inbox)",
            ),
        ),
    ),
    Mutant(
        "a seat is not counted",
        "quit",
        (Edit("acquire", "  add(WAITERS, '#' .. me.inbox, 1)\n", ""),),
    ),
    Mutant(
        "a seat that came to another inbox is counted twice",
        "test_a_seat_that_comes_to_another_inbox_is_counted_there",
        (Edit("acquire", "  if seat then drop_seat(id) end\n", ""),),
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
        (Edit("parts/records", "  if redis.call('ZREM', QUEUE, id) == 1 then drop_seat(id) end\n", ""),),
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
                "parts/holding",
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
                "parts/holding",
                "  if holder.phase == 'granted' then\n    end_unclaimed()\n  elseif restart_grace_left() == 0",
                "  if restart_grace_left() > 0 then return end\n"
                "  if holder.phase == 'granted' then\n    end_unclaimed()\n  elseif restart_grace_left() == 0",
            ),
        ),
    ),
    Mutant(
        "an old grant that came back ends its waiter",
        "old-copy",
        (Edit("parts/holding", "  if old.phase == 'granted' then\n", "  if false then\n"),),
    ),
    Mutant(
        "a beat leaves a lease that came back as a grant",
        "test_a_claimed_lease_that_old_data_shows_as_a_grant_becomes_a_lease_again",
        (Edit("heartbeat", "if holder.phase == 'granted' or redis.call", "if redis.call"),),
    ),
    Mutant(
        "a holder that waits for its memory ends as a grant that nobody claimed",
        "test_a_grant_after_a_crash_while_memory_was_waited_for_is_dirty",
        (
            Edit(
                "parts/holding",
                "  if holder.phase == 'granted' then\n    end_unclaimed()",
                "  if holder.phase ~= 'held' then\n    end_unclaimed()",
            ),
        ),
    ),
    Mutant(
        "a holder that waits for its memory has given the lock away",
        "draining",
        (
            Edit(
                "acquire",
                "local free = not value and not holder\n",
                "if holder and holder.phase == 'draining' then end_hold('released', 'normal'); value, holder = nil, nil end\n"
                "local free = not value and not holder\n",
            ),
        ),
    ),
    Mutant(
        "a crash leaves no mark on the next grant",
        "test_a_grant_after_a_crash_is_dirty_until_a_holder_releases",
        (Edit("parts/holding", "    f.dirty = '1' ", "    f.dirty = '' "),),
    ),
    Mutant(
        "a waiter takes the lock from an older program",
        "older",
        (
            Edit(
                "acquire",
                "local free = not value and not holder\n",
                "local free = (not value or foreign) and not holder\n",
            ),
        ),
    ),
    Mutant(
        "who tries once does not wait out the grace after a restart",
        "once-data",
        (
            Edit(
                "acquire", "local wait, more = free and restart_grace_left() or 0, false", "local wait, more = 0, false"
            ),
        ),
    ),
    Mutant(
        "the seats of the dead fill the queue",
        "test_a_seat_whose_inbox_nobody_listens_to_takes_no_place_in_a_full_queue",
        (Edit("acquire", "  waiters = redis.call('ZCARD', QUEUE) - absent\n", ""),),
    ),
    Mutant(
        "a full queue is not swept",
        "test_a_full_queue_is_swept_of_what_has_expired_while_the_lock_is_held",
        (Edit("acquire", "fence().cursor == 0, function(seat", "false, function(seat"),),
    ),
    Mutant(
        "of a long full queue only the head is looked at",
        "test_a_full_queue_is_swept_of_what_has_expired_while_the_lock_is_held",
        (Edit("acquire", "walk(now_us % parts * WALK_BOUND, ", "walk(0, "),),
    ),
    Mutant(
        "who tries once is refused a free lock",
        "once",
        (
            Edit(
                "acquire",
                "local free = not value and not holder\n",
                "local free = not value and not holder\nif not may_wait then return {'busy', 0, ''} end\n",
            ),
        ),
    ),
)
