"""Explores several configurations at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.model.configs import CONFIGS
from tests.model.explore import Explorer, Report


def explore(name: str, max_seconds: float | None = None) -> Report:
    return Explorer(CONFIGS[name]).run(max_seconds=max_seconds)


def explore_all(names: Iterable[str], jobs: int, max_seconds: float | None) -> Iterator[Report]:
    """Reports as they come. A process ends with its configuration: its memory goes back."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(explore, name, max_seconds) for name in names]):
            yield done.result()
