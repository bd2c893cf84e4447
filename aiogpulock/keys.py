"""The names in Redis: keys and channels of one lock, and of one namespace."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from aiogpulock.errors import ConfigError, InvalidGpuError

_GPU_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NEGATIVE = re.compile(r"-\d+")
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

TASK_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class LockKeys:
    """All keys of one GPU. They share a cluster slot: ``gpu_lock:0`` and ``{gpu_lock:0}:queue`` hash alike."""

    gpu_id: str
    lock: str
    release_channel: str
    index: str
    events: str
    fence: str
    script_keys: tuple[bytes, ...]
    """KEYS of every script, in the order of ``lua/parts/state.lua``."""


@lru_cache(maxsize=4096)
def lock_keys(gpu_id: str, namespace: str) -> LockKeys:
    lock = f"{namespace}:{gpu_id}"
    parts = ("holder", "heartbeat", "queue", "waiters", "done", "fence", "events", "stats")
    return LockKeys(
        gpu_id=gpu_id,
        lock=lock,
        release_channel=f"{namespace}:{lock}",
        index=index_key(namespace),
        events=f"{{{lock}}}:events",
        fence=f"{{{lock}}}:fence",
        script_keys=(lock.encode(), *(f"{{{lock}}}:{part}".encode() for part in parts)),
    )


def index_key(namespace: str) -> str:
    """The known ids of a namespace; written by clients, outside the scripts."""
    return f"{{{namespace}}}:index"


def speaker_key(namespace: str, audience: str) -> str:
    """Which of several monitors tells an audience."""
    return f"{{{namespace}}}:{audience}:monitor"


def told_key(namespace: str, audience: str = "") -> str:
    """Until when an audience has been told everything, or the one that knows most; epoch seconds of the server."""
    return f"{{{namespace}}}:{audience}{audience and ':'}told"


def inbox_channel(namespace: str, database: int, name: str) -> str:
    """Pub/sub ignores the database number, so the channel carries it."""
    return f"{namespace}:inbox:{database}:{name}"


def check_namespace(namespace: str) -> str:
    """Return `namespace`, or raise `ConfigError`: the scripts cut the namespace off a key at its first colon."""
    if not _NAMESPACE.fullmatch(namespace):
        raise ConfigError(f"gpu_lock.redis.namespace: {namespace!r} must match {_NAMESPACE.pattern}")
    return namespace


def check_gpu_id(gpu_id: int | str) -> str:
    """Return the id as text, or raise `InvalidGpuError`."""
    if isinstance(gpu_id, bool) or not isinstance(gpu_id, int | str):
        raise InvalidGpuError(
            f"gpu_id {gpu_id!r} is a {type(gpu_id).__name__}: pass an index or a name: gpu_lock(0), @gpu_lock('cuda:0')"
        )
    text = str(gpu_id)
    if _NEGATIVE.fullmatch(text):
        raise InvalidGpuError(f"gpu_id {text} is negative: GPU indices start at 0")
    if not _GPU_ID.fullmatch(text):
        raise InvalidGpuError(f"gpu_id {text!r} must match {_GPU_ID.pattern} (letters, digits and . _ : -)")
    refuse_key(text, "gpu_lock")
    return text


def refuse_key(gpu_id: str, namespace: str) -> None:
    """Raise `InvalidGpuError` for a key of Redis: as a free name it would exclude nobody who locks the GPU itself."""
    gpu = gpu_id.removeprefix(f"{namespace}:")
    if gpu != gpu_id:
        raise InvalidGpuError(
            f"gpu_id {gpu_id!r} is a lock's key in Redis: name the GPU alone, as in gpu_lock({gpu!r})"
        )


def printable(text: str) -> str:
    """Replace control characters: whoever may write to Redis could otherwise write to a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_task_name(name: str) -> str:
    """Replace control characters and cut to 256 bytes: names reach terminals, logs and pages."""
    if name.isascii() and name.isprintable() and len(name) <= TASK_NAME_BYTES:
        return name
    return printable(name).encode("utf-8", "replace")[:TASK_NAME_BYTES].decode("utf-8", "ignore")
