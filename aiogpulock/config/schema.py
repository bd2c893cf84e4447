"""How nested values become frozen records: strictly, and with errors that say which key, which value and whose.

The one idea: values are flattened to full paths first, each with its source. So every later check can name both.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec.structs import asdict, fields, replace

from aiogpulock.config.values import redact_url, show
from aiogpulock.errors import ConfigError

PER_LOCK = "keyword of gpu_lock()"
"""The source whose keys are shown as ``gpu_lock(key=…)``."""

_WORDS: dict[object, str] = {bool: "true or false", str: "text", type(None): "null", tuple[str, ...]: "a list of texts"}
_Record = TypeVar("_Record", bound=msgspec.Struct)


class Given(NamedTuple):
    """A value from outside, and where it came from, in words."""

    value: object
    source: str


class Order(NamedTuple):
    """`low` must be less than `high`, or equal where `may_equal`; both are full paths."""

    low: str
    high: str
    may_equal: bool = False


@dataclass(frozen=True)
class Schema:
    """The keys below `root`, and what their types cannot say.

    `checks` take the converted value and the key as the user knows it, and raise `ConfigError`.
    """

    root: type[msgspec.Struct]
    sections: tuple[str, ...]
    checks: Mapping[str, Callable[[Any, str], object]]
    orders: tuple[Order, ...]
    types: dict[str, Any] = field(init=False)
    """The type of each single setting, by full path such as ``gpu_lock.heartbeat.interval``."""
    records: dict[str, type[msgspec.Struct]] = field(init=False)
    """The record type of each mapping of settings, by full path; the root is ``""``."""

    def __post_init__(self) -> None:
        found = dict(self._walk(self.root, self.sections, ""))
        object.__setattr__(self, "types", {path: kind for path, kind in found.items() if not _is_record(kind)})
        records = {path: kind for path, kind in found.items() if _is_record(kind)}
        object.__setattr__(self, "records", {"": self.root, **records})

    def _walk(self, record: type[msgspec.Struct], names: tuple[str, ...], at: str) -> Iterator[tuple[str, Any]]:
        for info in fields(record):
            if info.name in names:
                path = _join(at, info.name)
                yield path, info.type
                if _is_record(info.type):
                    yield from self._walk(info.type, info.type.__struct_fields__, path)

    def flatten(self, values: Mapping[Any, object], source: str, at: str = "") -> dict[str, Given]:
        """Return the leaves of nested mappings (or records) by full path; an unknown key is a `ConfigError`."""
        known = self.records[at].__struct_fields__ if at else self.sections
        flat: dict[str, Given] = {}
        for key, value in values.items():
            if key not in known:
                path = shown(_join(at, redact_url(str(key))), source)
                raise ConfigError(f"{path}: unknown key{_hint(str(key), known)} ({source})")
            path = _join(at, key)
            if path in self.types:
                flat[path] = Given(value, source)
            else:
                flat |= self.flatten(self._mapping(path, value, source), source, path)
        return flat

    def _mapping(self, path: str, value: object, source: str) -> Mapping[Any, object]:
        if isinstance(value, self.records[path]):
            return asdict(value)
        if isinstance(value, Mapping):
            return value
        raise refusal(path, Given(value, source), "a mapping of keys to values")

    def apply(self, given: Mapping[str, Given], base: _Record) -> _Record:
        """Return `base` with the given leaves in it, each checked by itself; orders are checked by `check_orders`."""
        return _replaced(base, "", {path: self._checked(path, item) for path, item in given.items()})

    def _checked(self, path: str, item: Given) -> object:
        try:
            value = msgspec.convert(item.value, self.types[path])
        except msgspec.ValidationError:
            raise refusal(path, item, _expected(self.types[path])) from None
        key = shown(path, item.source)
        if path in self.checks:
            try:
                self.checks[path](value, key)
            except ConfigError as error:
                raise ConfigError(f"{error} ({item.source})") from None
        return value

    def check_orders(self, settings: msgspec.Struct, source: Callable[[str], str]) -> None:
        """Raise `ConfigError` for the first pair in the wrong order; `source` gives the source of a path."""
        for order in self.orders:
            low, high = attrgetter(order.low)(settings), attrgetter(order.high)(settings)
            if low > high or (low == high and not order.may_equal):
                relation = "at most" if order.may_equal else "less than"
                limit = f"{shown(order.high, source(order.high))}, which is {high!r}"
                if source(order.high) != source(order.low):  # which the refusal names
                    limit = f"{limit} ({source(order.high)})"
                raise refusal(order.low, Given(low, source(order.low)), f"{relation} {limit}")


def refusal(path: str, given: Given, expected: str) -> ConfigError:
    """Return the error that every refused value gets."""
    return ConfigError(f"{shown(path, given.source)}: got {show(given.value)}, expected {expected} ({given.source})")


def shown(path: str, source: str) -> str:
    """Return the path as the one who wrote the value knows it."""
    return f"gpu_lock({path.removeprefix('gpu_lock.')}=…)" if source == PER_LOCK else path


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _is_record(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _replaced(record: _Record, at: str, values: Mapping[str, object]) -> _Record:
    changes: dict[str, Any] = {}
    for name in record.__struct_fields__:
        path = _join(at, name)
        if path in values:
            changes[name] = values[path]
        elif any(given.startswith(f"{path}.") for given in values):
            changes[name] = _replaced(getattr(record, name), path, values)
    return replace(record, **changes)


def _expected(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is Annotated:
        return str(kind.__metadata__[0].description)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return " or ".join(_expected(part) for part in get_args(kind))


def _hint(key: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
