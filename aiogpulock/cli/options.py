"""What several verbs share: the options that name server and settings, and the manager that these make."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from aiogpulock.config import SettingsSource
    from aiogpulock.manager import GpuLockManager

F = TypeVar("F", bound=Callable[..., Any])

_TARGET_OPTIONS = (
    ("--redis-url", "URL", "Server of the locks; else REDIS_URL, config.yml, the embedded one."),
    ("--config", "FILE", "Settings; else AIOGPULOCK_CONFIG, ./config.yml, defaults."),
    ("--namespace", "NAME", "First part of every key; else as the settings have it."),
)


class GpuId(click.ParamType):  # type: ignore[type-arg] # generic in new versions of click only
    """The id of a GPU, refused before any server is asked."""

    name = "id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raises `InvalidGpuError`."""
        from aiogpulock.keys import check_gpu_id

        return check_gpu_id(value)


class Seconds(click.FloatRange):
    """A time. nan passes every comparison of a range; inf says for ever where that is allowed."""

    def __init__(self, least: float, most: float, *, or_for_ever: bool = False) -> None:
        super().__init__(least, most)
        self._or_for_ever = or_for_ever

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = click.FLOAT.convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no time: give seconds.", param, ctx)
        if self._or_for_ever and seconds == math.inf:
            return seconds
        within: float = super().convert(seconds, param, ctx)
        return within

    def _describe_range(self) -> str:
        return f"{super()._describe_range()}, or inf" if self._or_for_ever else super()._describe_range()


WAIT = Seconds(0, 10**9, or_for_ever=True)
"""How long to wait for a GPU: what `max_wait_time` takes."""


class Target(NamedTuple):
    """Which server and which settings; None: found as the library finds them."""

    redis_url: str | None
    config: str | None
    namespace: str | None

    def manager(self, companions: Iterable[int] = ()) -> GpuLockManager:
        """Raises `ConfigError`."""
        from aiogpulock.manager import GpuLockManager

        return GpuLockManager(self.redis_url, self.config, companions=companions, **self._overrides())

    def source(self) -> SettingsSource:
        """The settings and where they come from. Raises `ConfigError`."""
        from aiogpulock.config import SettingsSource

        overrides = self._overrides()
        return SettingsSource(
            self.config, redis_url=self.redis_url, overrides={"gpu_lock": overrides} if overrides else {}
        )

    def _overrides(self) -> dict[str, Any]:
        return {"redis": {"namespace": self.namespace}} if self.namespace is not None else {}


def target_options(command: F) -> F:
    """--redis-url, --config and --namespace, given to the command as one `target`."""

    @functools.wraps(command)
    def with_target(*args: Any, redis_url: str | None, config: str | None, namespace: str | None, **rest: Any) -> Any:
        return command(*args, target=Target(redis_url, config, namespace), **rest)

    decorated: Any = with_target
    for name, metavar, text in reversed(_TARGET_OPTIONS):
        kind = click.Path() if metavar == "FILE" else None  # for the shell's completion
        decorated = click.option(name, metavar=metavar, type=kind, help=text)(decorated)
    return decorated  # type: ignore[no-any-return]


def json_option(command: F) -> F:
    """--json, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(command)
