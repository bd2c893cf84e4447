"""Draining and quarantine in the scripts, called one by one on a real server."""

from __future__ import annotations

from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.servers import RealServer

WHY = '{"reason":"1 GiB"}'


def drain(lock: RawLock, holder: str, token: int) -> list[str]:
    reply: list[str] = lock.call("heartbeat", holder, token, 60_000, 600_000, "draining")
    return reply


def quarantine(lock: RawLock) -> str:
    return lock.client.hget(lock.key("fence"), "quarantine") or ""


def test_a_draining_holder_stays_one_and_its_beats_leave_it_draining(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.acquire("b")
    assert drain(lock, "a", token) == ["renewed"]
    assert lock.beat("a", token) == ["renewed"]
    assert lock.holder["phase"] == "draining"
    assert lock.acquire("b")[:2] == ["waiting", 1]
    assert lock.acquire("b")[7] == "draining"
    assert lock.call("release", "a", token, "normal")[0] == "released"


def test_only_the_holder_drains(lock: RawLock) -> None:
    token = lock.hold("a")
    assert drain(lock, "b", token)[0] == "other"
    assert drain(lock, "a", token - 1)[0] == "other"
    assert lock.holder["phase"] == "held"
    lock.release("a", token)
    assert drain(lock, "a", token) == ["done", "released"]
    assert not lock.holder


def test_a_draining_holder_that_dies_is_reaped_at_its_deadline(lock: RawLock) -> None:
    token = lock.hold("a", lease=1)
    assert lock.call("heartbeat", "a", token, 1, 600_000, "draining") == ["renewed"]
    wait_until(lambda: lock.now > int(lock.holder["deadline"]), description="the deadline")
    assert lock.acquire("b")[0] == "held"
    assert lock.holder["dirty"] == "1"


def test_a_quarantine_is_written_by_the_release_and_told_with_every_way_to_the_lock(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.acquire("poller", mode="poll")
    assert lock.call("release", "a", token, "normal", WHY)[0] == "released"
    claimed = lock.acquire("poller", mode="poll")
    assert (claimed[0], claimed[4]) == ("held", WHY)
    lock.release("poller", claimed[1])
    for may_wait in (0, 1):
        at_once = lock.acquire(f"b{may_wait}", may_wait=may_wait)
        assert (at_once[0], at_once[4]) == ("held", WHY)
        lock.release(f"b{may_wait}", at_once[1])
    assert quarantine(lock) == WHY, "a release without a word lifts nothing"


def test_a_repeated_or_refused_release_quarantines_nothing(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.release("a", token)
    assert lock.call("release", "a", token, "normal", WHY) == ["done", "released"]
    other = lock.hold("b")
    assert lock.call("release", "c", token, "normal", WHY)[0] == "other"
    assert quarantine(lock) == ""
    lock.release("b", other)


def test_a_quarantine_is_lifted_exactly_as_seen(lock: RawLock) -> None:
    token = lock.hold("a")
    assert lock.call("lift", WHY, "back", "me") == ["changed", ""]
    lock.call("release", "a", token, "normal", WHY)
    assert lock.call("lift", '{"reason":"older"}', "back", "me") == ["changed", WHY]
    assert quarantine(lock) == WHY
    assert lock.call("lift", WHY, "back", "me") == ["lifted"]
    assert lock.call("lift", WHY, "back", "me") == ["changed", ""]
    assert quarantine(lock) == ""


def told(device: str, reason: str) -> str:
    return f'{{"reason":"{reason}","uuid":"{device}"}}'


def test_each_device_of_a_shared_lock_has_its_own_quarantine(lock: RawLock) -> None:
    words = [told("GPU-a", 'by \\"uuid\\":\\"GPU-b\\"'), told("GPU-b", "1 GiB"), told("GPU-a", "2 GiB")]
    for number, word in enumerate(words):
        lock.call("release", f"a{number}", lock.hold(f"a{number}"), "normal", word)
    assert quarantine(lock).split("\n") == words[1:], "a newer word on the same device replaces the older"
    assert lock.acquire("b")[4] == quarantine(lock)
    assert lock.call("lift", quarantine(lock), "back", "me")[0] == "changed", "one at a time"
    assert lock.call("lift", words[1], "back", "me") == ["lifted"]
    assert quarantine(lock) == words[2]


def test_a_verdict_is_noted_once(lock: RawLock) -> None:
    for _ in range(2):
        assert lock.call("verdict", "a:memory", "a", 7, "train", "not_freed", "1 GiB", "bytes", 1 << 30) == ["noted"]
    ((_, event),) = lock.client.xrange(lock.key("events"))
    assert (event["event"], event["status"], event["bytes"]) == ("memory", "not_freed", "1073741824")
    assert (event["holder"], event["token"]) == ("a", "7")
    assert lock.client.hget(lock.key("stats"), "memory_not_freed") == "1"


def test_nothing_of_it_stays_for_ever(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.call("release", "a", token, "normal", WHY)
    lock.call("verdict", "a:memory", "a", token, "train", "freed", "")
    forever = [key for key in lock.client.keys("*") if lock.client.pttl(key) < 0]
    assert not forever


def test_a_server_without_memory_still_releases(own_server: RealServer) -> None:
    """The first write of a release is one that Redis accepts then; the quarantine comes after it."""
    with own_server.client() as client:
        lock = RawLock(client)
        token = lock.hold("a")
        client.config_set("maxmemory", 1)
        assert lock.call("release", "a", token, "normal", WHY)[0] == "released"
        assert quarantine(lock) == WHY
