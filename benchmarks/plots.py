"""The pictures, made from a report: SVG and PNG, for light and for dark pages."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import cycle
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple, TypeGuard

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import floors
from benchmarks.peers import OURS, floor
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
        ("#bc4c00", "#8433ce", "#0f6b14", "#c0348a", "#6d7b18", "#007a87", "#93062f", "#292f36", "#7a5c49"),
    ),
    Theme(
        "dark", "#0d1117", "#e6edf3", "#30363d", "#58a6ff", "#8b949e",
        ("#f0883e", "#9f5aec", "#21aa36", "#fe91e2", "#cedf4c", "#34d7d0", "#e64376", "#e2e9f0", "#92837d"),
    ),
)  # fmt: skip
MARKERS = "sD^v<>PXp"
"""Of the others' lines, for eyes that do not tell these colours apart."""
FLOORS = {floor(module.name).title for module in iter_modules(floors.__path__)}
CAST = (OURS.title, "other locks", "floor: less than a lock between processes")


def draw(report: Report, folder: Path) -> None:
    """Every chart of the report, in both themes."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in report.results:
        for chart in result.charts:
            for theme in THEMES:
                figure = _figure(result, chart, theme)
                for suffix in ("svg", "png"):
                    path = folder / f"{chart.name}-{theme.name}.{suffix}"
                    metadata = {"Date": None} if suffix == "svg" else None
                    figure.savefig(path, dpi=160, facecolor=theme.paper, metadata=metadata)


def _figure(result: Result, chart: Dots | Bars | Lines, theme: Theme) -> Figure:
    table = next(table for table in result.tables if table.title == chart.table)
    style: dict[Any, Any] = {
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
    figure = Figure(figsize=(8, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07))
    axes = figure.add_subplot()
    axes.set_facecolor(theme.paper)
    axes.set_axisbelow(True)  # else the grid crosses out the names and figures
    axes.set_title(chart.title, loc="left", fontsize=12, fontweight="bold", color=theme.ink, pad=10)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)
    axes.tick_params(which="both", length=0)
    return figure, axes


# one row each


class Entry(NamedTuple):
    """What one row shows."""

    who: str
    values: tuple[float, ...]
    label: str


def _rows(table: Table, columns: Sequence[str]) -> tuple[list[Entry], Unit]:
    """The rows that have all of these values."""
    places = [[column.name for column in table.columns].index(name) for name in columns]
    unit = table.columns[places[0]].unit
    found = []
    for row in table.rows:
        values = [row.values[place] for place in places]
        if all(_is_figure(value) for value in values):
            label = " · ".join(row.shown(place, unit) for place in places)
            found.append(Entry(row.who, tuple(values), label))  # type: ignore[arg-type]
    return found, unit


def _is_figure(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and not math.isnan(value)


def _dots(table: Table, chart: Dots, theme: Theme) -> Figure:
    columns = [chart.column, chart.further] if chart.further else [chart.column]
    rows, unit = _rows(table, columns)
    rows.sort(key=lambda row: row.values[0 if chart.sort == "column" else -1])
    figure, axes = _axes(chart, theme, 1.5 + 0.32 * len(rows))
    for at, row in enumerate(rows):
        colour = theme.ours if chart.mine else _colour(row.who, theme)
        axes.plot(row.values, [at] * len(row.values), color=colour, linewidth=2, zorder=2)
        axes.plot(row.values[0], at, "o", color=colour, markersize=7, zorder=4)
        if chart.further:  # larger, to be seen around the dot where the values are alike
            axes.plot(row.values[1], at, "o", color=colour, markersize=10, markerfacecolor=theme.paper, zorder=3)
        _label(axes, row, at, theme, beside=9)
    least, most = min(min(row.values) for row in rows), max(max(row.values) for row in rows)
    axes.set_xscale("log")
    axes.set_xlim(least / 1.6, most * 1.3 * (most / least) ** 0.3)
    axes.xaxis.set_major_locator(_ticks(axes.get_xlim()))
    if chart.further:
        marks = [_mark(theme.ink, theme.ink, chart.column), _mark(theme.ink, theme.paper, chart.further, size=9)]
    else:  # the picture's title says which column, the table's what the figures are
        marks = [_mark(theme.ink, theme.ink, table.title)]
    _finish_rows(axes, rows, unit, theme, marks + ([] if chart.mine else _legend(rows, theme)))
    _label_below(axes, table, [row.who for row in rows])
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
    _label_below(axes, table, [row.who for row in rows])
    return figure


def _label(axes: Axes, row: Entry, at: float, theme: Theme, beside: float) -> None:
    axes.annotate(
        row.label, (max(row.values), at), (beside, 0), textcoords="offset points", va="center", color=theme.ink,
        fontsize=9, zorder=1, bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0},
    )  # fmt: skip


def _finish_rows(axes: Axes, rows: Sequence[Entry], unit: Unit, theme: Theme, marks: list[Line2D]) -> None:
    axes.set_yticks(range(len(rows)), [row.who for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _figure_axis(axes.xaxis, unit)
    axes.grid(axis="x", color=theme.faint, linewidth=0.6)
    legend = axes.get_figure().legend(  # type: ignore[union-attr]
        handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9, handletextpad=0.1
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)


def _legend(rows: Sequence[Entry], theme: Theme) -> list[Line2D]:
    """What the colours mean, of those that are seen."""
    seen = {_colour(row.who, theme) for row in rows}
    colours = (theme.ours, theme.others[0], theme.floor)
    return [_mark(colour, colour, who, "s") for colour, who in zip(colours, CAST, strict=True) if colour in seen]


def _mark(colour: str, face: str, label: str, shape: str = "o", size: float = 7) -> Line2D:
    return Line2D([], [], linestyle="", marker=shape, markersize=size, color=colour, markerfacecolor=face, label=label)


def _colour(who: str, theme: Theme) -> str:
    if who == OURS.title:
        return theme.ours
    return theme.floor if who in FLOORS else theme.others[0]


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
    others = cycle(zip(theme.others, MARKERS, strict=True))
    for row in table.rows:
        mine = row.who == OURS.title
        colour, marker = (theme.ours, "o") if mine else next(others)
        points = [(size, row.values[at]) for size, (at, _) in zip(sizes, columns, strict=True)]
        known = [(size, value) for size, value in points if _is_figure(value)]
        if not known:
            continue
        xs, ys = zip(*known, strict=True)
        width, above = (2.6, 3) if mine else (1.4, 2)
        axes.plot(xs, ys, color=colour, marker=marker, markersize=5, linewidth=width, zorder=above)
        ends.append(End(xs[-1], ys[-1], row.who, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.dataLim.intervaly
    margin = max(1.4, math.sqrt(5 * low / high))  # so that a small difference does not fill the picture
    axes.set_ylim(low / margin, high * margin)
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.33)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _label_below(axes, table, [end.who for end in ends], chart.x)
    axes.yaxis.set_major_locator(_ticks(axes.get_ylim()))
    _figure_axis(axes.yaxis, unit)
    axes.grid(axis="y", color=theme.faint, linewidth=0.6)
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
                end.who, (x, end.y), (14, 10**height), textcoords=("offset points", "data"), va="center",
                color=end.colour, fontsize=9, annotation_clip=False, zorder=5,
                bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0},
                arrowprops={"arrowstyle": "-", "color": theme.faint, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3},
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


# axes


def _label_below(axes: Axes, table: Table, drawn: Collection[str], x: str = "") -> None:
    """What the axis is, and who is in the table but not in the picture."""
    absent = [row.who.replace(" ", "\xa0") for row in table.rows if row.who not in drawn]
    lines = [x] if x else []
    if absent:
        lines += textwrap.wrap("not shown: " + "\xa0· ".join(absent), 105, break_on_hyphens=False)
    axes.set_xlabel("\n".join(lines), fontsize=9)


def _ticks(limits: tuple[float, float]) -> LogLocator:
    """Decades, and what is between them where they are few."""
    least, most = limits
    return LogLocator(subs=(1.0,) if most > 3000 * least else (1.0, 2.0, 5.0))


def _figure_axis(axis: Any, unit: Unit) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(float(value), unit)))
    axis.set_minor_formatter(NullFormatter())
