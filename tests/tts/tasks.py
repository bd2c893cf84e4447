"""The tasks of a small text-to-speech service, as the IndexTTS service of the original has them.

``celery -A tests.tts.tasks worker``. REDIS_URL names the server of the locks, TTS_BROKER Celery's.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from celery import Celery
from celery.exceptions import Ignore

from aiogpulock.celery import GpuTask, current_lease, gpu_lock
from tests.register import RegisterClient

app = Celery("tts", broker=os.environ.get("TTS_BROKER"), backend=os.environ.get("TTS_BROKER"))
app.conf.update(worker_prefetch_multiplier=1, result_expires=60, broker_connection_retry_on_startup=False)

silence = threading.Event()
"""Ends an endless text, for tests in one process."""


def speak(text: str) -> dict[str, Any]:
    """What a text makes the model do: speak, fail, or not come to an end."""
    match text:
        case "CUDA out of memory":
            raise RuntimeError(text)
        case "an endless text":
            while not silence.wait(0.01):
                pass
        case "nothing to say":
            raise Ignore
    lease = current_lease()
    return {"audio": text[::-1], "lock": lease.key, "task": lease.task_name}


@app.task(bind=True, base=GpuTask, name="indextts.generate", gpu_lock={"max_wait_time": 30}, max_retries=1)
def generate(self: GpuTask, text: str, gpu_id: int | str | None = 0) -> dict[str, Any]:
    """The base class; bound, and it retries once."""
    if text == "not yet" and not self.request.retries:
        raise self.retry(countdown=0)
    return speak(text)


@app.task(name="indextts.preview")
@gpu_lock(1, max_wait_time=30)
def preview(text: str, **options: Any) -> dict[str, Any]:
    """The decorator; GPU 1 unless the call says otherwise."""
    return speak(text)


@app.task(name="indextts.impatient", base=GpuTask, gpu_lock={"max_wait_time": 0})
def impatient(text: str) -> dict[str, Any]:
    """Fails where the GPU is taken."""
    return speak(text)


@app.task(name="indextts.recorded", base=GpuTask)
def recorded(path: str) -> None:
    """Enters and exits a fencing register, which sees every overlap."""
    lease, client = current_lease(), RegisterClient(path)
    client.enter(lease.holder_id, lease.fencing_token)
    client.exit(lease.holder_id)
    client.close()
