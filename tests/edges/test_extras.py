"""What a user sees who has not installed an extra: one line that names it, and no traceback of ours."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tests

ALERTS = """
from aiogpulock import ConfigError
from aiogpulock.alerts.channel import Channel
try:
    Channel("slack://a/b/c")
except ConfigError as error:
    raise SystemExit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(
    ("program", "missing", "extra", "beginning"),
    [
        ("import aiogpulock.web", "starlette", "server", "ModuleNotFoundError: aiogpulock.web needs "),
        ("import aiogpulock.celery", "celery", "celery", "ModuleNotFoundError: aiogpulock.celery needs "),
        (ALERTS, "apprise", "alerts", "ConfigError: gpu_lock_alerts.urls: slack://"),
        ("from aiogpulock.cli import main; main()", "click", "cli", "the aiogpulock command needs click: "),
        ("from aiogpulock.cli import main; main()", "rich", "cli", "the aiogpulock command needs rich: "),
    ],
)
def test_an_extra_that_is_missing_is_named_in_the_last_line(
    program: str, missing: str, extra: str, beginning: str
) -> None:
    hide = f"import sys; sys.modules[{missing!r}] = None\n"
    done = subprocess.run([sys.executable, "-c", hide + program], capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert done.returncode != 0
    assert last.startswith(beginning)
    assert last.endswith(f"pip install 'aiogpulock[{extra}]'")
    assert done.stderr.count("Traceback") <= 1, "no error behind the error"


def test_the_extra_of_celery_brings_what_a_redis_broker_needs() -> None:
    """Every test environment has it for other reasons; a user's has not, and the worker would not start."""
    extras = tomllib.loads((Path(tests.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    todo = list(extras["optional-dependencies"]["celery"])
    brought: set[str] = set()
    while todo:
        requirement = Requirement(todo.pop())
        if requirement.name not in brought and (
            requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ):
            brought.add(requirement.name)
            todo += requires(requirement.name) or []
    assert {"celery", "kombu", "packaging"} <= brought
