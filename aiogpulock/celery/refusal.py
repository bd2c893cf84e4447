"""How a task that cannot work as it is written is refused: where Celery's command reads it, by one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aiogpulock.errors import GpuLockError


@contextmanager
def refused_in_one_line(task: str) -> Iterator[None]:
    """Where ``celery worker`` loads the tasks, an error of the body ends it with one line that names the task.

    Celery would print its own traceback around it, and whoever reads that is no programmer. Everywhere else the error
    comes out as it is.
    """
    try:
        yield
    except (GpuLockError, TypeError) as error:
        if not _within_celerys_command():
            raise
        raise SystemExit(f"Error: {task}: {error}") from None


def _within_celerys_command() -> bool:
    celery = sys.modules.get("celery.bin.celery")
    if celery is None:
        return False
    import click  # Celery's command is made of it

    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().command is celery.celery
