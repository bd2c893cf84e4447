"""The tables of README.md, made from a report."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Report, Result, Table, shown

START, END = "<!-- figures: written by python -m benchmarks -->", "<!-- end of figures -->"


def write(report: Report, readme: Path, pictures: Path) -> None:
    """Put the figures between the two marks of `readme`."""
    before, _, rest = readme.read_text().partition(START)
    _, _, after = rest.partition(END)
    if END not in rest:
        raise ValueError(f"{readme} has no marks {START!r} and {END!r}")
    readme.write_text(f"{before}{START}\n\n{figures(report, pictures.relative_to(readme.parent))}\n{END}{after}")


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
    lines = [line for part in result.what.split("\n\n") for line in (" ".join(part.split()), "")]
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
    missed = [target for target in result.targets if not target.met and target.why]
    lines += [f"Missed: {target.what}. {target.why}.\n" for target in missed]
    return lines[:-1] if lines[-1] == "" else lines


def markdown(table: Table) -> list[str]:
    lines = [
        "| " + " | ".join([table.title, *(column.name for column in table.columns)]) + " |",
        "|---|" + "".join("---|" if column.unit == "text" else "--:|" for column in table.columns),
    ]
    for row in table.rows:
        cells = [shown(value, column.unit) for value, column in zip(row.values, table.columns, strict=True)]
        lines.append("| " + " | ".join([row.who, *cells]) + " |")
    return [*lines, "", table.note] if table.note else lines
