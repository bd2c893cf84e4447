"""The command line options and ini keys of the plugin. An option wins over the ini key of the same name."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, cast

import pytest

WITHOUT_GPU = ("skip", "fail", "run")
LEAKS = ("error", "warn", "ignore")


class Options(NamedTuple):
    """What was asked for, checked."""

    gpu: str
    """The GPU of a mark that names none."""
    without_gpu: Literal["skip", "fail", "run"]
    """What becomes of a marked test where its GPU is not."""
    leaks: Literal["error", "warn", "ignore"]
    """What becomes of a test that keeps GPU memory."""
    redis_url: str | None
    overrides: dict[str, object]
    """Keywords of `gpu_lock` for every test; the mark's own win."""


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu-lock", "GPU locks for tests (aiogpulock)")

    def add(name: str, metavar: str, help: str) -> None:
        text = f"{help} (ini: {_ini(name)})"
        group.addoption(name, metavar=metavar, default=None, help=text)
        parser.addini(_ini(name), help, default=None)

    try:
        add("--gpu-lock-gpu", "ID", "the GPU of a gpu_lock mark that names none; by default 0")
        add(
            "--gpu-lock-max-wait",
            "SECONDS",
            "how long a test may wait for its GPU; 0 tries once, 'none' waits for ever",
        )
        add("--gpu-lock-redis-url", "URL", "the Redis that holds the locks; by default as for gpu_lock()")
        add(
            "--gpu-lock-without-gpu",
            "|".join(WITHOUT_GPU),
            "what becomes of a marked test whose GPU is not here: by default skip; run locks the name",
        )
        add(
            "--gpu-lock-leaks",
            "|".join(LEAKS),
            "what becomes of a test that keeps GPU memory: by default an error at its teardown",
        )
        group.addoption(
            "--gpu-required",
            action="store_true",
            help="fail marked tests whose GPU is not here, as --gpu-lock-without-gpu=fail",
        )
    except ValueError as error:
        raise pytest.UsageError(f"aiogpulock and another plugin define the same option: {error}") from None


def _ini(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def read_options(config: pytest.Config) -> Options:
    """The options, or `pytest.UsageError`: one line that names the option or the ini key."""
    without_gpu = _choice(config, "--gpu-lock-without-gpu", WITHOUT_GPU)
    if config.getoption("--gpu-required"):
        chosen = config.getoption("--gpu-lock-without-gpu")
        if chosen not in (None, "fail"):
            raise pytest.UsageError(f"--gpu-required and --gpu-lock-without-gpu={chosen} are at odds: drop one of them")
        without_gpu = "fail"
    wait = _max_wait(config)
    _check_other_plugins(config, wait)
    return Options(
        gpu=_gpu(config),
        without_gpu=cast("Any", without_gpu),
        leaks=cast("Any", _choice(config, "--gpu-lock-leaks", LEAKS)),
        redis_url=_redis_url(config),
        overrides={} if wait is None else {"max_wait_time": None if wait == math.inf else wait},
    )


def _given(config: pytest.Config, name: str) -> tuple[str, str] | None:
    """The value, and where it was given, in words; None where it was not."""
    value = config.getoption(name)
    if value is not None:
        return value, name
    value = config.getini(_ini(name))
    return (str(value).strip(), f"ini key {_ini(name)}") if value else None


def _choice(config: pytest.Config, name: str, choices: tuple[str, ...]) -> str:
    value, where = _given(config, name) or (choices[0], "")
    if value not in choices:
        raise pytest.UsageError(f"{where}: got {value!r}, expected one of {', '.join(choices)}")
    return value


def _gpu(config: pytest.Config) -> str:
    given = _given(config, "--gpu-lock-gpu")
    if given is None:
        return "0"
    value, where = given
    from aiogpulock.keys import check_gpu_id

    try:
        return check_gpu_id(value)
    except ValueError as error:
        raise pytest.UsageError(f"{where}: {error}") from None


def _redis_url(config: pytest.Config) -> str | None:
    given = _given(config, "--gpu-lock-redis-url")
    if given is None:
        return None
    from aiogpulock.config.values import check_redis_url  # those who do not use the plugin never come here

    try:
        check_redis_url(*given)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    return given[0]


def _max_wait(config: pytest.Config) -> float | None:
    """Seconds, infinity for "none"; None: not given."""
    given = _given(config, "--gpu-lock-max-wait")
    if given is None:
        return None
    value, where = given
    if value.lower() == "none":
        return math.inf
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise pytest.UsageError(f"{where}: got {value!r}, expected seconds (a number from 0 to 1e9) or 'none'")
    return seconds


def _check_other_plugins(config: pytest.Config, wait: float | None) -> None:
    """Refuse what another plugin's options make impossible. pytest-timeout's clock stands still while a test waits."""
    if wait == 0 and config.getoption("dist", "no") != "no":
        raise pytest.UsageError(
            "--gpu-lock-max-wait=0 and the workers of pytest-xdist are at odds: a test that finds its GPU taken by "
            "another worker would fail. Give them a wait, or run without -n"
        )
    if wait and _faulthandler_ends_the_run(config):
        limit = float(config.getini("faulthandler_timeout") or 0)
        if 0 < limit <= wait:
            longest = "for ever" if wait == math.inf else f"for {wait:g} s"
            raise pytest.UsageError(
                f"faulthandler_exit_on_timeout ends the run after {limit:g} s, and --gpu-lock-max-wait lets a test "
                f"wait {longest}: raise faulthandler_timeout, or lower the wait"
            )


def _faulthandler_ends_the_run(config: pytest.Config) -> bool:
    try:
        return bool(config.getini("faulthandler_exit_on_timeout"))
    except ValueError:  # nobody knows the key: pytest 8, or without that plugin
        return False
