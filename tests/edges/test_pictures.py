"""The benchmarks' pictures show what their tables say, on light and on dark pages."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imread
from matplotlib.text import Annotation

from benchmarks import plots
from benchmarks.peers import OURS, floor, peers
from benchmarks.results import Bars, Column, Dots, Lines, Report, Result, Row, Table

Chart = Dots | Bars | Lines
FLOOR = floor("two_evalsha").title
TABLE = Table(
    "a lock",
    [
        Column("p50", "s"), Column("p99", "s"), Column("share", "%"),
        Column("10 waiters", "s"), Column("1,000 waiters", "s"),
    ],
    [
        Row(OURS.title, [0.002, 0.003, 40.0, 0.002, 0.004]),
        Row("slow lock", [0.4, 0.5, 10.0, 0.1, "did not finish"]),
        Row(FLOOR, [0.001, 0.002, 100.0, None, None]),
        Row("no lock", ["does not run", None, None, "not begun", math.nan]),
    ],
)  # fmt: skip
DOTS = Dots("dots", "Some dots", TABLE.title, "p50", "p99")
BARS = Bars("bars", "Some bars", TABLE.title, "share")
LINES = Lines("lines", "Some lines", TABLE.title, "waiters", " waiters")
themes = pytest.mark.parametrize("theme", plots.THEMES, ids=lambda theme: theme.name)


def _result(table: Table, chart: Chart) -> Result:
    return Result("x", "A scenario", "", [table], [], [chart])


def _drawn(chart: Chart, theme: plots.Theme, table: Table = TABLE) -> Axes:
    figure = plots._figure(_result(table, chart), chart, theme)
    figure.canvas.draw()
    return figure.axes[0]


def test_each_kind_of_picture_is_drawn_for_light_and_for_dark_pages(tmp_path: Path) -> None:
    charts: list[Chart] = [DOTS, BARS, LINES]
    plots.draw(Report({}, [_result(TABLE, chart) for chart in charts]), tmp_path)
    for chart in charts:
        for theme in plots.THEMES:
            assert (tmp_path / f"{chart.name}-{theme.name}.svg").stat().st_size > 5000
            pixels = imread(tmp_path / f"{chart.name}-{theme.name}.png")[:, :, :3].reshape(-1, 3)
            assert to_hex(pixels[0]) == theme.paper
            for colour in (theme.ink, theme.ours, theme.others[0]):
                assert (abs(pixels - to_rgb(colour)).max(axis=1) < 0.01).sum() > 50, (
                    f"{chart.name}: nothing in {colour}"
                )


@themes
def test_dots_and_rings_are_the_figures_of_a_row_the_smallest_first(theme: plots.Theme) -> None:
    axes = _drawn(DOTS, theme)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [FLOOR, OURS.title, "slow lock"]
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks] == [  # type: ignore[index]
        (0.001, 0), (0.002, 0), (0.002, 1), (0.003, 1), (0.4, 2), (0.5, 2),
    ]  # fmt: skip
    assert [line.get_color() for line in marks[::2]] == [theme.floor, theme.ours, theme.others[0]]
    assert _names(axes) == ["1 ms · 2 ms", "2 ms · 3 ms", "400 ms · 500 ms"]
    assert _legend(axes) == ["p50", "p99", *plots.CAST]


@themes
def test_bars_are_the_figures_of_a_column_the_largest_first(theme: plots.Theme) -> None:
    axes = _drawn(BARS, theme)
    assert [label.get_text() for label in axes.get_yticklabels()] == [FLOOR, OURS.title, "slow lock"]
    bars: list[Any] = list(axes.patches)
    assert [bar.get_width() for bar in bars] == [100.0, 40.0, 10.0]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [theme.floor, theme.ours, theme.others[0]]
    assert _names(axes) == ["100 %", "40 %", "10 %"]
    assert _legend(axes) == list(plots.CAST)


@themes
def test_a_line_goes_as_far_as_there_are_figures_and_is_named_at_its_end(theme: plots.Theme) -> None:
    axes = _drawn(LINES, theme)
    points = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines]  # type: ignore[arg-type]
    assert points == [[(10, 0.002), (1000, 0.004)], [(10, 0.1)]]
    assert [line.get_color() for line in axes.lines] == [theme.ours, theme.others[0]]
    leaders = [name.arrow_patch for name in _annotations(axes)]
    assert {to_hex(leader.get_edgecolor()) for leader in leaders if leader} == {theme.faint}, "they are no data"
    assert {(name.get_text(), name.xy, name.get_color()) for name in _annotations(axes)} == {
        (OURS.title, (1000, 0.004), theme.ours),
        ("slow lock", (10, 0.1), theme.others[0]),
    }


def test_names_in_a_picture_do_not_lie_upon_each_other() -> None:
    places = plots._apart([0.0, 0.1, 0.15, 5.0], 1.0)
    assert all(later - earlier > 0.999 for earlier, later in pairwise(places))
    assert places[3] == 5.0
    assert places[0] < 0.0, "they are spread to both sides"


@pytest.mark.parametrize(
    ("chart", "below"),
    [(DOTS, "not shown: no lock"), (BARS, "not shown: no lock"), (LINES, f"waiters\nnot shown: {FLOOR} · no lock")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_who_has_no_figures_is_named_below(chart: Chart, below: str) -> None:
    assert _drawn(chart, plots.THEMES[0]).get_xlabel().replace("\xa0", " ") == below


@pytest.mark.parametrize("chart", [DOTS, BARS, LINES], ids=lambda chart: chart.name)
def test_the_grid_lies_below_the_names_and_figures(chart: Chart) -> None:
    axes = _drawn(chart, plots.THEMES[0])
    grid = max(axes.xaxis.get_zorder(), axes.yaxis.get_zorder())
    assert all(name.get_zorder() > grid for name in _annotations(axes))


@pytest.mark.parametrize("most", [1.0, 1.02, 2.0, 5.0, 12.0, 20.0, 90.0, 300.0, 1e4, 1e6])
@pytest.mark.parametrize("least", [0.00021, 0.00032, 0.0013])
def test_a_log_axis_has_ticks_to_read_values_by(least: float, most: float) -> None:
    axes = _line(least, least * most)
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    labels = [label.get_text() for at, label in ticks if low <= at <= high]
    assert 2 <= len(set(labels)) == len(labels) <= 10, labels


def test_a_small_difference_does_not_fill_a_picture() -> None:
    low, high = _line(0.0013, 0.0014).get_ylim()
    assert high > 4.9 * low


def _line(*seconds: float) -> Axes:
    table = Table("t", [Column("10 waiters", "s"), Column("100 waiters", "s")], [Row(OURS.title, list(seconds))])
    return _drawn(Lines("lines", "", "t", "waiters", " waiters"), plots.THEMES[0], table)


def test_a_picture_of_one_column_says_what_its_figures_are() -> None:
    table = Table("p50 of 3", [Column("holder killed", "s")], [Row(OURS.title, [0.01])])
    axes = _drawn(Dots("one", "A holder is killed", "p50 of 3", "holder killed"), plots.THEMES[0], table)
    assert _legend(axes) == ["p50 of 3", OURS.title]


def test_floors_are_told_from_other_locks_by_their_colour() -> None:
    theme = plots.THEMES[0]
    for name in ("asyncio_lock", "push_and_claim", "shipped_scripts", "two_evalsha"):
        assert plots._colour(floor(name).title, theme) == theme.floor, name
    assert {plots._colour(peer.title, theme) for peer in peers()} == {theme.others[0]}


@themes
def test_each_peer_has_a_line_that_looks_like_no_other(theme: plots.Theme) -> None:
    assert len(theme.others) == len(set(plots.MARKERS)) == len(peers())
    for one, other in combinations((theme.ours, *theme.others), 2):
        assert math.dist(_oklab(one), _oklab(other)) > 0.1, f"{one} and {other} look alike"


def _oklab(colour: str) -> Any:
    """Coordinates in which equal distances look alike: https://bottosson.github.io/posts/oklab/"""
    light = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    opponents = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return opponents @ np.cbrt(np.array(cones) @ light)


def _annotations(axes: Axes) -> list[Annotation]:
    return [text for text in axes.texts if isinstance(text, Annotation)]


def _names(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def _legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.figure.legends[0].get_texts()]
