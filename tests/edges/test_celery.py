"""GPU tasks in real Celery workers: the lock is free again however a task ends, in every pool."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import celery
import psutil
import pytest
import redis
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery.result import AsyncResult

from aiogpulock import death_watch, sync
from aiogpulock.celery import GpuTask, current_lease, gpu_lock
from aiogpulock.celery.pool import Announcements
from aiogpulock.errors import ConfigError
from tests import tts
from tests.helpers import wait_until
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.tts import TtsWorker

VALUE, EVENTS = "gpu_lock:0", "{gpu_lock:0}:events"
QUEUES = {"prefork": "celery", "threads": "in threads", "solo": "alone"}
"""The queue of each pool's worker: all are up for the whole module."""


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with RealServer() as server:
        yield server


@pytest.fixture(scope="module")
def app(server: RealServer) -> Iterator[Celery]:
    with tts.client(server) as app:
        yield app


class Lock:
    """Lock 0 as the tests see it, and the tasks that want it."""

    def __init__(self, client: redis.Redis, app: Celery) -> None:
        self.client = client
        self._app = app

    def send(self, text: str, pool: str = "prefork", **options: Any) -> AsyncResult:
        return self._app.send_task("indextts.generate", (text,), queue=QUEUES.get(pool, pool), **options)

    def begin(self, pool: str = "prefork", **options: Any) -> AsyncResult:
        """Start a task that does not end by itself; it holds its GPU when this returns."""
        result = self.send("an endless text", pool, **options)
        wait_until(lambda: f"[{result.id}]:" in (self.client.get(VALUE) or ""), description="the task to hold its GPU")
        return result

    def begin_under_a_limit(self) -> AsyncResult:
        """The same with a hard time limit. On a busy machine it may be over before the task has its GPU."""
        for limit in (1, 4, 16):
            result = self.send("an endless text", time_limit=limit)
            wait_until(
                lambda result=result: result.ready() or f"[{result.id}]:" in (self.client.get(VALUE) or ""),
                description="the task to hold its GPU, or to have no time left",
            )
            if not result.ready():
                return result
        raise AssertionError("no task had its GPU within 16 s")

    def wait_for_a_waiter(self) -> None:
        wait_until(lambda: self.client.zcard("{gpu_lock:0}:queue"), description="a task to wait")

    def kill_holder(self) -> None:
        process = json.loads(self.client.hget("{gpu_lock:0}:holder", "process"))
        os.kill(process["processes"][0][0], signal.SIGKILL)

    def end(self, within: float = 30.0) -> tuple[str, str]:
        """Outcome and reason of the last hold, once the lock is free."""
        wait_until(lambda: not self.client.exists(VALUE), description="the lock to be free", timeout=within)
        [(_, event)] = self.client.xrevrange(EVENTS, count=1)
        return event["event"], event["reason"]


@pytest.fixture(scope="module")
def workers(server: RealServer) -> Iterator[dict[str, TtsWorker]]:
    """One worker per pool."""
    workers: dict[str, TtsWorker] = {}
    try:
        for pool, queue in QUEUES.items():
            workers[pool] = TtsWorker(server, pool, queue=queue)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


@pytest.fixture
def lock(server: RealServer, app: Celery) -> Iterator[Lock]:
    """Free before a test, and after it."""
    with server.client() as client:
        client.flushdb()
        yield Lock(client, app)
        wait_until(lambda: not client.keys("gpu_lock:*"), description="every lock to be free")


# in every pool

pools = pytest.mark.parametrize("pool", QUEUES)


@pools
@pytest.mark.usefixtures("workers")
def test_a_task_waits_for_its_turn_and_is_shown_by_its_name_and_id(lock: Lock, pool: str) -> None:
    with tts.foreign_holder(lock.client, VALUE):
        result = lock.send("hello", pool)
        lock.wait_for_a_waiter()
        assert any(f"[{result.id}]" in waiter for waiter in lock.client.hvals("{gpu_lock:0}:waiters"))
    assert result.get(timeout=30)["task"] == f"indextts.generate[{result.id}]"
    assert lock.end() == ("released", "normal")


@pools
@pytest.mark.usefixtures("workers")
def test_after_an_exception_a_retry_and_an_ignored_task_the_lock_is_free(lock: Lock, pool: str) -> None:
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        lock.send("CUDA out of memory", pool).get(timeout=30)
    assert lock.end() == ("released", "task_failure")
    assert lock.send("not yet", pool).get(timeout=30)["audio"] == "tey ton"
    first_run, second_run = (event["reason"] for _, event in lock.client.xrange(EVENTS)[1:])
    assert (first_run, second_run) == ("exception", "normal")
    lock.send("nothing to say", pool)
    wait_until(lambda: lock.client.xlen(EVENTS) == 4, description="the ignored task to end")
    assert lock.end() == ("released", "normal")


@pytest.mark.usefixtures("workers")
def test_tasks_of_all_pools_never_overlap(lock: Lock, app: Celery, register: RegisterProcess) -> None:
    queues = [queue for queue in QUEUES.values() for _ in range(10)]
    for result in [app.send_task("indextts.recorded", (register.path,), queue=queue) for queue in queues]:
        result.get(timeout=60)
    report = register.report()
    assert report["overlaps"] == []
    assert len(report["tokens"]) == 30


# prefork: ends that the task's process may not live to see


@pytest.mark.usefixtures("workers")
def test_the_soft_time_limit_is_a_failure_of_the_task(lock: Lock) -> None:
    result = lock.begin(soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=30)
    assert lock.end() == ("released", "task_failure")


@pytest.mark.usefixtures("workers")
def test_the_soft_time_limit_ends_a_wait(lock: Lock) -> None:
    holder = lock.begin()
    waiter = lock.send("hello", soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        waiter.get(timeout=30)
    assert not lock.client.exists("{gpu_lock:0}:queue")
    holder.revoke(terminate=True)


@pytest.mark.usefixtures("workers")
def test_the_hard_time_limit_frees_the_lock(lock: Lock) -> None:
    result = lock.begin_under_a_limit()
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=30)
    outcome, reason = lock.end()
    assert outcome in ("released", "reaped")  # Celery gives its child 0.1 s to leave
    assert reason == "task_failure"


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize(
    ("signal_name", "end"), [("SIGTERM", ("released", "cancelled")), ("SIGKILL", ("reaped", "task_failure"))]
)
def test_a_revoked_task_frees_the_lock(lock: Lock, signal_name: str, end: tuple[str, str]) -> None:
    lock.begin().revoke(terminate=True, signal=signal_name)
    assert lock.end() in (end, ("reaped", "task_failure"))  # a child that is slow to leave is killed by its parent


@pytest.mark.usefixtures("workers")
def test_the_lock_of_a_killed_child_is_free_within_2_seconds_though_nobody_waits(lock: Lock) -> None:
    for _ in range(3):  # Celery itself sees some deaths after 5 s only
        lock.begin()
        lock.kill_holder()
        assert lock.end(within=2.0) == ("reaped", "task_failure")


@pytest.mark.usefixtures("workers")
def test_who_waits_for_a_killed_child_is_next(lock: Lock) -> None:
    lock.begin()
    waiter = lock.send("hello", "threads")
    lock.wait_for_a_waiter()
    lock.kill_holder()
    assert waiter.get(timeout=30)["audio"] == "olleh"


def test_a_watch_that_was_killed_is_started_again_also_after_the_worker_lost_its_broker(
    server: RealServer, lock: Lock, app: Celery
) -> None:
    with TtsWorker(server, "prefork", queue="reconnect") as worker:
        lock.begin("reconnect")
        worker.lose_its_broker(lock.client)
        wait_until(lambda: worker.log.count("Connected to") == 2, description="the worker to reconnect")
        [watch] = worker.watches()
        wait_until(lambda: watches_somebody(watch), description="the watch to have heard of the child")
        watch.kill()
        wait_until(lambda: worker.watches() not in ([], [watch]), description="another death watch")
        assert "it is started again" in worker.log
        app.send_task("indextts.preview", ("hello",), queue="reconnect").get(timeout=30)  # by the other child
        wait_until(lambda: watches_somebody(*worker.watches()), description="the new watch to have heard of them")
        lock.kill_holder()
        assert lock.end(within=2.0) == ("reaped", "task_failure")


def watches_somebody(watch: psutil.Process) -> bool:
    for link in Path(f"/proc/{watch.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if "pidfd" in str(link.readlink()):
                return True
    return False


def test_a_death_watch_that_reads_nothing_holds_up_no_task() -> None:
    announcements = Announcements()
    for _ in range(20_000):
        announcements._announced = 0  # as in a child
        announcements.announce()
    os.close(announcements._read)
    os.close(announcements._write)


def test_a_death_watch_that_cannot_live_is_started_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(death_watch, "start", lambda _: subprocess.Popen(["false"]))
    monkeypatch.setattr(Announcements, "PAUSES", (0.1, 60.0))
    announcements, end = Announcements(), time.monotonic() + 1
    while time.monotonic() < end:
        announcements.see_to_watch([1])
        time.sleep(0.01)
    assert 1 <= caplog.text.count("it is started again") <= 3
    os.close(announcements._read)
    os.close(announcements._write)


@pytest.fixture
def eager(redis_url: str, monkeypatch: pytest.MonkeyPatch, redis_cleanup: redis.Redis) -> Iterator[Celery]:
    """An app whose tasks run where they are sent from."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("AIOGPULOCK_RESTART_GRACE", "0")
    with Celery("eager", broker="memory://", backend="cache+memory://", set_as_current=False) as app:
        app.conf.task_always_eager = True
        yield app
    sync.close()


class Speaks(GpuTask):
    """A base class that can be a task itself."""

    name = "speaks"
    gpu_lock: ClassVar[dict[str, Any]] = {"gpu_id": 3, "max_wait_time": 1}

    def run(self, text: str) -> str:
        return current_lease().key


class Mixin:
    def run(self, text: str) -> str:
        return current_lease().key


class Plain(celery.Task):
    run = Mixin.run


class Mixed(Mixin, GpuTask):
    name = "mixed"


class OfAPlainTask(Plain, GpuTask):
    name = "of a plain task"


class Inherits(Speaks):
    name = "inherits"
    gpu_lock: ClassVar[dict[str, Any]] = {"gpu_id": 5}

    def __init__(self) -> None:  # as tasks have that load a model
        self.model = "loaded"


class Extends(Speaks):
    name = "extends"

    def run(self, text: str) -> str:
        return f"{current_lease().key}, {super().run(text)}"


@pytest.mark.parametrize(
    ("task", "locked"),
    [
        (Speaks, "gpu_lock:3"),
        (Mixed, "gpu_lock:0"),
        (OfAPlainTask, "gpu_lock:0"),
        (Inherits, "gpu_lock:5"),
        (Extends, "gpu_lock:3, gpu_lock:3"),
    ],
)
def test_wherever_a_class_has_its_run_from_it_is_under_the_lock_of_that_class(
    eager: Celery, task: type[GpuTask], locked: str
) -> None:
    registered = eager.register_task(task())
    assert registered.delay("hello").get() == locked
    assert registered("called directly") == locked


def test_two_gpus_for_calls_that_name_none_are_refused(eager: Celery) -> None:
    def speak(text: str, gpu_id: int = 0) -> None: ...

    with pytest.raises(ConfigError, match="gpu_lock says gpu_id 5, and the task's own default is gpu_id=0"):
        gpu_lock(5)(speak)
    with pytest.raises(ConfigError, match="gpu_lock says gpu_id 5"):
        eager._task_from_fun(speak, base=GpuTask, gpu_lock={"gpu_id": 5})
    gpu_lock(0)(speak)


def test_bad_options_of_a_class_are_refused_where_it_is_defined() -> None:
    with pytest.raises(ConfigError, match=r"unknown key; did you mean 'max_wait_time'\?"):

        class Misspelt(GpuTask):
            gpu_lock: ClassVar[dict[str, Any]] = {"max_wait_tiem": 60}


MISSPELT = """
from celery import Celery
from aiogpulock.celery import GpuTask, gpu_lock
app = Celery("misspelt", broker="memory://")
"""


@pytest.mark.parametrize(
    ("task", "place"),
    [
        ('@app.task(base=GpuTask, gpu_lock={"max_wait_tiem": 60})\ndef speak(text): ...\n', "task misspelt.speak"),
        ("@app.task\n@gpu_lock(max_wait_tiem=60)\ndef speak(text): ...\n", "misspelt.py:6"),
    ],
)
def test_a_misspelt_option_is_one_line_when_the_worker_starts(tmp_path: Path, task: str, place: str) -> None:
    (tmp_path / "misspelt.py").write_text(MISSPELT + task)
    command = [sys.executable, "-m", "celery", "-A", "misspelt", "worker", "--pool=solo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].endswith(
        f"{place}: gpu_lock(max_wait_tiem=…): unknown key; did you mean 'max_wait_time'? (keyword of gpu_lock())"
    )


# the end of a worker


def test_the_death_of_the_whole_worker_frees_the_lock(server: RealServer, lock: Lock) -> None:
    with TtsWorker(server, "prefork", queue="doomed") as worker:
        lock.begin("doomed")
        worker.signal(signal.SIGKILL)
        assert lock.end() == ("reaped", "task_failure")


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_cold_shutdown_frees_the_lock(server: RealServer, lock: Lock, pool: str) -> None:
    with TtsWorker(server, pool, queue="cold") as worker:
        lock.begin("cold")
        worker.signal(signal.SIGQUIT)
        outcome, _ = lock.end()
        assert outcome in ("released", "withdrawn")  # the latter before the task has heard of its grant
        worker.wait()


@pools
def test_a_warm_shutdown_lets_the_task_end_and_leaves_nothing(server: RealServer, lock: Lock, pool: str) -> None:
    inboxes = set(lock.client.pubsub_channels("gpu_lock:inbox:*"))
    with TtsWorker(server, pool, queue="warm") as worker:
        with tts.foreign_holder(lock.client, VALUE):
            result = lock.send("hello", "warm")
            lock.wait_for_a_waiter()
            worker.signal(signal.SIGTERM)
            wait_until(lambda: "Warm shutdown" in worker.log, description="the shutdown to begin")
        assert result.get(timeout=30)["audio"] == "olleh"
        assert worker.wait() == 0
        assert lock.end() == ("released", "normal")
        assert "Traceback" not in worker.log
        assert set(lock.client.pubsub_channels("gpu_lock:inbox:*")) <= inboxes, "a connection stays"
