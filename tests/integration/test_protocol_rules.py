"""The rules of the protocol, each tried on the shipped scripts and a real server, one call at a time."""

from __future__ import annotations

import json
import time

import pytest

from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.servers import RealServer

pytestmark = pytest.mark.integration


# ids


def test_a_repeated_release_answers_as_the_first_and_changes_nothing(lock: RawLock) -> None:
    token = lock.hold("a")
    assert lock.release("a", token)[0] == "released"
    successor = lock.hold("b")
    assert lock.release("a", token) == ["done", "released"]
    assert lock.holder_id == "b"
    assert int(lock.holder["token"]) == successor


def test_an_acquire_that_arrives_after_its_own_release_gets_nothing(lock: RawLock) -> None:
    lock.release("a", lock.hold("a"))
    assert lock.acquire("a") == ["done", "released"]
    assert lock.value is None
    assert lock.queue == []


def test_an_acquire_that_arrives_after_its_own_withdrawal_gets_nothing(lock: RawLock) -> None:
    assert lock.withdraw("a") == ["withdrawn", 0, 0]
    assert lock.acquire("a") == ["done", "withdrawn"]
    assert lock.value is None
    assert lock.queue == []


@pytest.mark.parametrize(("outcome", "reason"), [("reaped", "process_gone"), ("forced", "forced")])
def test_an_ended_holder_cannot_come_back_by_any_call(lock: RawLock, outcome: str, reason: str) -> None:
    token = lock.hold("a")
    assert lock.reap(lock.value or "", outcome, reason)[0] == "ended"
    assert lock.beat("a", token) == ["done", outcome]
    assert lock.reassert("a", token) == ["done", outcome]
    assert lock.acquire("a") == ["done", outcome]
    assert lock.release("a", token) == ["done", outcome]
    assert lock.withdraw("a") == ["done", outcome]
    assert lock.value is None


def test_an_outcome_is_kept_for_two_minutes_and_no_longer(lock: RawLock) -> None:
    lock.release("a", lock.hold("a"))
    assert 110_000 < lock.client.pttl(lock.key("done")) <= 120_000


def test_a_claim_counts_for_the_grant_that_it_names_alone(lock: RawLock) -> None:
    """The id is granted, reaped as unclaimed and granted again: a claim of the first grant is too old."""
    token = lock.hold("a")
    lock.acquire("b", mode="poll", next_check=100)
    lock.release("a", token)
    first = int(lock.holder["token"])
    assert (lock.holder_id, lock.holder["phase"]) == ("b", "granted")
    assert lock.acquire("b", hint=first - 1) == ["stale"]
    assert lock.holder["phase"] == "granted"
    assert lock.acquire("b", hint=first)[:2] == ["held", first]
    assert lock.acquire("b", hint=first)[:2] == ["held", first], "a repeated claim answers as the first"


def test_a_beat_of_an_older_grant_renews_nothing(lock: RawLock) -> None:
    token = lock.hold("a")
    deadline = lock.holder["deadline"]
    assert lock.beat("a", token - 1)[0] == "other"
    assert lock.beat("b", token)[0] == "other"
    assert lock.release("a", token - 1)[0] == "other"
    assert lock.holder["deadline"] == deadline
    lock.release("a", token)
    assert lock.beat("a", token) == ["done", "released"], "a guard's beat that lands after the release"
    assert lock.value is None


# deadline


def test_the_deadline_is_the_holders_own_whoever_looks(lock: RawLock) -> None:
    lock.hold("a", lease=700)
    assert lock.acquire("b", mode="poll", lease=5)[0] == "waiting"
    time.sleep(0.05)
    assert lock.acquire("b", mode="poll", lease=5)[0] == "waiting", "the waiter's own lease is long over"
    wait_until(lambda: lock.acquire("b", lease=5)[0] == "held", description="the end of the holder's lease", timeout=10)
    assert int(lock.client.hget(lock.key("fence"), "dirty")) == 1


def test_a_beat_moves_the_deadline_by_the_holders_lease_and_renews_the_key(lock: RawLock) -> None:
    token = lock.hold("a", lease=1000, ttl=2000)
    assert lock.beat("a", token, lease=50_000, ttl=90_000) == ["renewed"]
    assert 48_000 < int(lock.holder["deadline"]) - lock.now <= 50_000
    assert 88_000 < lock.client.pttl(lock.keys.lock) <= 90_000


def test_a_beat_never_creates_a_lock(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.client.flushall()
    assert lock.beat("a", token) == ["missing"]
    assert lock.client.keys("*") == []


# reassert


def test_a_forgotten_lease_is_restored_by_its_holder(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.client.flushall()
    assert lock.reassert("a", token) == ["renewed"]
    assert (lock.holder_id, int(lock.holder["token"])) == ("a", token)
    assert lock.beat("a", token) == ["renewed"]


def test_a_forgotten_lease_is_not_restored_once_somebody_was_granted_the_lock(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.client.flushall()
    successor = lock.hold("b")
    assert lock.reassert("a", token)[0] == "other"
    assert lock.release("b", successor)[0] == "released"
    assert lock.reassert("a", token)[0] == "other", "the fence has moved past its token"
    assert lock.value is None


def test_a_holder_from_old_data_is_displaced_by_a_higher_token_and_told(lock: RawLock) -> None:
    old = lock.hold("old", inbox="inbox-old")
    with lock.client.pubsub(ignore_subscribe_messages=True) as messages:
        messages.subscribe("inbox-old")
        messages.get_message(timeout=5)
        assert lock.reassert("new", old + 1000) == ["renewed"]
        message = wait_until(lambda: messages.get_message(timeout=0.1), description="the message")
    assert json.loads(message["data"])["type"] == "lost"
    assert lock.holder_id == "new"
    assert lock.reassert("old", old)[0] == "done"
    assert lock.beat("old", old)[0] == "done"


@pytest.mark.parametrize("ending", ["released", "reaped"])
def test_the_fence_alone_forbids_the_return_of_an_ended_lease(lock: RawLock, ending: str) -> None:
    """Outcomes are kept for two minutes, and a partition may last longer."""
    token = lock.hold("a")
    if ending == "released":
        lock.release("a", token)
    else:
        lock.reap(lock.value or "", "reaped", "process_gone")
    lock.client.delete(lock.key("done"))
    assert lock.reassert("a", token)[0] == "other"
    assert lock.value is None


def test_a_release_of_a_forgotten_lease_forbids_its_return(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.client.flushall()
    assert lock.release("a", token)[0] == "released"
    lock.client.delete(lock.key("done"))
    assert lock.reassert("a", token)[0] == "other", "the fence says so even without the outcome"


# tokens


def test_tokens_keep_all_their_digits_wherever_they_become_text(lock: RawLock) -> None:
    with lock.client.pubsub(ignore_subscribe_messages=True) as messages:
        messages.subscribe("inbox-b")
        wait_until(lambda: lock.client.pubsub_numsub("inbox-b")[0][1] == 1, description="the subscription")
        token = lock.hold("a")
        lock.acquire("b")
        lock.release("a", token)
        message = wait_until(lambda: messages.get_message(timeout=0.1), description="the grant")
    granted = json.loads(message["data"])
    stored = int(lock.holder["token"])
    assert len(str(stored)) == 16
    assert (granted["type"], granted["token"]) == ("grant", stored)
    assert lock.acquire("b", hint=stored)[:2] == ["held", stored]
    [(_, event)] = lock.client.xrange(lock.key("events"))
    assert event["token"] == str(token)
    assert lock.client.hget(lock.key("fence"), "token") == str(stored)


def test_tokens_increase_strictly_within_one_microsecond_and_behind_a_clock_that_was_ahead(lock: RawLock) -> None:
    ahead = (lock.now + 3_600_000) * 1000
    lock.client.hset(lock.key("fence"), "token", ahead)
    tokens = []
    for number in range(3):
        tokens.append(lock.hold(str(number)))
        lock.release(str(number), tokens[-1])
    assert ahead < tokens[0] < tokens[1] < tokens[2]


# polling waiters


def test_a_polling_waiter_at_the_head_has_the_lock_reserved_until_its_next_check(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.acquire("poller", mode="poll", next_check=1500)
    with lock.client.pubsub(ignore_subscribe_messages=True) as messages:
        messages.subscribe("inbox-pushed")
        wait_until(lambda: lock.client.pubsub_numsub("inbox-pushed")[0][1] == 1, description="the subscription")
        lock.acquire("pushed")
        lock.release("a", token)
        assert (lock.holder_id, lock.holder["phase"]) == ("poller", "granted")
        assert 2500 < int(lock.holder["deadline"]) - lock.now <= 3500
        assert lock.acquire("pushed")[0] == "waiting"
        assert lock.acquire("poller", mode="poll")[0] == "held"


def test_a_polling_waiter_that_missed_its_own_check_is_passed_over_and_keeps_its_seat(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.acquire("poller", mode="poll", next_check=1)
    time.sleep(2.1)
    assert lock.acquire("next", mode="poll")[0] == "waiting"
    lock.release("a", token)
    assert lock.holder_id == "next"
    assert lock.queue[0] == "poller"


# restart grace


def test_a_new_server_process_grants_nothing_until_the_grace_is_over(own_server: RealServer) -> None:
    lock = RawLock(own_server.client(), grace=3000)
    asked = lock.now
    reply = lock.acquire("a")
    assert reply[0] == "waiting"
    assert 0 < reply[4] <= 3000, "it is told when to ask again"
    assert lock.acquire("b", may_wait=0)[0] == "busy"
    assert lock.reassert("holder", 1)[0] == "renewed", "a re-assertion passes"
    assert lock.beat("holder", 1) == ["renewed"]
    assert lock.release("holder", 1)[0] == "released"
    assert lock.value is None, "the release grants to nobody yet"
    wait_until(lambda: lock.acquire("a")[0] == "held", description="the end of the grace", timeout=10)
    assert 1900 < lock.now - asked < 8000, "the whole grace after its start, which was up to 1 s before"


def test_a_changed_run_id_starts_the_grace_anew(lock: RawLock) -> None:
    """A failover with the data: the fence knows another server."""
    lock.client.hset(lock.key("fence"), mapping={"run": "0" * 40, "since": 0})
    lock.grace = 60_000
    assert lock.acquire("a")[0] == "waiting"
    run = lock.client.info("server")["run_id"]
    assert lock.client.hget(lock.key("fence"), "run") == run


def test_a_server_known_to_have_started_clean_grants_at_once(own_server: RealServer) -> None:
    client = own_server.client()
    lock = RawLock(client, grace=60_000, clean_run=client.info("server")["run_id"])
    assert lock.acquire("a")[0] == "held"


# force


def test_force_ends_exactly_the_holder_that_was_seen(lock: RawLock) -> None:
    token = lock.hold("a")
    seen = lock.value or ""
    lock.release("a", token)
    lock.hold("b")
    assert lock.reap(seen)[0] == "changed"
    assert lock.holder_id == "b"
    assert lock.reap(lock.value or "")[0] == "ended"
    assert lock.value is None


def test_a_repeated_reap_answers_as_the_first_and_ends_nobody_else(lock: RawLock) -> None:
    lock.hold("a")
    lock.acquire("b", mode="poll")
    seen = lock.value or ""
    assert lock.reap(seen, call="call 1")[0] == "ended"
    assert lock.reap(seen, call="call 1")[0] == "ended"
    assert lock.reap(seen, call="call 2")[0] == "changed", "somebody else's call did not end it"
    assert lock.holder_id == "b"


def test_whoever_reaps_does_not_jump_the_queue(lock: RawLock) -> None:
    lock.hold("a")
    for waiter in ("first", "second"):
        lock.acquire(waiter, mode="poll")
    assert lock.reap(lock.value or "", "reaped", "process_gone")[0] == "ended"
    assert lock.holder_id == "first"


def test_every_script_refuses_a_holder_of_a_newer_protocol(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.client.hset(lock.key("holder"), "v", 2)
    before = {key: lock.client.dump(key) for key in lock.client.keys("*") if "heartbeat" not in key}
    replies = [
        lock.acquire("b"),
        lock.release("a", token),
        lock.beat("a", token),
        lock.withdraw("a"),
        lock.reassert("a", token),
        lock.reap(lock.value or ""),
        lock.call("resume"),
        lock.call("count", "batch", "attempts", 1),
        lock.call("snapshot", 10),
        lock.call("sweep", "monitor"),
        lock.call("end_foreign", lock.value or "", 0, 0, 9000, "forced_by_monitor", "monitor", "call"),
    ]
    assert replies == [["newer", 2]] * 11
    assert {key: lock.client.dump(key) for key in before} == before


def test_a_waiter_whose_record_was_lost_is_seated_anew_by_its_next_call(lock: RawLock) -> None:
    lock.hold("a")
    arrival = lock.acquire("b")[2]
    lock.client.delete(lock.keys.lock, lock.key("holder"))
    lock.client.hdel(lock.key("waiters"), "b")
    assert lock.acquire("b", arrival=arrival)[0] == "held"


def test_an_alert_is_noted_once_in_the_history(lock: RawLock) -> None:
    for _ in range(2):
        lock.call("note", "id", "loop_stalled", "warning", "task", "holder", "host:1", "it stalls", "{}")
    [(_, event)] = lock.client.xrange(lock.key("events"))
    assert (event["event"], event["reason"], event["message"]) == ("alert", "loop_stalled", "it stalls")
    assert lock.client.hget(lock.key("stats"), "alerts") == "1"


@pytest.mark.parametrize("field", ["token", "deadline", "arrival", "since", "v"])
@pytest.mark.parametrize("odd", ["inf", "nan", "-inf", "1e300", "-1", "soon"])
def test_a_number_that_no_script_writes_stops_none_half_way(lock: RawLock, field: str, odd: str) -> None:
    lock.hold("a")
    lock.acquire("b", mode="poll")
    lock.client.hset(lock.key("holder"), field, odd)
    lock.client.hset(lock.key("fence"), mapping={"arrival": odd, "cursor": odd, "since": odd})

    assert lock.reap("locked_by_a:a") == ["ended", 0]

    assert lock.holder_id == "b"
    lock.release("b", int(lock.holder["token"]))
    token = lock.hold("c")
    assert abs(token / 1000 - lock.now) < 60_000
    lock.release("c", token)


def test_a_counter_that_somebody_wrote_over_stops_no_script_half_way(lock: RawLock) -> None:
    names = ("attempts", "acquisitions", "holds", "wait_ms", "hold_ms", "ended_forced", "emergency_releases")
    lock.client.hset(lock.key("stats"), mapping=dict.fromkeys(names, "many"))
    lock.hold("a")
    lock.acquire("b", mode="poll")
    assert lock.reap("locked_by_a:a") == ["ended", 0]
    assert lock.call("count", "batch", "emergency_releases", 1, "timeouts", 2) == ["counted"]
    lock.release("b", int(lock.holder["token"]))

    stats = lock.client.hgetall(lock.key("stats"))
    assert {stats.pop(name) for name in names} == {"many"}
    assert stats == {"timeouts": "2"}


def test_a_queue_that_never_empties_keeps_nothing_of_the_programs_that_left(lock: RawLock) -> None:
    lock.hold("a")
    lock.acquire("stays", mode="poll")
    sizes = []
    for number in range(100):
        for part in ("killed", "cancelled", "killed-too"):
            lock.acquire(f"{part}-{number}", mode="poll", expires=1 if part == "killed-too" else 60_000)
        lock.withdraw(f"cancelled-{number}")
        time.sleep(0.002)
        lock.call("sweep", "monitor", f"killed-{number}")
        sizes.append(lock.client.hlen(lock.key("waiters")))
    assert sizes == [3] * 100, "one seat, its inbox and their number"


@pytest.mark.parametrize("odd", ["many", "", "-5", "0", "7", "1e300", str(2**63 - 1)])
def test_a_count_of_seats_that_somebody_wrote_over_stops_no_script_half_way(lock: RawLock, odd: str) -> None:
    token = lock.hold("a")
    arrivals = {
        waiter: lock.acquire(waiter, mode="poll", inbox=f"inbox-{waiter[0]}")[2] for waiter in ("b", "b2", "b3", "c")
    }
    lock.client.hset(lock.key("waiters"), "#inbox-b", odd)
    lock.withdraw("b3")
    del arrivals["b3"]
    arrivals["b4"] = lock.acquire("b4", mode="poll", inbox="inbox-b")[2]
    lock.release("a", token)
    while arrivals:  # whom a wrong count made seem dead comes back with its next call
        for waiter, arrival in list(arrivals.items()):
            reply = lock.acquire(waiter, mode="poll", inbox=f"inbox-{waiter[0]}", arrival=arrival)
            if reply[0] == "held":
                del arrivals[waiter]
                lock.release(waiter, reply[1])
    assert not lock.client.exists(lock.key("waiters"))
    assert not lock.client.exists(lock.key("queue"))


def test_a_grant_does_not_search_through_a_program_that_waits_alone(lock: RawLock) -> None:
    token = lock.hold("a", inbox="inbox")
    for number in range(100):
        lock.acquire(f"b{number}", inbox="inbox")
    with lock.client.pubsub() as messages:
        messages.subscribe("inbox")
        wait_until(lambda: lock.client.pubsub_numsub("inbox")[0][1] == 1, description="the subscription")
        lock.client.config_resetstat()
        lock.release("a", token)
    assert lock.holder_id == "b0"
    assert lock.client.info("commandstats")["cmdstat_hget"]["calls"] < 10
