"""The benchmarks run, and say what they measured. What they measure is no test."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.progress import Progress

import benchmarks.__main__ as benchmarks_main
from benchmarks import plots
from benchmarks.arena import Answer, Arena, contest
from benchmarks.contender import Hold, Order, Setup
from benchmarks.measure import hand_offs, highest_median, overlaps, spread
from benchmarks.peers import OURS, peers
from benchmarks.prose import START, SUMMARY, figures, summary, write
from benchmarks.results import Column, Report, Result, Row, Table, at_most, shown
from benchmarks.scenarios import NAMES, Scenario, handoff, inference, load, recovery, waiters
from benchmarks.steps import end_steps, handoff_steps

ROOT = Path(__file__).parents[2]


def test_a_run_writes_results_pictures_and_figures(tmp_path: Path) -> None:
    ended = _benchmarks("uncontended", "--quick", "--peers", "none", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    report = msgspec.json.decode((tmp_path / "results.json").read_bytes(), type=Report)
    (table, profile, records) = report.results[0].tables
    p50 = {row.who: row.values[0] for row in table.rows}
    assert p50["two trivial EVALSHA"] < p50[OURS.title], "a lock costs more than its floor"
    assert {"holder", "event", "stats", "publish"} < {row.who for row in records.rows}
    assert len(profile.rows) > 5
    assert {path.suffix for path in (tmp_path / "pictures").iterdir()} == {".svg", ".png"}
    assert f"| {OURS.title} |" in (tmp_path / "figures.md").read_text()


def _benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


def test_a_peer_that_is_not_known_is_an_error() -> None:
    ended = _benchmarks("handoff", "--peers", "redis_py,redis-fifo-lock")
    assert ended.returncode == 2
    assert "no peer redis-fifo-lock: there are redis_fifo_lock" in " ".join(ended.stderr.split())


def test_what_a_run_needs_of_the_system_is_asked_first() -> None:
    command = ["bash", "-c", f"ulimit -n 500; exec {sys.executable} -m benchmarks waiters --quick --peers none"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "`ulimit -n` is 500" in ended.stderr


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


def _run_one(monkeypatch: pytest.MonkeyPatch, arena: Arena, run: Callable[[Any], Result]) -> Result:
    scenario = Scenario("x", "A scenario", run, lambda quick: 0)
    monkeypatch.setattr(benchmarks_main, "load", lambda name: scenario)
    with Progress(console=Console(file=io.StringIO())) as progress:
        return benchmarks_main._one("x", arena, (), quick=True, progress=progress, bar=progress.add_task(""))


def test_a_scenario_that_fails_is_told_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch, arena: Arena) -> None:
    def run(stage: Any) -> Result:
        raise RuntimeError("no wheel")

    assert _run_one(monkeypatch, arena, run).error == "RuntimeError: no wheel"


def test_an_error_in_a_process_of_this_library_fails_the_scenario(
    monkeypatch: pytest.MonkeyPatch, arena: Arena
) -> None:
    def run(stage: Any) -> Result:
        """Nothing."""
        setup = Setup(stage.arena.server.url, "broken", options={"max_waiters": 0})
        crew = [stage.arena.start(OURS, setup) for _ in range(2)]
        contest(crew, Order(hold=0.2))
        return Result("x", "A scenario", "", [], [])

    result = _run_one(monkeypatch, arena, run)
    assert result.error == "aiogpulock failed: QueueFullError"
    assert result.failures == ["aiogpulock: QueueFullError (1)"]


def test_the_steps_of_a_hand_off_add_up_to_it(arena: Arena) -> None:
    table = handoff_steps(arena, turns=9, pause=0.03)
    *steps, whole = (row.values for row in table.rows)
    assert len(steps) == 5
    assert whole[1] > 5, "hand-offs by message are traced"  # type: ignore[operator]
    assert all(isinstance(p50, float) and 0 < p50 < whole[0] for p50, _ in steps)  # type: ignore[operator]


def test_each_end_of_a_body_is_traced(arena: Arena) -> None:
    table = end_steps(arena, ("normal", "abandoned"), times=3)
    assert [row.who for row in table.rows] == ["body ends: normal", "body ends: abandoned"]
    assert all(isinstance(value, float) and value > 0 for row in table.rows for value in row.values)


def _answer(*holds: tuple[float, float], waiting: Sequence[float] = ()) -> Answer:
    turns = [Hold(entered, entered, leaving, leaving) for entered, leaving in holds]
    return Answer(turns, 0.0, [], 0.0, 10.0, list(waiting), 0, [])


def test_hand_offs_are_told_in_order_and_by_process() -> None:
    found = hand_offs([_answer((0.0, 1.0), (4.0, 5.0)), _answer((1.5, 2.0), (2.25, 3.0))])
    assert [hand_off[:2] for hand_off in found] == [(0.5, True), (0.25, False), (1.0, True)]


def test_a_hand_off_is_contended_while_every_process_comes_back_for_more() -> None:
    first, second = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)], [(3.0, 4.0), (4.0, 5.0)]
    found = hand_offs([_answer(*first), _answer(*second)])
    assert [hand_off.contended for hand_off in found] == [True, True, False, False], (
        "the last round hands over to anybody"
    )
    found = hand_offs([_answer(*first), _answer((-1.0, 0.0), waiting=[0.0])])
    assert [hand_off.contended for hand_off in found] == [True] * 3, "who waits to the end wants it to the end"


def test_a_client_that_is_never_served_is_in_the_latencies() -> None:
    answers = [_answer((0.0, 0.02), (0.02, 0.04)), _answer(waiting=[0.0])]
    row = inference._row(OURS, answers, seconds=10.0)
    assert row.values[:1] == [3.2]
    assert row.values[2:4] == [10.0, 10.0]
    assert row.shown(2, "s") == "≥ 10 s"
    assert [wait.served for wait in inference._waits(answers[0], clients=20)] == [True] * 32 + [False] * 20


def test_names_in_a_picture_do_not_lie_upon_each_other() -> None:
    places = plots._apart([0.0, 0.1, 0.15, 5.0], 1.0)
    assert all(later - earlier > 0.999 for earlier, later in pairwise(places))
    assert places[3] == 5.0
    assert places[0] < 0.0, "they are spread to both sides"


def test_two_bodies_at_once_are_counted() -> None:
    assert overlaps([_answer((0.0, 2.0)), _answer((1.0, 3.0), (3.0, 4.0))]) == 1


def test_the_median_and_the_99th_percentile_are_samples() -> None:
    assert spread([float(n) for n in range(200)])[:3] == (200, 100.0, 198.0)


def test_a_median_is_known_within_an_interval() -> None:
    assert highest_median([float(n) for n in range(100)]) == 60.0
    assert highest_median([1.0, 2.0]) == 2.0


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


def test_the_summary_finds_its_columns_wherever_they_stand() -> None:
    columns: dict[str, list[str]] = {}
    for _, scenario, column in SUMMARY:
        columns.setdefault(scenario, []).append(column)
    results = [
        Result(name, "", "", [Table("other", [Column("x")], []), *(
            Table("", [Column("y"), Column(each, "n")], [Row(OURS.title, ["no", float(number)])])
            for number, each in enumerate(names)
        )], [])
        for name, names in columns.items()
    ]  # fmt: skip
    text = summary(Report({"command": "c", "date": "2026-01-01 00:00", "processor": "p"}, results))
    assert "| hand-offs that reach the other process | 1 | - | - | - |" in text


def test_the_columns_of_the_summary_are_those_of_the_scenarios() -> None:
    crowds = list(waiters.CROWDS)
    tables = [
        waiters._times(2, crowds, {}),
        waiters._efforts(2, crowds, {}),
        recovery._deaths({}),
        handoff._table({}, [], 1.0),
    ]
    names = {column.name for table in tables for column in table.columns}
    assert {column for _, _, column in SUMMARY} <= names


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


def test_what_a_hand_off_takes_is_told_where_all_were_served() -> None:
    figures = waiters.Figures(2, 1000, 0.1, 33_944.0, 0.9, 1001.0, "")
    assert waiters._effort("requests", figures) is None, "most of these are not of a hand-off"
    assert waiters._effort("connections", figures) == 1001.0
    assert waiters._effort("requests", figures._replace(served=1000)) == 33_944.0
