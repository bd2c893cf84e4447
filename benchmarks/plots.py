"""The pictures, made from a report: SVG and PNG, for light and for dark pages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.peers import OURS
from benchmarks.results import Bars, Lines, Report, Result, Table, Unit, shown

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
        "dark", "#0d1117", "#e6edf3", "#30363d", "#58a6ff", "#6e7681",
        ("#f0883e", "#bc8cff", "#3fb950", "#f778ba", "#d29922", "#39c5cf", "#ff7b72", "#8b949e", "#d2a8ff"),
    ),
)  # fmt: skip
FLOORS = ("asyncio.Lock", "two trivial", "the two shipped", "push and claim")


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


def _figure(result: Result, chart: Bars | Lines, theme: Theme) -> Figure:
    table = next(table for table in result.tables if table.title == chart.table)
    style = {
        "svg.hashsalt": chart.name, "svg.fonttype": "path", "font.size": 10, "text.color": theme.ink,
        "axes.labelcolor": theme.ink, "xtick.color": theme.ink, "ytick.color": theme.ink,
    }  # fmt: skip
    with mpl.rc_context(style):
        if isinstance(chart, Bars):
            return _bars(table, chart, theme)
        return _lines(table, chart, theme)


def _axes(chart: Bars | Lines, theme: Theme, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(theme.paper)
    axes.set_title(chart.title, loc="left", fontsize=12, fontweight="bold", color=theme.ink, pad=12)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)
    axes.tick_params(which="both", length=0)
    return figure, axes


# bars


class Bar(NamedTuple):
    who: str
    value: float
    whisker: float | None


def _bars(table: Table, chart: Bars, theme: Theme) -> Figure:
    bars, unit = _sorted_bars(table, chart)
    figure, axes = _axes(chart, theme, 1.0 + 0.34 * len(bars))
    for at, bar in enumerate(bars):
        axes.barh(at, bar.value, height=0.62, color=_colour(bar.who, theme), zorder=2)
        end, text = bar.value, shown(bar.value, unit)
        if bar.whisker is not None:
            axes.plot([bar.value, bar.whisker], [at, at], color=theme.ink, linewidth=1, zorder=3)
            axes.plot([bar.whisker] * 2, [at - 0.15, at + 0.15], color=theme.ink, linewidth=1, zorder=3)
            end, text = max(end, bar.whisker), f"{text} · {shown(bar.whisker, unit)}"
        axes.annotate(text, (end, at), (6, 0), textcoords="offset points", va="center", color=theme.ink, fontsize=9)
    axes.set_yticks(range(len(bars)), [bar.who for bar in bars])
    axes.invert_yaxis()
    _scale(axes, chart, bars, unit, theme)
    return figure


def _sorted_bars(table: Table, chart: Bars) -> tuple[list[Bar], Unit]:
    names = [column.name for column in table.columns]
    value, whisker = names.index(chart.column), names.index(chart.whisker) if chart.whisker else None
    bars = [
        Bar(row.who, figure, row.values[whisker] if whisker is not None else None)  # type: ignore[arg-type]
        for row in table.rows
        if isinstance(figure := row.values[value], float) and not math.isnan(figure)
    ]
    return sorted(bars, key=lambda bar: bar.value, reverse=not chart.log), table.columns[value].unit


def _scale(axes: Axes, chart: Bars, bars: list[Bar], unit: Unit, theme: Theme) -> None:
    least, most = min(bar.value for bar in bars), max(max(bar.value, bar.whisker or 0.0) for bar in bars)
    if chart.log:
        axes.set_xscale("log")
        axes.set_xlim(least / 2, most * (most / least) ** 0.28)
    else:
        axes.set_xlim(0, most * 1.15)
    _figure_axis(axes.xaxis, unit)
    axes.grid(axis="x", color=theme.faint, linewidth=0.6, zorder=0)
    if chart.whisker:
        axes.set_xlabel(f"bar: {chart.column}; line: {chart.whisker}", fontsize=9)


def _colour(who: str, theme: Theme) -> str:
    if who == OURS.title:
        return theme.ours
    return theme.floor if who.startswith(FLOORS) else theme.others[0]


# lines


def _lines(table: Table, chart: Lines, theme: Theme) -> Figure:
    figure, axes = _axes(chart, theme, 4.6)
    columns = [(at, column) for at, column in enumerate(table.columns) if column.name.endswith(chart.suffix)]
    sizes = [int(column.name.removesuffix(chart.suffix).replace(",", "")) for _, column in columns]
    unit = columns[0][1].unit
    ends: list[tuple[float, float, str, str]] = []
    for number, row in enumerate(table.rows):
        points = [(size, row.values[at]) for size, (at, _) in zip(sizes, columns, strict=True)]
        known = [(size, value) for size, value in points if isinstance(value, float)]
        if not known:
            continue
        mine = row.who == OURS.title
        colour = theme.ours if mine else theme.others[number % len(theme.others)]
        xs, ys = zip(*known, strict=True)
        axes.plot(
            xs, ys, color=colour, marker="o", markersize=4, linewidth=2.6 if mine else 1.4, zorder=3 if mine else 2
        )
        ends.append((xs[-1], ys[-1], row.who, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 12)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(chart.x, fontsize=9)
    _figure_axis(axes.yaxis, unit)
    axes.grid(axis="y", color=theme.faint, linewidth=0.6, zorder=0)
    _label_ends(axes, ends)
    return figure


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """A name at the end of each line, pushed up where two would lie upon each other."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    step = (high - low) / 20
    taken: list[tuple[float, float]] = []
    for x, y, who, colour in sorted(ends, key=lambda end: end[1]):
        at = math.log10(y)
        while any(other == x and abs(at - height) < step for other, height in taken):
            at += step / 4
        taken.append((x, at))
        axes.annotate(who, (x * 1.12, 10**at), va="center", color=colour, fontsize=9, annotation_clip=False)


def _figure_axis(axis: Any, unit: Unit) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(float(value), unit)))
    axis.set_minor_formatter(NullFormatter())
