"""What a ``gpu_lock`` mark says, checked before anything is locked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

NAME = "gpu_lock"


class Wish(NamedTuple):
    """One GPU, and the keywords for its lock."""

    gpu_id: str
    keywords: dict[str, Any]


class MarkError(Exception):
    """The mark asks for what cannot be; the text quotes it."""


def wish_of(item: pytest.Item, default_gpu: str) -> Wish | None:
    """What the closest mark of a test asks for; None: nothing does. Raises `MarkError`."""
    marks = list(item.iter_markers_with_node(NAME))
    if not marks:
        return None
    closest, mark = marks[0]
    if sum(node is closest for node, _ in marks) > 1:
        raise MarkError(f"{closest.name} has several gpu_lock marks, and a test locks one GPU")
    return parse("@pytest.mark.gpu_lock", mark.args, mark.kwargs, default_gpu)


def parse(caller: str, args: tuple[Any, ...], keywords: Mapping[str, Any], default_gpu: str) -> Wish:
    """What the arguments ask for; the lock's own keywords are checked by the lock. Raises `MarkError`."""
    from aiogpulock.keys import check_gpu_id

    call = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in keywords.items())])
    ids = [*args, *(value for name, value in keywords.items() if name == "gpu_id")]
    if len(ids) > 1:
        raise MarkError(f"{caller}({call}): a test locks one GPU")
    if "manager" in keywords:
        raise MarkError(f"{caller}({call}): the plugin has its own manager; --gpu-lock-redis-url names its server")
    try:
        gpu_id = check_gpu_id(ids[0]) if ids else default_gpu
    except ValueError as error:
        raise MarkError(f"{caller}({call}): {error}") from None
    return Wish(gpu_id, {name: value for name, value in keywords.items() if name != "gpu_id"})
