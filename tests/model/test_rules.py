"""Rules of the scripts that one short history shows, on the model's store. Planted bugs are held against them too."""

from __future__ import annotations

import pytest

from tests.model.store_lock import StoreLock


@pytest.fixture
def lock() -> StoreLock:
    return StoreLock()


def test_a_waiter_gets_the_lock_by_a_message_and_claims_it_by_the_token(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b"}
    _, token, *_ = lock.acquire("a")
    assert lock.acquire("b")[:2] == ["waiting", 1]
    assert lock.release("a", token) == ["released", 0]
    waiter, granted = lock.granted()
    assert waiter == "b"
    assert granted > token
    assert lock.acquire("b", hint=granted)[:2] == ["held", granted]


def test_a_claim_of_an_older_grant_is_stale(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b"}
    _, token, *_ = lock.acquire("a")
    lock.acquire("b")
    lock.release("a", token)
    _, old = lock.granted()
    lock.advance(2000)
    lock.acquire("c", may_wait=0)  # b's window is over: c gets the lock
    assert lock.acquire("b")[0] == "waiting"
    lock.release("c", int(lock.holder()["token"]))
    _, new = lock.granted()
    assert lock.acquire("b", hint=old) == ["stale"]
    assert lock.acquire("b", hint=new)[:2] == ["held", new]


def test_a_released_token_is_never_reasserted_even_when_the_outcome_is_forgotten(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    lock.release("a", token)
    lock.lapse("done")
    assert lock.reassert("a", token)[0] == "other"
    assert lock.holder() == {}


def test_a_forgotten_token_that_was_released_is_never_reasserted(lock: StoreLock) -> None:
    token = lock.now_us
    assert lock.release("a", token) == ["released", 0]  # the server had lost its data
    lock.lapse("done")
    assert lock.reassert("a", token)[0] == "other"


def test_many_unreachable_waiters_do_not_hide_the_one_behind_them(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    for number in range(1200):
        lock.acquire(f"gone-{number}", inbox=f"nobody-{number}")
    lock.inboxes = {"inbox-b"}
    lock.acquire("b")
    _, more = lock.release("a", token)
    calls = 0
    while more and calls < 10:
        _, more = lock.resume()
        calls += 1
    assert lock.granted()[0] == "b"


def test_a_long_walk_that_nobody_went_on_with_hides_no_later_waiter(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    for number in range(600):
        lock.acquire(f"gone-{number}", inbox=f"nobody-{number}")
    assert lock.release("a", token)[1] == 1  # whoever released dies before it resumes
    for number in range(600):
        lock.withdraw(f"gone-{number}")
    lock.inboxes = {"inbox-c"}
    _, token, *_ = lock.acquire("b")
    lock.acquire("c")
    lock.release("b", token)
    assert lock.granted()[0] == "c"


def test_a_waiter_with_a_shorter_lease_does_not_reap_another_ones(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    lock.advance(5000)
    assert lock.acquire("b", lease=1000)[0] == "waiting"
    assert lock.beat("a", token) == ["renewed"]


def test_two_tokens_within_100_microseconds_differ(lock: StoreLock) -> None:
    seen = 0
    for number in range(20):
        _, token, *_ = lock.acquire(f"a{number}")
        assert token > seen
        seen = token
        lock.release(f"a{number}", token)


def test_a_message_names_the_token_to_the_microsecond(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b"}
    _, token, *_ = lock.acquire("a")
    lock.acquire("b")
    lock.release("a", token)
    assert lock.granted() == ("b", int(lock.holder()["token"]))


def test_a_frozen_waiter_costs_one_window_in_all_and_keeps_its_place(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-frozen", "inbox-b", "inbox-c"}
    _, token, *_ = lock.acquire("a")
    for waiter in ("frozen", "b", "c"):
        lock.acquire(waiter)
    lock.release("a", token)
    assert lock.granted()[0] == "frozen"
    lock.advance(2000)
    _, token, *_ = lock.acquire("b")
    lock.release("b", token)
    assert lock.granted()[0] == "c"
    _, token, *_ = lock.acquire("c")
    assert lock.acquire("frozen")[:2] == ["waiting", 1]
    lock.release("c", token)
    assert lock.granted()[0] == "frozen"


def test_a_polling_waiter_is_overdue_two_seconds_after_its_check(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b"}
    _, token, *_ = lock.acquire("a")
    lock.acquire("polls", mode="poll", next_check=1000)
    lock.acquire("b")
    lock.advance(3000)
    lock.release("a", token)
    assert lock.granted()[0] == "b"


def test_a_grant_that_nobody_received_leaves_the_lock_free(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    lock.acquire("b")
    lock.release("a", token)
    assert lock.holder() == {}
    assert lock.acquire("c", may_wait=0)[0] == "held"


def test_a_grant_after_a_crash_is_dirty_until_a_holder_releases(lock: StoreLock) -> None:
    lock.acquire("a")
    lock.advance(60_000)
    _, token, dirty, *_ = lock.acquire("b")
    assert dirty == "1"
    lock.release("b", token)
    assert lock.acquire("c")[2] == ""


def test_a_holder_that_did_not_look_releases_a_dirty_lock(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    assert lock.call("release", "a", token, "leaked", "", 1) == ["released", 0]
    _, token, dirty, *_ = lock.acquire("b")
    assert dirty == "1"
    lock.release("b", token)
    assert lock.acquire("c")[2] == ""


def test_a_grant_after_a_crash_while_memory_was_waited_for_is_dirty(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    assert lock.beat("a", token, phase="draining") == ["renewed"]
    assert lock.holder()["phase"] == "draining"
    assert lock.acquire("b")[0] == "waiting"
    lock.advance(60_000)
    _, token, dirty, *_ = lock.acquire("b")
    assert dirty == "1"


def test_a_quarantine_is_told_to_every_holder_until_it_is_lifted_as_seen(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    lock.release("a", token, quarantine="8 GiB stayed")
    for holder in ("b", "c"):
        _, token, *_, quarantine = lock.acquire(holder)
        assert quarantine == "8 GiB stayed"
        lock.release(holder, token)
    assert lock.call("lift", "another one", "operator", "me") == ["changed", "8 GiB stayed"]
    assert lock.call("lift", "8 GiB stayed", "operator", "me") == ["lifted"]
    assert lock.acquire("d")[-1] == ""


def test_a_lost_lease_quarantines_nothing(lock: StoreLock) -> None:
    _, token, *_ = lock.acquire("a")
    lock.advance(60_000)
    _, newer, *_ = lock.acquire("b")
    assert lock.release("a", token, quarantine="8 GiB stayed")[0] == "done"
    lock.release("b", newer)
    assert lock.acquire("c")[-1] == ""


def test_a_claimed_lease_that_old_data_shows_as_a_grant_becomes_a_lease_again(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b"}
    _, token, *_ = lock.acquire("a")
    lock.acquire("b")
    lock.release("a", token)
    _, token = lock.granted()
    before_the_claim = lock.store
    lock.acquire("b", hint=token)
    lock.store = before_the_claim
    assert lock.beat("b", token) == ["missing"]
    assert lock.reassert("b", token) == ["renewed"]
    assert lock.holder()["phase"] == "held"


def test_a_fresh_claim_of_a_dead_holders_lock_waits_out_the_deadline(lock: StoreLock) -> None:
    lock.acquire("a")
    lock.advance(59_999)
    reply = lock.acquire("b")
    assert reply[0] == "waiting"
    lock.advance(reply[4])
    assert lock.acquire("b")[0] == "held"


def test_the_first_of_another_program_watches_the_holder(lock: StoreLock) -> None:
    """Who stands next would die with the holder if both are of one program."""
    lock.inboxes = {"inbox-b", "inbox-c"}
    _, token, *_ = lock.acquire("a")
    for waiter in ("b", "b2", "b3"):
        lock.acquire(waiter, inbox="inbox-b")
    lock.acquire("c")
    told = _told_to_watch(lock, "a", token)
    assert told == ["inbox-c"]


def test_a_program_that_waits_alone_watches_its_own_holder(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b"}
    _, token, *_ = lock.acquire("a")
    for waiter in ("b", *(f"b{number}" for number in range(40))):
        lock.acquire(waiter, inbox="inbox-b")
    assert _told_to_watch(lock, "a", token) == ["inbox-b"]
    assert lock.messages[-1]["holder"] == "b", "it knows when that lease ends"


def test_another_program_behind_forty_of_the_holders_own_watches_it(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b", "inbox-c"}
    _, token, *_ = lock.acquire("a")
    for number in range(41):
        lock.acquire(f"b{number}", inbox="inbox-b")
    lock.acquire("c")
    assert _told_to_watch(lock, "a", token) == ["inbox-c"]


def test_who_was_found_behind_many_watches_until_it_holds_or_leaves(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b", "inbox-c", "inbox-d", "inbox-e"}
    _, token, *_ = lock.acquire("a")
    for number in range(20):
        lock.acquire(f"b{number}", inbox="inbox-b")
    for waiter in ("c", "d", "d2", "e"):
        lock.acquire(waiter, inbox=f"inbox-{waiter[0]}")
    assert _told_to_watch(lock, "a", token) == ["inbox-c"]
    lock.withdraw("b19")
    assert [channel for channel, _ in lock.sent] == ["inbox-c"]
    lock.withdraw("c")
    assert [channel for channel, _ in lock.sent] == ["inbox-d"]
    for number in reversed(range(19)):
        lock.withdraw(f"b{number}")
    assert lock.granted()[0] == "d"
    assert [channel for channel, message in lock.sent if message.get("type") == "watch"] == ["inbox-e"]


def test_who_was_found_behind_many_is_not_searched_for_again(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b", "inbox-c"}
    _, token, *_ = lock.acquire("a")
    for number in range(100):
        lock.acquire(f"b{number}", inbox="inbox-b")
    lock.acquire("c")
    assert _told_to_watch(lock, "a", token) == ["inbox-c"]
    searched = lock.commands
    _, token, *_ = lock.acquire("b0", hint=lock.granted()[1], inbox="inbox-b")
    assert _told_to_watch(lock, "b0", token) == ["inbox-c"]
    assert lock.commands < searched / 2


def test_the_next_in_line_is_told_before_who_was_found_behind_many(lock: StoreLock) -> None:
    """Who was found once may be slow, or on another host."""
    lock.inboxes = {"inbox-b", "inbox-c", "inbox-d"}
    _, token, *_ = lock.acquire("a")
    for number in range(20):
        lock.acquire(f"b{number}", inbox="inbox-b")
    lock.acquire("c")
    lock.acquire("d")
    assert _told_to_watch(lock, "a", token) == ["inbox-c"]
    lock.acquire("c2", inbox="inbox-c")
    for number in reversed(range(2, 20)):
        lock.withdraw(f"b{number}")
    lock.withdraw("c")
    lock.withdraw("b0")
    assert [channel for channel, message in lock.sent if message.get("type") == "watch"] == ["inbox-d"]


def _process(pid: int, boot: str, pidns: int = 1) -> str:
    return f'{{"boot":"{boot}","pidns":{pidns},"timens":1,"processes":[[{pid},1]]}}'


def test_where_the_next_in_line_is_elsewhere_the_first_on_the_holders_host_is_told_too(lock: StoreLock) -> None:
    lock.inboxes = {f"inbox-{waiter}" for waiter in "bcdef"}
    _, token, *_ = lock.acquire("a")
    for pid, (waiter, boot) in enumerate(zip("bcdef", ("here", "there", "there", "here", "here"), strict=True)):
        lock.acquire(waiter, process=_process(pid, boot))
    assert _told_to_watch(lock, "a", token) == ["inbox-c", "inbox-e"]


def test_a_second_inbox_of_the_holders_program_would_die_with_it(lock: StoreLock) -> None:
    lock.inboxes = {f"inbox-{waiter}" for waiter in "bcd"}
    _, token, *_ = lock.acquire("a")
    for waiter, pid in (("b", 1), ("c", 1), ("d", 2)):
        lock.acquire(waiter, process=_process(pid, "here"))
    assert _told_to_watch(lock, "a", token) == ["inbox-d"]


def test_a_second_inbox_of_the_holders_program_watches_it_where_nobody_else_waits(lock: StoreLock) -> None:
    """It knows nothing else of the new holder and its deadline: each inbox has a loop of its own."""
    lock.inboxes = {"inbox-b", "inbox-c"}
    _, token, *_ = lock.acquire("a")
    for waiter in "bc":
        lock.acquire(waiter, process=_process(1, "here"))
    assert _told_to_watch(lock, "a", token) == ["inbox-c"]


def test_another_pid_namespace_of_the_host_is_elsewhere(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b", "inbox-c", "inbox-d"}
    _, token, *_ = lock.acquire("a")
    for waiter, pid, pidns in (("b", 1, 1), ("c", 2, 2), ("d", 3, 1)):
        lock.acquire(waiter, process=_process(pid, "here", pidns))
    assert _told_to_watch(lock, "a", token) == ["inbox-c", "inbox-d"]


def test_the_record_of_an_inbox_goes_with_its_last_seat(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b"}
    _, token, *_ = lock.acquire("a")
    lock.acquire("b")
    lock.acquire("b2", inbox="inbox-b")
    lock.acquire("stays")
    assert (lock.waiters()["#inbox-b"], lock.waiters()["#inbox-stays"]) == ("2", "1")
    lock.release("a", token)
    lock.acquire("b")
    assert lock.waiters()["#inbox-b"] == "1"
    lock.withdraw("b2")
    assert lock.waiters().keys() == {"stays", "#inbox-stays", "@inbox-stays"}
    lock.withdraw("stays")
    assert lock.waiters() == {}


def test_a_seat_that_comes_to_another_inbox_is_counted_there(lock: StoreLock) -> None:
    lock.acquire("a")
    for inbox in ("inbox-1", "inbox-1", "inbox-2"):
        lock.acquire("b", inbox=inbox)
    lock.acquire("c")
    lock.acquire("b", inbox="inbox-1")
    counts = {name: value for name, value in lock.waiters().items() if name.startswith(("#", "@"))}
    assert counts.keys() == {"#inbox-1", "@inbox-1", "#inbox-c", "@inbox-c"}
    assert counts["#inbox-1"] == "1"


def test_a_seat_whose_inbox_nobody_listens_to_takes_no_place_in_a_full_queue(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-b", "inbox-c"}
    lock.acquire("a")
    lock.acquire("b")
    lock.acquire("c")
    lock.acquire("d", mode="poll", next_check=1000)
    assert lock.acquire("e", most=3)[:2] == ["full", 3]
    lock.inboxes = {"inbox-c"}
    assert lock.acquire("e", most=3)[:2] == ["full", 3], "one look a second"
    lock.advance(1000)
    assert lock.acquire("e", most=2)[:2] == ["full", 2], "b is gone"
    lock.advance(2001)
    assert lock.acquire("e", most=1)[:2] == ["full", 1], "d has missed its check"
    assert [lock.acquire(new, inbox="inbox-c", most=3)[0] for new in ("e", "f", "g")] == ["waiting", "waiting", "full"]
    assert "b" in lock.waiters(), "it may come back"


def test_nobody_is_let_into_a_full_queue_by_an_old_look(lock: StoreLock) -> None:
    """Whom the last look found absent may have left since, and its place with it."""
    lock.acquire("a")
    for number in range(6):
        lock.acquire(f"dead{number}", inbox="nobody")
    lock.inboxes = {"inbox-b", "inbox-c", "inbox-d"}
    assert lock.acquire("b", most=3)[0] == "waiting"
    for number in range(6):
        lock.withdraw(f"dead{number}")
    replies = [lock.acquire(f"c{number}", inbox="inbox-c", most=3)[0] for number in range(5)]
    assert replies == ["waiting", "waiting", "full", "full", "full"]


def test_a_full_queue_is_swept_of_what_has_expired_while_the_lock_is_held(lock: StoreLock) -> None:
    lock.inboxes = {"inbox-live"}
    lock.acquire("a")
    for number in range(600):
        lock.acquire(f"live{number}", inbox="inbox-live")
    for waiter in ("b", "c"):
        lock.acquire(waiter, expires=5000)
    lock.advance(5000)
    replies = []
    for number in range(2):  # a look sees a part of a long queue
        lock.advance(1000)
        replies.append(lock.acquire(f"new{number}", inbox="inbox-live", most=601)[0])
    assert "waiting" in replies
    assert "b" not in lock.waiters()
    assert "live599" in lock.waiters()


def _told_to_watch(lock: StoreLock, holder: str, token: int) -> list[str]:
    """The inboxes that a release sends to watch the next holder."""
    lock.release(holder, token)
    return [channel for channel, message in lock.sent if message.get("type") == "watch"]
