"""The tasks of the text-to-speech service in this process: which GPU they lock, and what a failure leaves."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import redis
from celery.backends.base import Backend

import aiogpulock
from aiogpulock import ConfigError, InvalidGpuError, LeaseLostError, LockTimeoutError, RedisUnavailableError, sync
from aiogpulock.celery import GpuTask, current_lease, gpu_lock
from aiogpulock.celery import task as task_module
from tests.helpers import wait_until
from tests.tts.tasks import app, generate, impatient, preview, silence

VALUE = "gpu_lock:0"


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch, redis_url: str, redis_cleanup: redis.Redis) -> Iterator[redis.Redis]:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("AIOGPULOCK_RESTART_GRACE", "0")
    silence.clear()
    yield redis_cleanup
    sync.close()


def last_event(client: redis.Redis) -> tuple[str, str]:
    [(_, event)] = client.xrevrange("{gpu_lock:0}:events", count=1)
    return event["event"], event["reason"]


def test_indextts_on_failure_releases_lock(client: redis.Redis) -> None:
    """What a task still holds when Celery calls its `on_failure` is released there, as a task failure."""
    with ThreadPoolExecutor(1) as thread:
        task = thread.submit(generate.apply, ("an endless text",), {"gpu_id": 0}, task_id="job-1")
        wait_until(lambda: "job-1" in task_module._held, description="the task to hold its GPU")
        assert client.get(VALUE).startswith("locked_by_indextts.generate[job-1]:")
        generate.on_failure(RuntimeError("CUDA error"), "job-2", (), {}, None)
        assert client.exists(VALUE), "another task's failure takes nothing away"
        generate.on_failure(RuntimeError("CUDA error"), "job-1", (), {"gpu_id": 0}, None)
        assert not client.exists(VALUE)
        assert last_event(client) == ("released", "task_failure")
        silence.set()
        assert task.result().state == "SUCCESS"


def test_indextts_no_name_error(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """The original's `on_failure` called a function that did not exist. Here the task's own error comes out, alone."""
    failed = generate.apply(("CUDA out of memory",))
    assert isinstance(failed.result, RuntimeError)
    assert str(failed.result) == "CUDA out of memory"
    assert "NameError" not in f"{failed.traceback} {caplog.text}"
    assert last_event(client) == ("released", "task_failure")


@pytest.mark.parametrize(
    ("task", "args", "keywords", "lock"),
    [
        (generate, ("hello",), {}, "gpu_lock:0"),
        (generate, ("hello", 2), {}, "gpu_lock:2"),
        (generate, (), {"text": "hello", "gpu_id": 3}, "gpu_lock:3"),
        (generate, ("hello",), {"gpu_id": None}, "gpu_lock:0"),
        (generate, ("hello", "name"), {}, "gpu_lock:name"),
        (preview, ("hello",), {}, "gpu_lock:1"),
        (preview, ("hello",), {"gpu_id": 0, "speed": 2}, "gpu_lock:0"),
        (impatient, ("hello",), {}, "gpu_lock:0"),
    ],
)
def test_the_argument_gpu_id_names_the_gpu(
    task: Any, args: tuple[Any, ...], keywords: dict[str, Any], lock: str
) -> None:
    spoken = task.apply(args, keywords, task_id="job").get()
    assert spoken == {"audio": "olleh", "lock": lock, "task": f"{task.name}[job]"}
    assert task(*args, **keywords)["lock"] == lock, "called directly, the body runs under the lock as well"


def test_a_busy_gpu_and_a_bad_id_are_one_line_for_caller_and_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert isinstance(generate.apply(("hello", -1)).result, InvalidGpuError)
    with sync.gpu_lock(0), ThreadPoolExecutor(1) as other:
        assert str(other.submit(impatient.apply, ("hello",)).result().result).startswith(
            "GPU_LOCK_TIMEOUT: gpu_lock:0 "
        )
    ours = [record for record in caplog.records if record.name.startswith("aiogpulock")]
    assert [record.getMessage().partition("]: ")[2][:16] for record in ours] == ["gpu_id -1 is neg", "GPU_LOCK_TIMEOUT"]
    assert "Traceback" not in caplog.text


def test_a_redis_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("AIOGPULOCK_REDIS_CONNECT_TIMEOUT", "0.2")
    assert isinstance(generate.apply(("hello",), task_id="job").result, RedisUnavailableError)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("indextts.generate[job]: ")
    assert "127.0.0.1:1" in errors[0]
    assert "Traceback" not in caplog.text


def test_autoretry_covers_the_wait(client: redis.Redis) -> None:
    retries: list[BaseException] = []

    class Patient(GpuTask):
        gpu_lock: ClassVar = {"max_wait_time": 0}

        def on_retry(self, exc: BaseException, *details: Any) -> None:
            retries.append(exc)

    @app.task(base=Patient, name="patient", shared=False, autoretry_for=(LockTimeoutError,), max_retries=2)
    def patient() -> None: ...

    with sync.gpu_lock(0), ThreadPoolExecutor(1) as other:
        assert isinstance(other.submit(patient.apply).result().result, LockTimeoutError)
    assert [type(error) for error in retries] == [LockTimeoutError, LockTimeoutError]


def test_a_lost_lease_fails_the_task() -> None:
    @app.task(base=GpuTask, name="loser", shared=False)
    def loser() -> None:
        current_lease()._lease._hold.lose("forced")

    assert isinstance(loser.apply().result, LeaseLostError)


ERRORS = sorted({name for name in aiogpulock.__all__ if name.endswith("Error")} - {"NvmlError"})


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("name", ERRORS)
def test_every_error_arrives_at_the_caller_as_what_it_was(name: str, serializer: str) -> None:
    kind = getattr(aiogpulock, name)
    details = {"reason": "forced", "fencing_token": 3} if kind is LeaseLostError else {}
    backend = Backend(app, serializer=serializer)
    arrived = backend.exception_to_python(backend.prepare_exception(kind("what to do", **details), serializer))
    assert (type(arrived), str(arrived)) == (kind, "what to do")


def test_there_is_no_lease_outside_of_a_task() -> None:
    generate.apply(("hello",))
    with pytest.raises(LookupError, match="no task that holds a GPU"):
        current_lease()


@pytest.mark.parametrize(
    ("options", "error"),
    [({"max_wait": 1}, ConfigError), ({"gpu_id": -1}, InvalidGpuError), ({"task_name": "x"}, TypeError)],
)
def test_bad_options_are_refused_where_the_task_is_defined(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        gpu_lock(**options)
    with pytest.raises(error):
        type("Bad", (GpuTask,), {"gpu_lock": options, "run": lambda self: None})


def test_a_coroutine_function_is_no_task() -> None:
    with pytest.raises(TypeError, match="is async"):

        @gpu_lock()
        async def speak() -> None: ...


def test_without_celery_the_import_says_what_to_install() -> None:
    program = "import sys; sys.modules['celery'] = None; import aiogpulock.celery"
    failed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    line = failed.stderr.strip().splitlines()[-1]
    assert line == "ModuleNotFoundError: aiogpulock.celery needs Celery: pip install 'aiogpulock[celery]'"
