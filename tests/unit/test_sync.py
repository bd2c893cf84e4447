"""`aiogpulock.sync`: the same lock for threads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from aiogpulock import ConfigError, InvalidGpuError, LeaseLostError, LockTimeoutError, NestedLockError, background, sync
from tests.helpers import untraced, wait_until

ROOT = Path(__file__).parents[2]
VALUE, QUEUE = "gpu_lock:0", "{gpu_lock:0}:queue"


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch, redis_url: str, redis_cleanup: redis.Redis) -> Iterator[redis.Redis]:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("AIOGPULOCK_RESTART_GRACE", "0")
    yield redis_cleanup
    sync.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aiogpulock")]


def test_a_thread_holds_the_lock_for_its_body(client: redis.Redis) -> None:
    with sync.gpu_lock(0, task_name="thread") as lease:
        assert client.get(VALUE) == f"locked_by_thread:{lease.holder_id}"
        lease.check()
        assert not lease.lost.is_set()
        assert (str(lease.gpu), lease.key) == ("0", "gpu_lock:0")
        assert "token=" in repr(lease)
    assert client.get(VALUE) is None


def test_it_is_there_as_the_docs_write_it_after_a_plain_import(client: redis.Redis) -> None:
    program = "import aiogpulock\nwith aiogpulock.sync.gpu_lock(0) as lease: print(lease.key)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "gpu_lock:0\n"), done.stderr


def test_threads_take_turns_with_one_object(client: redis.Redis) -> None:
    lock, inside, most = sync.gpu_lock(0), 0, 0

    def work() -> int:
        nonlocal inside, most
        with lock as lease:
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            inside -= 1
            return int(lease.fencing_token)

    with ThreadPoolExecutor(10) as threads:
        tokens = list(threads.map(lambda _: work(), range(30)))
    assert most == 1
    assert len(set(tokens)) == 30


def test_a_decorated_function_keeps_its_name_arguments_and_result(client: redis.Redis) -> None:
    @sync.gpu_lock(0)
    def infer(batch: int, *, scale: int) -> tuple[int, bool]:
        """Infers."""
        return batch * scale, client.exists(VALUE) == 1

    assert infer(2, scale=3) == (6, True)
    assert (infer.__name__, infer.__doc__) == ("infer", "Infers.")
    assert client.get(VALUE) is None


def test_an_async_function_is_refused_and_told_where_to_go() -> None:
    with pytest.raises(TypeError, match=r"use aiogpulock\.gpu_lock"):

        @sync.gpu_lock(0)
        async def infer() -> None: ...


@pytest.mark.parametrize(
    ("keywords", "error"),
    [({"gpu_id": -1}, InvalidGpuError), ({"max_wait": 1}, ConfigError), ({"manager": None}, TypeError)],
)
def test_bad_input_is_refused_before_any_connection(keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        sync.gpu_lock(**keywords)
    assert background._background is None


def test_acquire_and_release_are_a_pair(client: redis.Redis) -> None:
    lease = sync.gpu_lock(0).acquire()
    with pytest.raises(LockTimeoutError), ThreadPoolExecutor(1) as other:
        other.submit(sync.gpu_lock(0, max_wait_time=0).acquire).result()
    lease.release()
    lease.release()
    assert client.get(VALUE) is None


def test_nested_entry_of_one_thread_fails_at_once(client: redis.Redis) -> None:
    with sync.gpu_lock(0) as lease, sync.gpu_lock(1):
        with pytest.raises(NestedLockError):
            sync.gpu_lock(0).acquire()
        lease.check()


def test_one_object_may_be_entered_for_two_gpus_in_turn(client: redis.Redis) -> None:
    first, second = sync.gpu_lock(0), sync.gpu_lock(1)
    with first, second:
        assert client.exists("gpu_lock:0", "gpu_lock:1") == 2
    with first:
        assert client.exists("gpu_lock:0", "gpu_lock:1") == 1


def test_a_loss_cancels_nothing_and_comes_out_at_the_end(client: redis.Redis) -> None:
    told: list[str] = []
    with pytest.raises(LeaseLostError) as caught, sync.gpu_lock(0, on_lost=told.append) as lease:
        lease._lease._hold.lose("forced")
        with pytest.raises(LeaseLostError):
            lease.check()
    assert caught.value.fencing_token == lease.fencing_token
    wait_until(lambda: told == ["forced"], description="on_lost to be called")


def test_the_body_s_own_exception_comes_out_with_the_loss_as_a_note(client: redis.Redis) -> None:
    with pytest.raises(ZeroDivisionError) as caught, sync.gpu_lock(0) as lease:
        lease._lease._hold.lose("forced")
        raise ZeroDivisionError
    assert caught.value.__notes__[0].startswith("LeaseLostError: ")


def test_the_background_thread_ends_and_starts_anew(client: redis.Redis) -> None:
    leaked = sync.gpu_lock(0).acquire()
    sync.close()
    sync.close()
    assert client.get(VALUE) is None, "what was held is released"
    assert leaked.lost.is_set()
    with sync.gpu_lock(0):
        assert client.exists(VALUE) == 1


# processes

WAIT = """
from aiogpulock.sync import gpu_lock
try:
    with gpu_lock(0):
        print("in")
except KeyboardInterrupt:
    print("interrupted")
"""


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        env={**untraced(), "PYTHONPATH": str(ROOT)},  # Ctrl-C would leave coverage's own lock locked
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it wrote to its end; without what asyncio says where the machine is busy."""
    out, err = process.communicate(timeout=60)
    return out, "".join(line for line in err.splitlines(keepends=True) if not line.startswith("Executing <"))


def test_a_program_with_threads_ends_without_a_word(client: redis.Redis) -> None:
    done = start(WAIT)
    assert said(done) == ("in\n", "")


def test_a_thread_that_outlives_the_main_one_keeps_its_lease_to_the_end(client: redis.Redis) -> None:
    program = """
import threading, time
from aiogpulock.sync import gpu_lock
def work():
    with gpu_lock(0) as lease:
        inside.set()
        time.sleep(0.5)
        lease.check()
        print("kept", flush=True)
inside = threading.Event()
threading.Thread(target=work).start()
inside.wait()
"""
    assert said(start(program)) == ("kept\n", "")
    assert client.get(VALUE) is None


def test_ctrl_c_in_a_waiting_thread_leaves_the_queue_at_once(client: redis.Redis) -> None:
    with sync.gpu_lock(0):
        waiter = start(WAIT)
        wait_until(lambda: client.zcard(QUEUE) == 1, description="the other program to wait")
        waiter.send_signal(signal.SIGINT)
        out, err = said(waiter)
        assert (out, err) == ("interrupted\n", "")
        assert client.zcard(QUEUE) == 0


@pytest.mark.parametrize("delay_ms", [0, 1, 3, 10, 50])
def test_ctrl_c_in_a_holding_thread_frees_the_lock(client: redis.Redis, delay_ms: int) -> None:
    # In short sleeps: a signal that comes just before a sleep begins is not heard until that ends.
    holder = start(WAIT.replace('print("in")', "import time\n        while True: time.sleep(0.05)"))
    wait_until(lambda: client.exists(VALUE), description="the other program to hold", interval=0.001)
    time.sleep(delay_ms / 1000)  # the lease may still be on its way to the thread
    holder.send_signal(signal.SIGINT)
    out, err = said(holder)
    assert (out, err) == ("interrupted\n", "")
    assert client.get(VALUE) is None


@pytest.mark.parametrize("kind", ["with", "task"])
def test_a_storm_of_interrupts_leaves_no_lock_held(kind: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.workers.lock_storm", kind, "5"]
    done = subprocess.run(command, cwd=ROOT, env=untraced(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["stuck"] == []
    assert said["interrupted"] > 100


def test_a_forked_child_has_a_background_thread_of_its_own(client: redis.Redis) -> None:
    program = """
import os, sys, warnings
warnings.simplefilter("ignore")
from aiogpulock import LockTimeoutError
from aiogpulock.sync import gpu_lock
with gpu_lock(0) as lease:
    pid = os.fork()
    if pid == 0:
        with gpu_lock(1):
            print("child in", flush=True)
        try:
            gpu_lock(0, max_wait_time=0).acquire()
        except LockTimeoutError:
            print("child out", flush=True)
        sys.exit()  # leaves its parent's body, and not its parent's lock
    os.waitpid(pid, 0)
    lease.check()
    print("parent in", flush=True)
"""
    assert said(start(program)) == ("child in\nchild out\nparent in\n", "")


def test_a_generator_function_is_refused_since_its_body_would_run_unlocked() -> None:
    with pytest.raises(TypeError, match="is a generator"):

        @sync.gpu_lock(0)
        def numbers() -> Iterator[int]:
            yield 1
