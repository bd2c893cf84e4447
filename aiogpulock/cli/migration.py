"""A config.yml of the original made ours, by small edits: comments, order and other sections stay as they are."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aiogpulock.config import load_settings
from aiogpulock.config.settings import SCHEMA, Settings
from aiogpulock.errors import ConfigError

# What the original had built in: who has such a value in a file did not choose it. The new ones are our defaults.
OLD_DEFAULTS = {
    "gpu_lock.max_wait_time": 1800,
    "gpu_lock.lock_timeout": 3600,
    "gpu_lock_monitor.timeout_levels.warning": 1800,
    "gpu_lock_monitor.timeout_levels.soft_timeout": 3600,
    "gpu_lock_monitor.timeout_levels.hard_timeout": 7200,
}
OURS = ("gpu_lock", "gpu_lock_monitor")


class Edit(NamedTuple):
    """A piece of the text to be replaced, and the words for it."""

    start: int
    end: int
    text: str
    words: str


def migrate_file(path: Path, *, dry_run: bool = False) -> list[str]:
    """Rewrite the file in one step; answers what was changed. The old one stays as ``FILE.backup``.

    Raises `ConfigError` where it cannot be done, and then changes nothing.
    """
    path = path.resolve()
    backup = path.with_name(f"{path.name}.backup")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            old = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    edits = list(_edits(old, path))
    if not edits:
        _check(old, path)
        return []
    new = _apply(old, edits)
    _check(new, path)
    if not dry_run:
        _replace(path, backup, new)
    return [edit.words for edit in edits]


def _edits(text: str, path: Path) -> Iterator[Edit]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: the top level must be a mapping of sections")
    sections = {key.value: (key, node) for key, node in root.value}
    if not any(name in sections for name in OURS):
        raise ConfigError(f"{path}: there is no section {' or '.join(OURS)} in it")
    for name in OURS:
        if name in sections and isinstance(sections[name][1], yaml.MappingNode):
            yield from _section(text, path, name, sections[name][1])
    yield from _server(text, path, sections)


def _section(text: str, path: Path, at: str, section: yaml.MappingNode) -> Iterator[Edit]:
    for key, node in section.value:
        name = f"{at}.{key.value}"
        if name in SCHEMA.records and isinstance(node, yaml.MappingNode):
            yield from _section(text, path, name, node)
        elif name not in SCHEMA.types and name not in SCHEMA.records:
            yield _comment_out(text, path, name, key, node, flow=bool(section.flow_style))
        elif name in OLD_DEFAULTS and _number(node) == OLD_DEFAULTS[name]:
            new = _default(name)
            words = f"{name}: {node.value} → {new} (the original's default, now ours)"
            yield Edit(node.start_mark.index, node.end_mark.index, new, words)


def _comment_out(text: str, path: Path, name: str, key: yaml.Node, node: yaml.Node, *, flow: bool) -> Edit:
    if flow:
        raise ConfigError(f"{path}:{key.start_mark.line + 1}: {name} is unknown: remove it, then migrate")
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    end = node.end_mark.index
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        end = len(text[:end].rstrip())  # a block ends where the next one begins
    lines = text[start:end].split("\n")
    return Edit(start, end, "\n".join(f"# {line}" for line in lines), f"{name}: unknown here, commented out")


def _server(text: str, path: Path, sections: dict[str, tuple[yaml.Node, yaml.Node]]) -> Iterator[Edit]:
    """The original took its Redis from the application's section; without a URL we would start a server of our own."""
    lock, redis = sections.get("gpu_lock"), sections.get("redis")
    if lock is None or redis is None or not isinstance(lock[1], yaml.MappingNode) or lock[1].flow_style:
        return
    named = {key.value for key, _ in lock[1].value}
    server = {key.value: node.value for key, node in redis[1].value} if isinstance(redis[1], yaml.MappingNode) else {}
    if "redis" in named or not isinstance(server.get("host"), str) or not lock[1].value:
        return
    url = f"redis://{server['host']}:{server.get('port', 6379)}/{server.get('lock_db', server.get('db', 0))}"
    first = lock[1].value[0][0].start_mark
    indent = " " * first.column
    start = text.rfind("\n", 0, first.index) + 1
    hint = "; its password belongs into REDIS_URL" if server.get("password") else ""
    words = f"gpu_lock.redis.url: {url} (from the section redis{hint})"
    yield Edit(start, start, f"{indent}redis:\n{indent}  url: {url}\n", words)


def _apply(text: str, edits: list[Edit]) -> str:
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _check(text: str, path: Path) -> None:
    """Raise `ConfigError` unless the text is a file that we read."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yml") as file:
        file.write(text)
        file.flush()
        try:
            load_settings(file.name, environ={})
        except ConfigError as error:
            raise ConfigError(str(error).replace(file.name, str(path))) from None


def _replace(path: Path, backup: Path, text: str) -> None:
    """The file is the old one or the new one at every moment; an older backup is never lost."""
    try:
        with backup.open("xb"):
            pass
        shutil.copy2(path, backup)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", dir=path.parent, delete=False) as file:
            file.write(text)
        shutil.copymode(path, file.name)
        os.replace(file.name, path)  # noqa: PTH105 - the name is a text
    except FileExistsError:
        raise ConfigError(f"{backup} is there already: move it away first") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be rewritten: {error.strerror}") from None


def _number(node: yaml.Node) -> float | None:
    try:
        return float(node.value) if isinstance(node, yaml.ScalarNode) else None
    except ValueError:
        return None


def _default(name: str) -> str:
    value: Any = Settings()
    for part in name.split("."):
        value = getattr(value, part)
    return f"{value:g}"
