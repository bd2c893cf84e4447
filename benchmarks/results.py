"""What a scenario finds: tables, targets, charts. Kept as JSON, from which pictures and prose can be made again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

Unit = Literal["s", "x", "n", "%", "B", "text"]


class Column(msgspec.Struct, frozen=True):
    """A column of figures. `unit`: seconds, a ratio, a count, per cent, bytes, or text."""

    name: str
    unit: Unit = "text"


class Row(msgspec.Struct):
    """One line: who, and a value per column, in its order; None where there is none."""

    who: str
    values: list[float | str | None]
    at_least: list[int] = []
    """The places of values that are lower bounds: it lasted longer than the run."""

    @classmethod
    def absent(cls, who: str, why: str, columns: Sequence[Column]) -> Row:
        """Of one that has no figures: why, in the first of these columns."""
        return cls(who, [why, *[None] * (len(columns) - 1)])

    def shown(self, place: int, unit: Unit) -> str:
        return ("≥ " if place in self.at_least else "") + shown(self.values[place], unit)


class Table(msgspec.Struct):
    title: str
    columns: list[Column]
    rows: list[Row]
    note: str = ""


class Target(msgspec.Struct):
    """What was asked for. Why one is missed is for people to find out: README.md."""

    what: str
    limit: str
    measured: str
    met: bool


class Dots(msgspec.Struct, tag="dots"):
    """A dot per row with a value in `column` of the table with this title, and a ring for `further`, on a log scale.

    The smallest value of the column `sort` comes first. `mine`: all rows are this library's.
    """

    name: str
    title: str
    table: str
    column: str
    further: str = ""
    sort: Literal["column", "further"] = "column"
    mine: bool = False


class Bars(msgspec.Struct, tag="bars"):
    """A bar per row that has a value in `column` of the table with this title, from zero; the largest comes first."""

    name: str
    title: str
    table: str
    column: str


class Lines(msgspec.Struct, tag="lines"):
    """A line per row, over the numbers in the names of the columns that end with `suffix`, on log scales."""

    name: str
    title: str
    table: str
    x: str
    suffix: str


class Result(msgspec.Struct):
    """One scenario's findings."""

    scenario: str
    title: str
    what: str
    tables: list[Table]
    targets: list[Target]
    charts: list[Dots | Bars | Lines] = []
    seconds: float = 0.0
    failures: list[str] = []
    """What went wrong in the processes of the contestants."""
    error: str = ""
    """Why it failed, if it did."""


class Report(msgspec.Struct):
    """One run: where, and what was found."""

    environment: dict[str, str]
    results: list[Result]


def at_most(what: str, measured: float, limit: float, unit: Unit) -> Target:
    """A target that is met by a figure that is no larger."""
    return Target(what, f"≤ {shown(limit, unit)}", shown(measured, unit), measured <= limit)


NOT_MEASURABLE = "not measurable"


def shown(value: float | str | None, unit: Unit) -> str:
    """A value as a person reads it; - for none. A difference below zero is noise."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "-"
    if value < 0:
        return NOT_MEASURABLE
    match unit:
        case "s":
            return _scaled(value, ((1, "s"), (1e-3, "ms"), (1e-6, "µs")))
        case "B":
            return _scaled(value, ((2**20, "MiB"), (2**10, "KiB"), (1, "B")))
        case "x":
            return f"{value:.2f} ×"
        case "%":
            return f"{value:.3g} %" if value >= 1 else f"{value:.2g} %"
        case _:
            return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for size, name in units:
        if value >= size:
            return f"{_three_digits(value / size)} {name}"
    return f"{_three_digits(value / units[-1][0])} {units[-1][1]}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
