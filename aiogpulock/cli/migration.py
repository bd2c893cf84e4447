"""A config.yml of the original made ours, by small edits: comments, order and other sections stay as they are."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

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
Sections: TypeAlias = Mapping[str, tuple[yaml.Node, yaml.Node]]
"""Key and value of each section, by name."""

_PLAIN_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NO = ("", "0", "false", "no", "off", "null", "~")


class Migrated(NamedTuple):
    """What was changed, in words, and whether the file names a Redis now."""

    changes: list[str]
    names_redis: bool


class Edit(NamedTuple):
    """A piece of the text to be replaced, and the words for it."""

    start: int
    end: int
    text: str
    words: str


def migrate_file(path: Path, *, dry_run: bool = False) -> Migrated:
    """Rewrite the file in one step. The old one stays as ``FILE.backup``.

    Raises `ConfigError` where it cannot be done, and then changes nothing.
    """
    path = path.resolve()
    backup = path.with_name(f"{path.name}.backup")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            old = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    sections = _sections(old, path)
    edits = list(_edits(old, path, sections))
    new = _apply(old, edits)
    settings = _check(new, path)
    _check_others(sections, _sections(new, path), path)
    if edits and not dry_run:
        _replace(path, backup, new)
    return Migrated([edit.words for edit in edits], settings.gpu_lock.redis.url is not None)


def _sections(text: str, path: Path) -> Sections:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({type(error).__name__})") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: the top level must be a mapping of sections")
    sections = {str(key.value): (key, node) for key, node in root.value}
    if not any(name in sections for name in OURS):
        raise ConfigError(f"{path}: there is no section {' or '.join(OURS)} in it")
    return sections


def _edits(text: str, path: Path, sections: Sections) -> Iterator[Edit]:
    for name in OURS:
        head, section = sections.get(name, (None, None))
        if head is not None and isinstance(section, yaml.MappingNode):
            yield from _section(text, path, name, head, section)
    yield from _server(text, sections)


def _section(text: str, path: Path, at: str, head: yaml.Node, section: yaml.MappingNode) -> Iterator[Edit]:
    _refuse_alias(path, at, head, section)
    for key, node in section.value:
        name = f"{at}.{key.value}"
        if name in SCHEMA.records and isinstance(node, yaml.MappingNode):
            yield from _section(text, path, name, key, node)
        elif name not in SCHEMA.types and name not in SCHEMA.records:
            yield _comment_out(text, path, name, key, node, flow=bool(section.flow_style))
        elif name in OLD_DEFAULTS and _number(node) == OLD_DEFAULTS[name]:
            _refuse_alias(path, name, key, node)
            new = _default(name)
            words = f"{name}: {node.value} → {new} (the original's default, now ours)"
            yield Edit(node.start_mark.index, node.end_mark.index, new, words)


def _refuse_alias(path: Path, name: str, key: yaml.Node, node: yaml.Node) -> None:
    """The text of an alias stands elsewhere, where an edit would change what others have of it."""
    if node.start_mark.index < key.start_mark.index:
        raise ConfigError(f"{path}:{key.start_mark.line + 1}: {name} is an alias: write it out, then migrate")


def _comment_out(text: str, path: Path, name: str, key: yaml.Node, node: yaml.Node, *, flow: bool) -> Edit:
    _refuse_alias(path, name, key, node)
    if flow:
        raise ConfigError(f"{path}:{key.start_mark.line + 1}: {name} is unknown: remove it, then migrate")
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    end = node.end_mark.index
    if _is_block(node):
        end = len(text[:end].rstrip())  # it ends where the next one begins
    lines = text[start:end].split("\n")
    return Edit(start, end, "\n".join(f"# {line}" for line in lines), f"{name}: unknown here, commented out")


def _is_block(node: yaml.Node) -> bool:
    if isinstance(node, yaml.CollectionNode):
        return not node.flow_style
    return isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")


def _server(text: str, sections: Sections) -> Iterator[Edit]:
    """The original took its Redis from the application's section; without a URL we would start a server of our own."""
    server = _scalars(sections["redis"][1]) if "redis" in sections else {}
    url = _url(server)
    head, lock = sections.get("gpu_lock", (None, None))
    if url is None or (isinstance(lock, yaml.MappingNode) and any(key.value == "redis" for key, _ in lock.value)):
        return
    hint = "; its password belongs into REDIS_URL" if server.get("password") else ""
    words = f"gpu_lock.redis.url: {url} (from the section redis{hint})"
    if isinstance(lock, yaml.MappingNode) and lock.flow_style:
        start = text.index("{", lock.start_mark.index) + 1
        yield Edit(start, start, f'redis: {{url: "{url}"}}, ', words)
    elif isinstance(lock, yaml.MappingNode):
        first = lock.value[0][0].start_mark
        indent, start = " " * first.column, text.rfind("\n", 0, first.index) + 1
        yield Edit(start, start, f"{indent}redis:\n{indent}  url: {url}\n", words)
    elif head is not None and lock is not None:
        indent = " " * head.start_mark.column
        inside = f"\n{indent}  redis:\n{indent}    url: {url}"
        yield Edit(lock.start_mark.index, lock.end_mark.index, inside, words)
    else:
        first = sections["gpu_lock_monitor"][0].start_mark
        indent = " " * first.column
        inside = f"gpu_lock:\n{indent}  redis:\n{indent}    url: {url}\n{indent}"
        yield Edit(first.index, first.index, inside, words)


def _scalars(section: yaml.Node) -> dict[str, str]:
    if not isinstance(section, yaml.MappingNode):
        return {}
    return {key.value: node.value for key, node in section.value if isinstance(node, yaml.ScalarNode)}


def _url(server: Mapping[str, str]) -> str | None:
    """None where host, port or database are no plain words, such as ``${REDIS_HOST}``, which nobody here fills in."""
    host, port = server.get("host", ""), server.get("port", "6379")
    database = server.get("lock_db", server.get("db", "0"))
    if not (_PLAIN_HOST.fullmatch(host) and port.isdecimal() and database.isdecimal()):
        return None
    scheme = "redis" if server.get("ssl", "").lower() in _NO else "rediss"
    return f"{scheme}://{host}:{port}/{database}"


def _apply(text: str, edits: list[Edit]) -> str:
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _check(text: str, path: Path) -> Settings:
    """Raise `ConfigError` unless the text is a file that we read."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yml") as file:
        file.write(text)
        file.flush()
        try:
            return load_settings(file.name, environ={})
        except ConfigError as error:
            raise ConfigError(str(error).replace(file.name, str(path))) from None


def _check_others(old: Sections, new: Sections, path: Path) -> None:
    """Raise `ConfigError` unless the application's sections say what they said: anchors may join them with ours."""
    for name, (key, node) in old.items():
        if name not in OURS and (name not in new or _meaning(new[name][1]) != _meaning(node)):
            line = key.start_mark.line + 1
            raise ConfigError(f"{path}:{line}: {name} has an alias of what must change: write it out, then migrate")


def _meaning(node: yaml.Node) -> tuple[str, object]:
    """What a node says, however it is written."""
    match node:
        case yaml.MappingNode():
            return node.tag, [(_meaning(key), _meaning(value)) for key, value in node.value]
        case yaml.SequenceNode():
            return node.tag, [_meaning(item) for item in node.value]
    return node.tag, node.value


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
