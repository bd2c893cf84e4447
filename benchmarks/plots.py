"""The pictures, made from a report: SVG and PNG, for light and for dark pages."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.peers import OURS
from benchmarks.results import Bars, Dots, Lines, Report, Result, Table, Unit, shown

mpl.use("agg")


class Theme(NamedTuple):
    name: str
    paper: str
    ink: str
    faint: str
    ours: str
    floor: str
    others: tuple[str, ...]


THEMES = (
    Theme(
        "light", "#ffffff", "#1f2328", "#d1d9e0", "#0969da", "#8c959f",
        ("#bc4c00", "#8250df", "#1a7f37", "#bf3989", "#9a6700", "#0a7b83", "#cf222e", "#57606a", "#6639ba"),
    ),
    Theme(
        "dark", "#0d1117", "#e6edf3", "#30363d", "#58a6ff", "#8b949e",
        ("#f0883e", "#bc8cff", "#3fb950", "#f778ba", "#d29922", "#39c5cf", "#ff7b72", "#a5b1bd", "#d2a8ff"),
    ),
)  # fmt: skip
FLOORS = ("asyncio.Lock", "two trivial", "the two shipped", "push and claim")
CAST = (OURS.title, "other locks", "floor: no lock between processes")


def draw(report: Report, folder: Path) -> list[Path]:
    """Every chart of the report, in both themes; answers the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for result in report.results:
        for chart in result.charts:
            for theme in THEMES:
                figure = _figure(result, chart, theme)
                for suffix in ("svg", "png"):
                    path = folder / f"{chart.name}-{theme.name}.{suffix}"
                    metadata = {"Date": None} if suffix == "svg" else None
                    figure.savefig(path, dpi=160, facecolor=theme.paper, metadata=metadata)
                    written.append(path)
    return written


def _figure(result: Result, chart: Dots | Bars | Lines, theme: Theme) -> Figure:
    table = next(table for table in result.tables if table.title == chart.table)
    style = {
        "svg.hashsalt": chart.name, "svg.fonttype": "path", "font.size": 10, "text.color": theme.ink,
        "axes.labelcolor": theme.ink, "xtick.color": theme.ink, "ytick.color": theme.ink,
    }  # fmt: skip
    with mpl.rc_context(style):
        match chart:
            case Dots():
                return _dots(table, chart, theme)
            case Bars():
                return _bars(table, chart, theme)
            case Lines():
                return _lines(table, chart, theme)


def _axes(chart: Dots | Bars | Lines, theme: Theme, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(theme.paper)
    axes.set_title(chart.title, loc="left", fontsize=12, fontweight="bold", color=theme.ink, pad=10)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)
    axes.tick_params(which="both", length=0)
    return figure, axes


# one row each


class Figures(NamedTuple):
    """What one row shows."""

    who: str
    values: tuple[float, ...]
    label: str


def _rows(table: Table, columns: Sequence[str]) -> tuple[list[Figures], Unit]:
    """The rows that have all of these values."""
    places = [[column.name for column in table.columns].index(name) for name in columns]
    unit = table.columns[places[0]].unit
    found = []
    for row in table.rows:
        values = [row.values[place] for place in places]
        if all(isinstance(value, float) and not math.isnan(value) for value in values):
            label = " · ".join(row.shown(place, unit) for place in places)
            found.append(Figures(row.who, tuple(values), label))  # type: ignore[arg-type]
    return found, unit


def _dots(table: Table, chart: Dots, theme: Theme) -> Figure:
    columns = [chart.column, chart.further] if chart.further else [chart.column]
    rows, unit = _rows(table, columns)
    rows.sort(key=lambda row: row.values[0 if chart.sort == "column" else -1])
    figure, axes = _axes(chart, theme, 1.5 + 0.32 * len(rows))
    for at, row in enumerate(rows):
        colour = theme.ours if chart.mine else _colour(row.who, theme)
        axes.plot(row.values, [at] * len(row.values), color=colour, linewidth=2, zorder=2)
        axes.plot(row.values[0], at, "o", color=colour, markersize=9, zorder=4)
        axes.plot(row.values[-1], at, "o", color=colour, markersize=8, markerfacecolor=theme.paper, zorder=3)
        _label(axes, row, at, theme, beside=9)
    least, most = min(min(row.values) for row in rows), max(max(row.values) for row in rows)
    axes.set_xscale("log")
    axes.set_xlim(least / 1.6, most * 1.3 * (most / least) ** 0.3)
    axes.xaxis.set_major_locator(_ticks(least, most))
    marks = [_mark(theme.ink, theme.ink, chart.column)]
    if chart.further:
        marks.append(_mark(theme.ink, theme.paper, chart.further))
    _finish_rows(axes, rows, unit, theme, marks + ([] if chart.mine else _legend(rows, theme)))
    return figure


def _bars(table: Table, chart: Bars, theme: Theme) -> Figure:
    rows, unit = _rows(table, [chart.column])
    rows.sort(key=lambda row: -row.values[0])
    figure, axes = _axes(chart, theme, 1.5 + 0.32 * len(rows))
    for at, row in enumerate(rows):
        axes.barh(at, row.values[0], height=0.6, color=_colour(row.who, theme), zorder=2)
        _label(axes, row, at, theme, beside=6)
    axes.set_xlim(0, max(row.values[0] for row in rows) * 1.15)
    _finish_rows(axes, rows, unit, theme, _legend(rows, theme))
    return figure


def _label(axes: Axes, row: Figures, at: float, theme: Theme, beside: float) -> None:
    axes.annotate(
        row.label, (max(row.values), at), (beside, 0), textcoords="offset points", va="center", color=theme.ink,
        fontsize=9, zorder=1, bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0},
    )  # fmt: skip


def _finish_rows(axes: Axes, rows: Sequence[Figures], unit: Unit, theme: Theme, marks: list[Line2D]) -> None:
    axes.set_yticks(range(len(rows)), [row.who for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _figure_axis(axes.xaxis, unit)
    axes.grid(axis="x", color=theme.faint, linewidth=0.6, zorder=0)
    legend = axes.get_figure().legend(  # type: ignore[union-attr]
        handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9, handletextpad=0.1
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)


def _legend(rows: Sequence[Figures], theme: Theme) -> list[Line2D]:
    """What the colours mean, of those that are seen."""
    seen = {_colour(row.who, theme) for row in rows}
    colours = (theme.ours, theme.others[0], theme.floor)
    return [_mark(colour, colour, who, "s") for colour, who in zip(colours, CAST, strict=True) if colour in seen]


def _mark(colour: str, face: str, label: str, shape: str = "o") -> Line2D:
    return Line2D([], [], linestyle="", marker=shape, markersize=7, color=colour, markerfacecolor=face, label=label)


def _colour(who: str, theme: Theme) -> str:
    if who == OURS.title:
        return theme.ours
    return theme.floor if who.startswith(FLOORS) else theme.others[0]


# lines


class End(NamedTuple):
    """Where a line ends, and whose it is."""

    x: float
    y: float
    who: str
    colour: str


def _lines(table: Table, chart: Lines, theme: Theme) -> Figure:
    figure, axes = _axes(chart, theme, 4.8)
    columns = [(at, column) for at, column in enumerate(table.columns) if column.name.endswith(chart.suffix)]
    sizes = [int(column.name.removesuffix(chart.suffix).replace(",", "")) for _, column in columns]
    unit = columns[0][1].unit
    ends: list[End] = []
    for number, row in enumerate(table.rows):
        points = [(size, row.values[at]) for size, (at, _) in zip(sizes, columns, strict=True)]
        known = [(size, value) for size, value in points if isinstance(value, float)]
        if not known:
            continue
        mine = row.who == OURS.title
        colour = theme.ours if mine else theme.others[(number - 1) % len(theme.others)]
        xs, ys = zip(*known, strict=True)
        axes.plot(
            xs, ys, color=colour, marker="o", markersize=4, linewidth=2.6 if mine else 1.4, zorder=3 if mine else 2
        )
        ends.append(End(xs[-1], ys[-1], row.who, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.33)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(chart.x, fontsize=9)
    axes.yaxis.set_major_locator(_ticks(*axes.get_ylim()))
    _figure_axis(axes.yaxis, unit)
    axes.grid(axis="y", color=theme.faint, linewidth=0.6, zorder=0)
    _label_ends(axes, ends, theme)
    return figure


def _label_ends(axes: Axes, ends: Sequence[End], theme: Theme) -> None:
    """A name at the end of each line; where names would lie upon each other they are spread around their place."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    columns: defaultdict[float, list[End]] = defaultdict(list)
    for end in ends:
        columns[end.x].append(end)
    for x, column in columns.items():
        column.sort(key=lambda end: end.y)
        heights = _apart([math.log10(end.y) for end in column], (high - low) / 19)
        for end, height in zip(column, heights, strict=True):
            axes.annotate(
                end.who, (x, end.y), (x * 1.22, 10**height), textcoords="data", va="center", color=end.colour,
                fontsize=9, annotation_clip=False, zorder=5,
                bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0},
                arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3},
            )  # fmt: skip


def _apart(wanted: Sequence[float], least: float) -> list[float]:
    """Sorted places at least so far apart, each as near to the wanted one as its neighbours let it be."""
    groups: list[list[float]] = []  # those that touch stand around their common middle
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _stand(groups[-1], least)[0] - _stand(groups[-2], least)[-1] < least:
            last = groups.pop()
            groups[-1] += last
    return [place for group in groups for place in _stand(group, least)]


def _stand(group: Sequence[float], least: float) -> list[float]:
    middle, size = sum(group) / len(group), len(group)
    return [middle + (number - (size - 1) / 2) * least for number in range(size)]


def _ticks(least: float, most: float) -> LogLocator:
    """Decades, and what is between them where they are few."""
    return LogLocator(subs=(1.0,) if most > 20 * least else (1.0, 2.0, 5.0))


def _figure_axis(axis: Any, unit: Unit) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(float(value), unit)))
    axis.set_minor_formatter(NullFormatter())
