"""What is written of a report: the tables of README.md here, and the summary in the project's own."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers import OURS
from benchmarks.results import Report, Result, Table

START, END = "<!-- figures: written by python -m benchmarks -->", "<!-- end of figures -->"


def filled(page: Path, text: str) -> str:
    """What `page` says with `text` between its two marks. Raises `ValueError` if it has none."""
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    if END not in rest:
        raise ValueError(f"{page} has no marks {START!r} and {END!r}")
    return f"{before}{START}\n\n{text}\n{END}{after}"


SUMMARY = (
    ("hand-off to another process after 3 ms, median", "handoff", "from one body to the next", "p50"),
    ("after 50 ms", "handoff", "from one body to the next", "p50, held 50 ms"),
    ("hand-offs that reach the other process", "handoff", "from one body to the next", "cross over"),
    ("per hand-off, 1,000 waiters", "waiters", "time per hand-off, 2 processes", "1,000 waiters"),
    (
        "connections for 1,000 waiters",
        "waiters", "what a hand-off takes, 1,000 waiters in 2 processes", "connections",
    ),
    (
        "next one in after `kill -9` of the holder on the same host (leases of 3 s, partly elapsed)",
        "recovery", "a process dies, p50 of 3", "holder killed here",
    ),
    ("uncontended acquire and release, median", "uncontended", "one acquire and release", "p50"),
)  # fmt: skip
"""What a reader of the project's page wants to know: in words, scenario, table, column."""
BESIDE = ("redis-fifo-lock", "python-redis-lock", "redis-py Lock")


def summary(report: Report) -> str:
    """A short table of this library beside three others."""
    cast = (OURS.title, *BESIDE)
    tables = {(result.scenario, table.title): table for result in report.results for table in result.tables}
    lines = ["| | " + " | ".join(cast) + " |", "|---|" + "--:|" * len(cast)]
    for words, scenario, title, column in SUMMARY:
        cells = [_cell(tables[scenario, title], who, column) for who in cast]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    where = report.environment
    lines += ["", f"`{where['command']}`, {where['date'][:10]}, {where['processor']}: read the ratios."]
    return "\n".join(lines) + "\n"


def _cell(table: Table, who: str, name: str) -> str:
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


def findings(report: Report) -> list[str]:
    """The targets, or the tables if there are none."""
    if any(result.targets for result in report.results):
        return targets(report)
    return [line for result in report.results for table in result.tables for line in (*markdown(table), "")]


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
