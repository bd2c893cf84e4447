"""An inference server that shares a GPU with whatever else runs on this host.

    pip install 'aiogpulock[embedded,server]' fastapi httpx
    uvicorn inference_server:app --app-dir examples --timeout-graceful-shutdown 30

    curl --json '{"prompt": "hello"}' http://127.0.0.1:8000/generate
    curl -N --json '{"prompt": "hello"}' http://127.0.0.1:8000/stream

The live page is at http://127.0.0.1:8000/gpu/. `load.py` beside this file plays clients, many of whom give up.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from aiogpulock import Lease
from aiogpulock.web import GpuGate, create_app, gpu_lifespan

SECONDS_PER_TOKEN = float(os.environ.get("SECONDS_PER_TOKEN", "0.005"))
TOKENS = 8

gpu = GpuGate(
    0,
    max_wait_time=float(os.environ.get("MAX_WAIT_TIME", "20")),
    max_waiters=int(os.environ.get("MAX_WAITERS", "32")),
)
app = FastAPI(lifespan=gpu_lifespan())
app.mount("/gpu", create_app())


busy = False


class Job(BaseModel):
    prompt: str


async def model(prompt: str) -> AsyncIterator[str]:
    """Stands for a model on the GPU: nobody else may use it meanwhile, and that is checked."""
    global busy
    assert not busy, "two requests are on the GPU at once"
    busy = True
    try:
        for number in range(TOKENS):
            await asyncio.sleep(SECONDS_PER_TOKEN)
            yield f"{prompt}{number} "
    finally:
        busy = False


@app.post("/generate")
async def generate(job: Job, lease: Annotated[Lease, Depends(gpu)]) -> dict[str, str | int]:
    text = "".join([token async for token in model(job.prompt)])
    return {"text": text, "fencing_token": lease.fencing_token}


@app.post("/stream", dependencies=[Depends(gpu)])
async def stream(job: Job) -> StreamingResponse:
    """The lock is held until the last token is sent, or the client has gone."""
    return StreamingResponse(model(job.prompt), media_type="text/plain")
