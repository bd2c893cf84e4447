"""The demo: what comes before the scene and after it, and the exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Awaitable
from typing import TypeVar

import click

from aiogpulock.cli.demo_referee import exit_code, hand_offs, judge, percentile
from aiogpulock.cli.demo_scene import DemoError, Scene
from aiogpulock.cli.demo_view import Line, Tone, make_view
from aiogpulock.embedded import find_server_binary
from aiogpulock.errors import ConfigError, GpuLockError, RedisUnavailableError

T = TypeVar("T")

UNAVAILABLE, BAD_CONFIG = 69, 78
"""Exit statuses, as in sysexits.h."""
NO_SERVER = "no server to start: pip install 'aiogpulock[embedded,cli]', or name a Redis with --redis-url"
KEPT_VARIABLES = frozenset({"AIOGPULOCK_EMBEDDED_DIR"})


def run_demo(workers: int, seconds: float, redis_url: str | None) -> int:
    """Play the scene and answer the exit status."""
    _leave_settings_out()
    if redis_url is None:
        try:
            find_server_binary()
        except GpuLockError:
            click.echo(NO_SERVER, err=True)
            return UNAVAILABLE
    try:
        return asyncio.run(_play(workers, seconds, redis_url))
    except _StoppedError as stopped:
        click.echo("stopped", err=True)
        return 128 + stopped.signum
    except (DemoError, GpuLockError) as error:
        click.echo(f"the demo failed: {error}", err=True)
        return _status_of(error)


def _status_of(error: Exception) -> int:
    if isinstance(error, ConfigError):
        return BAD_CONFIG
    return UNAVAILABLE if isinstance(error, RedisUnavailableError) else 1


def _leave_settings_out() -> None:
    """The demo shows the library as it comes, on a server of its own choice, and warns of nothing that is not its own.

    The workers inherit this environment.
    """
    for name in list(os.environ):
        if (name.startswith("AIOGPULOCK_") and name not in KEPT_VARIABLES) or name == "REDIS_URL":
            del os.environ[name]
    logging.getLogger("aiogpulock").setLevel(logging.ERROR)


# Ctrl-C and its like


class _StoppedError(Exception):
    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


async def _unless_stopped(scene: Awaitable[T]) -> T:
    """The first signal ends the scene in order; further ones change nothing, since its end is bounded."""
    loop, task, received = asyncio.get_running_loop(), asyncio.ensure_future(scene), list[int]()

    def stop(signum: int) -> None:
        received.append(signum)
        if len(received) == 1:
            task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop, signum)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise _StoppedError(received[0]) from None
        raise


# the whole


async def _play(workers: int, seconds: float, redis_url: str | None) -> int:
    namespace = f"demo-{secrets.token_hex(6)}"
    with make_view() as view:
        scene = await _unless_stopped(Scene(view, workers, seconds, redis_url, namespace).play())
    verdict = judge(scene.referee.stays)
    view.sum_up(_summary(scene))
    return exit_code(verdict)


def _bad_if(wrong: tuple[str, ...]) -> Tone:
    return "bad" if wrong else "plain"


def _summary(scene: Scene) -> list[Line]:
    stays = scene.referee.stays
    verdict, gaps, recovery = judge(stays), hand_offs(stays), scene.recovery
    lines = [
        Line("acquisitions", f"{len(stays)} by {len(scene.workers)} processes in {scene.took:.1f} s"),
        Line("overlaps", str(len(verdict.overlaps)), _bad_if(verdict.overlaps)),
        Line("fencing tokens", "not rising" if verdict.regressions else "rising", _bad_if(verdict.regressions)),
        Line("hand-off", f"p50 {percentile(gaps, 50) * 1000:.1f} ms, p99 {percentile(gaps, 99) * 1000:.1f} ms"),
    ]
    if recovery is not None:
        after = f"{recovery.successor.worker} entered {recovery.seconds * 1000:.1f} ms later"
        lines.append(Line("after kill -9", after))
    lines += [Line("broken", wrong, "bad") for wrong in (*verdict.overlaps, *verdict.regressions)]
    if verdict.held:
        return [*lines, Line("verdict", "exclusion held", "good")]
    return [*lines, Line("verdict", "EXCLUSION WAS BROKEN", "bad")]
