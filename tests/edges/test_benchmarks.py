"""The benchmarks run, and say what they measured. What they measure is no test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.arena import Answer
from benchmarks.contender import Hold
from benchmarks.measure import hand_offs, overlaps, spread
from benchmarks.peers import OURS, peers
from benchmarks.prose import START, figures, write
from benchmarks.results import Column, Report, Result, Row, Table, at_most, shown
from benchmarks.scenarios import NAMES, load

ROOT = Path(__file__).parents[2]


def test_a_run_writes_results_pictures_and_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "uncontended", "--quick", "--peers", "none", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    report = msgspec.json.decode((tmp_path / "results.json").read_bytes(), type=Report)
    (table, profile, records) = report.results[0].tables
    p50 = {row.who: row.values[0] for row in table.rows}
    assert p50["two trivial EVALSHA"] < p50[OURS.title], "a lock costs more than its floor"
    assert len(records.rows) > 5
    assert len(profile.rows) > 5
    assert {path.suffix for path in (tmp_path / "pictures").iterdir()} == {".svg", ".png"}
    assert f"| {OURS.title} |" in (tmp_path / "figures.md").read_text()


def _answer(*holds: tuple[float, float]) -> Answer:
    return Answer([Hold(entered, entered, leaving, leaving) for entered, leaving in holds], 0.0, 0.0, 0, [])


def test_hand_offs_are_told_in_order_and_by_process() -> None:
    found = hand_offs([_answer((0.0, 1.0), (4.0, 5.0)), _answer((1.5, 2.0), (2.25, 3.0))])
    assert [(hand_off.seconds, hand_off.crossed) for hand_off in found] == [(0.5, True), (0.25, False), (1.0, True)]


def test_two_bodies_at_once_are_counted() -> None:
    assert overlaps([_answer((0.0, 2.0)), _answer((1.0, 3.0), (3.0, 4.0))]) == 1


def test_the_median_and_the_99th_percentile_are_samples() -> None:
    assert spread([float(n) for n in range(200)])[:3] == (200, 100.0, 198.0)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0000123, "s", "12.3 µs"), (0.25, "s", "250 ms"), (3.0, "s", "3 s"), (1.2, "x", "1.20 ×"),
     (2048.0, "B", "2 KiB"), (None, "s", "-"), ("did not finish", "s", "did not finish"), (12_345.0, "n", "12,345")],
)  # fmt: skip
def test_figures_are_shown_as_a_person_reads_them(value: float | str | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text  # type: ignore[arg-type]


def _report() -> Report:
    table = Table("a lock", [Column("p50", "s")], [Row("ours", [0.001])])
    targets = [at_most("one", 1.0, 1.2, "x"), at_most("other", 1.5, 1.2, "x")]
    return Report({"date": "today"}, [Result("x", "A scenario", "What is measured.", [table], targets)])


def test_a_target_is_said_to_be_met_or_missed() -> None:
    text = figures(_report(), Path("pictures"))
    assert "| A scenario | one | ≤ 1.20 × | 1.00 × | met |" in text
    assert "| A scenario | other | ≤ 1.20 × | 1.50 × | **missed** |" in text


def test_figures_are_replaced_where_they_stood(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "benchmarks" / "README.md").read_text())
    write(figures(_report(), Path("pictures")), readme)
    once = readme.read_text()
    write(figures(_report(), Path("pictures")), readme)
    assert readme.read_text() == once
    assert once.count(START) == 1
    assert "| ours | 1 ms |" in once


def test_each_peer_and_each_scenario_says_what_it_is() -> None:
    for peer in peers():
        assert all("==" in requirement for requirement in peer.requirements), "another version would be another peer"
    for name in NAMES:
        assert load(name).run.__doc__
