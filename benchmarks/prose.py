"""What is written of a report: the tables of README.md here, and the summary in the project's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import OURS
from benchmarks.results import Report, Result, Table

START, END = "<!-- figures: written by python -m benchmarks -->", "<!-- end of figures -->"


def write(text: str, page: Path) -> None:
    """Put `text` between the two marks of `page`. Raises `ValueError` if it has none."""
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    if END not in rest:
        raise ValueError(f"{page} has no marks {START!r} and {END!r}")
    page.write_text(f"{before}{START}\n\n{text}\n{END}{after}")


SUMMARY = (
    ("hand-off to another process, median", "handoff", "p50"),
    ("hand-offs that reach the other process", "handoff", "cross over"),
    ("per hand-off, 1,000 waiters", "waiters", "1,000 waiters"),
    ("connections for 1,000 waiters", "waiters", "connections, 1,000"),
    ("next one in after `kill -9` of the holder on the same host (leases of 3 s)", "recovery", "holder killed here"),
    ("uncontended acquire and release, median", "uncontended", "p50"),
)
"""What a reader of the project's page wants to know: in words, scenario, column (of its first table that has it)."""
BESIDE = ("redis-fifo-lock", "python-redis-lock", "redis-py Lock")


def summary(report: Report) -> str:
    """A short table of this library beside three others."""
    cast = (OURS.title, *BESIDE)
    tables = {result.scenario: result.tables for result in report.results}
    lines = ["| | " + " | ".join(cast) + " |", "|---|" + "--:|" * len(cast)]
    for words, scenario, column in SUMMARY:
        cells = [_cell(tables[scenario], who, column) for who in cast]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    where = report.environment
    lines += ["", f"`{where['command']}`, {where['date'][:10]}, {where['processor']}: read the ratios."]
    return "\n".join(lines) + "\n"


def _cell(tables: Sequence[Table], who: str, name: str) -> str:
    table = next(table for table in tables if any(column.name == name for column in table.columns))
    place = [column.name for column in table.columns].index(name)
    row = next((row for row in table.rows if row.who == who), None)
    return row.shown(place, table.columns[place].unit) if row is not None else "-"


def figures(report: Report, pictures: Path) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in report.environment.items()]
    lines += ["", "### Targets", "", *targets(report)]
    for result in report.results:
        lines += ["", f"### {result.title}", "", *_scenario(result, pictures)]
    return "\n".join(lines) + "\n"


def targets(report: Report) -> list[str]:
    lines = ["| scenario | target | limit | measured | |", "|---|---|---|---|---|"]
    for result in report.results:
        for target in result.targets:
            verdict = "met" if target.met else "**missed**"
            lines.append(f"| {result.title} | {target.what} | {target.limit} | {target.measured} | {verdict} |")
    return lines


def _scenario(result: Result, pictures: Path) -> list[str]:
    lines = [f"**It failed**: {result.error}", ""] if result.error else []
    lines += [line for part in result.what.split("\n\n") for line in (" ".join(part.split()), "")]
    for chart in result.charts:
        dark, light = (pictures / f"{chart.name}-{theme}.svg" for theme in ("dark", "light"))
        lines += [
            "<picture>",
            f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">',
            f'  <img alt="{chart.title}" src="{light}">',
            "</picture>",
            "",
        ]
    for table in result.tables:
        lines += [*markdown(table), ""]
    if result.failures:
        lines += [f"Errors in the contestants' processes: {'; '.join(result.failures)}.", ""]
    return lines[:-1] if lines[-1] == "" else lines


def markdown(table: Table) -> list[str]:
    lines = [
        "| " + " | ".join([table.title, *(column.name for column in table.columns)]) + " |",
        "|---|" + "".join("---|" if column.unit == "text" else "--:|" for column in table.columns),
    ]
    for row in table.rows:
        cells = [row.shown(place, column.unit) for place, column in enumerate(table.columns)]
        lines.append("| " + " | ".join([row.who, *cells]) + " |")
    return [*lines, "", table.note] if table.note else lines
