"""Where settings come from: keywords before environment before file before defaults; and how a file is watched."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import msgspec
import yaml

from aiogpulock.config.schema import Given
from aiogpulock.config.settings import SCHEMA, Settings, build
from aiogpulock.config.values import redact_url
from aiogpulock.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks at the file of a `SettingsSource`."""

_PREFIX = "AIOGPULOCK_"
_URL = "gpu_lock.redis.url"
# CONFIG and REDIS_URL have rules of their own; GPU, TOKEN and WITHIN are what a holder tells its child process;
# BOOT_ID, NVML_PIDS, EMBEDDED_DIR and SERVER_TOKEN are read where they matter.
_RESERVED = frozenset(
    f"{_PREFIX}{name}"
    for name in (
        "CONFIG",
        "REDIS_URL",
        "GPU",
        "TOKEN",
        "WITHIN",
        "BOOT_ID",
        "NVML_PIDS",
        "EMBEDDED_DIR",
        "SERVER_TOKEN",
    )
)
_KNOWN = SCHEMA.types.keys() | SCHEMA.records.keys()
_NOTHING: Mapping[str, object] = MappingProxyType({})


def _variable(path: str) -> str:
    section, _, key = path.partition(".")
    return f"{_PREFIX}{section.removeprefix('gpu_lock').lstrip('_')}_{key}".replace("__", "_").replace(".", "_").upper()


VARIABLES: Mapping[str, str] = MappingProxyType({_variable(path): path for path in SCHEMA.types if path != _URL})
"""The environment variable of each setting, and the setting's full path."""


def load_settings(
    path: str | os.PathLike[str] | None = None,
    *,
    redis_url: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] = _NOTHING,
) -> Settings:
    """Return the settings from all sources, or raise `ConfigError`.

    `path` names the file; else ``AIOGPULOCK_CONFIG`` does; else ``./config.yml`` is read if it is there. `overrides`
    has the shape of the file (``{"gpu_lock": {"poll_interval": 1}}``) and wins over everything. `environ` defaults to
    the environment of the process.
    """
    return SettingsSource(path, redis_url, environ, overrides).current()


class SettingsSource:
    """The settings as the file has them now. Errors are raised at construction; later the last good settings stay.

    The environment is read once, at construction. `look_every` is seconds on `clock`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        redis_url: str | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] = _NOTHING,
        *,
        look_every: float = LOOK_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._file = _locate(path, environ)
        self._fixed = _Fixed(
            argument=redis_url,
            keywords=SCHEMA.flatten(overrides, "keyword"),
            environment=dict(_from_environment(environ)),
            urls={
                name: environ[name] for name in ("AIOGPULOCK_REDIS_URL", "REDIS_URL") if environ.get(name, "").strip()
            },
        )
        _warn_of_unknown(environ)
        self._look_every = look_every
        self._clock = clock
        self._complaint = ""
        self._signature = self._file.signature()
        self._settings, self._origins = _combine(self._file.read(), self._fixed)
        self._next_look = clock() + look_every

    @property
    def origins(self) -> Mapping[str, str]:
        """Where each setting that is not a default comes from, in words, by full path."""
        return self._origins

    @property
    def file(self) -> Path | None:
        """The file that is read; None: there is none."""
        return self._file.path if self._signature is not None else None

    def current(self) -> Settings:
        """Return the settings, after a look at the file when the last one is long enough ago. Never raises."""
        now = self._clock()
        if now < self._next_look:
            return self._settings
        self._next_look = now + self._look_every
        signature = self._file.signature()
        if signature != self._signature:
            self._signature = signature
            self._reload(gone=signature is None)
        return self._settings

    def _reload(self, *, gone: bool) -> None:
        try:
            if gone:
                raise ConfigError(f"{self._file.path}: the file is gone")
            self._settings, self._origins = _combine(self._file.read(), self._fixed)
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("settings stay as they were: %s", error)
        else:
            self._complaint = ""
            log.info("settings read again from %s", self._file.path)


class _Fixed(NamedTuple):
    """What no change of a file changes."""

    argument: str | None
    keywords: dict[str, Given]
    environment: dict[str, Given]
    urls: dict[str, str]


def _combine(file: dict[str, Given], fixed: _Fixed) -> tuple[Settings, dict[str, str]]:
    given = {**file, **fixed.environment, **fixed.keywords}
    named = (
        Given(fixed.argument, "argument redis_url"),
        fixed.keywords.get(_URL),
        *(Given(url, f"environment variable {name}") for name, url in fixed.urls.items()),
        file.get(_URL),
    )
    url = next((item for item in named if item is not None and item.value is not None), None)
    if url is not None:
        given[_URL] = url
    settings = build(given, Settings(), "default")
    settings = msgspec.structs.replace(settings, redis_url_source=None if url is None else url.source)
    return settings, {path: item.source for path, item in given.items()}


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Given]]:
    """An empty variable counts as unset: that is what compose files and CI make of a missing one."""
    for name, path in VARIABLES.items():
        text = environ.get(name, "")
        if not text.strip():
            continue
        source = f"environment variable {name}"
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"{path}: the value cannot be read as YAML ({source})") from None
        yield path, Given(_meant(path, value), source)


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    unknown = sorted(name for name in environ if name.startswith(_PREFIX) and name not in {*VARIABLES, *_RESERVED})
    if unknown:
        log.warning("ignored, not settings of aiogpulock: %s", ", ".join(map(_with_hint, unknown)))


def _with_hint(name: str) -> str:
    known = [known.removeprefix(_PREFIX) for known in (*VARIABLES, *_RESERVED)]
    close = get_close_matches(name.removeprefix(_PREFIX), known, n=1)
    return f"{name} (did you mean {_PREFIX}{close[0]}?)" if close else name


class _File(NamedTuple):
    """A file that someone named (`found` is False), or ``./config.yml``, which may be another program's."""

    path: Path
    found: bool

    def signature(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def read(self) -> dict[str, Given]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as error:
            if self.found:
                return {}
            raise ConfigError(f"{self.path}: {error.strerror}") from None
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from None
        if self.found and b"gpu_lock" not in data:
            return {}
        sections = _meant("", _parse(data, self.path))
        return SCHEMA.flatten(sections, f"file {self.path}")


def _locate(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> _File:
    """The path is made absolute at once, so that a later change of directory means no other file."""
    named = path if path is not None else environ.get("AIOGPULOCK_CONFIG", "").strip() or None
    return _File(Path("config.yml" if named is None else named).absolute(), found=named is None)


def _parse(data: bytes, path: Path) -> dict[str, object]:
    """Return our sections. The others are not even constructed: their tags and duplicates are the application's."""
    try:
        loader = yaml.SafeLoader(data)
        try:
            return {name: loader.construct_document(node) for name, node in _sections(loader.get_single_node(), path)}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except ConfigError:  # which is a ValueError
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML ({type(error).__name__})") from None


def _sections(root: yaml.Node | None, path: Path) -> Iterator[tuple[str, yaml.Node]]:
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:{root.start_mark.line + 1}: the top level must be a mapping of sections")
    ours = [(key, node) for key, node in root.value if key.value in SCHEMA.sections]
    _refuse_duplicates(ours, path, set())
    yield from ((key.value, node) for key, node in ours)


def _refuse_duplicates(pairs: list[tuple[yaml.Node, yaml.Node]], path: Path, visited: set[int]) -> None:
    """YAML lets the last of two equal keys win; here one of them is a mistake. Anchors may make cycles."""
    keys = set()
    for key, node in pairs:
        name = str(key.value)
        if name in keys:
            raise ConfigError(f"{path}:{key.start_mark.line + 1}: duplicate key {redact_url(name)!r}")
        keys.add(name)
        if isinstance(node, yaml.MappingNode) and id(node) not in visited:
            visited.add(id(node))
            _refuse_duplicates(node.value, path, visited)


def _meant(path: str, value: Any) -> Any:
    """Undo two traps of YAML: a bare ``off`` is false, and a section whose keys are all commented out is null."""
    if path in SCHEMA.types:
        return "off" if value is False and "off" in get_args(SCHEMA.types[path]) else value
    if value is None:
        return {}
    if not isinstance(value, dict):
        return value
    inner = {key: f"{path}.{key}" if path else str(key) for key in value}
    return {key: _meant(inner[key], value[key]) if inner[key] in _KNOWN else value[key] for key in value}
