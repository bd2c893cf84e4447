"""The benchmarks run, and say what they measured. What they measure is no test."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from rich.console import Console
from rich.progress import Progress

import benchmarks.__main__ as benchmarks_main
from benchmarks.__main__ import main
from benchmarks.arena import Answer, Arena, Contender, DoesNotRunError, contest
from benchmarks.batches import Field
from benchmarks.contender import Hold, Order, Setup
from benchmarks.environment import without_settings
from benchmarks.measure import hand_offs, highest_median, overlaps, spread
from benchmarks.peers import OURS, Peer, peers
from benchmarks.prose import END, START, SUMMARY, figures, filled, markdown, targets
from benchmarks.results import Bars, Column, Report, Result, Row, Table, at_most, shown
from benchmarks.scenarios import NAMES, Scenario, Stage, handoff, inference, load_scenario, recovery, waiters
from benchmarks.steps import end_steps, handoff_steps

ROOT = Path(__file__).parents[2]


def test_a_run_writes_results_pictures_and_figures(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("gpu_lock: {max_waiters: nobody}")
    settings = {"AIOGPULOCK_CLAIM_WINDOW": "never", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = _benchmarks("uncontended", "--quick", "--peers", "none", "--out", str(tmp_path), cwd=tmp_path, **settings)
    assert ended.returncode == 0, f"nobody's settings are read, those of this folder neither: {ended.stderr}"
    report = msgspec.json.decode((tmp_path / "results.json").read_bytes(), type=Report)
    (table, profile, records) = report.results[0].tables
    assert _summed_up("uncontended") <= _columns("uncontended", [table])
    p50 = {row.who: row.values[0] for row in table.rows}
    assert p50["two trivial EVALSHA"] < p50[OURS.title], "a lock costs more than its floor"
    assert {"holder", "event", "stats", "publish"} < {row.who for row in records.rows}
    assert len(profile.rows) > 5
    assert {path.suffix for path in (tmp_path / "pictures").iterdir()} == {".svg", ".png"}
    assert f"| {OURS.title} |" in (tmp_path / "figures.md").read_text()


def _benchmarks(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, "-m", "benchmarks", *arguments], os.environ | variables
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=110, check=False)


def test_settings_are_left_out_but_for_the_server_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIOGPULOCK_LOCK_TIMEOUT", "AIOGPULOCK_TEST_SERVER", "REDIS_URL", "LANG"):
        monkeypatch.setenv(name, "x")
    found = without_settings("AIOGPULOCK_TEST_SERVER")
    assert {name for name, value in found.items() if value == "x"} >= {"AIOGPULOCK_TEST_SERVER", "LANG"}
    assert {name for name in found if name.startswith("AIOGPULOCK_")} == {"AIOGPULOCK_TEST_SERVER", "AIOGPULOCK_CONFIG"}
    assert "REDIS_URL" not in found


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
    monkeypatch.setattr(benchmarks_main, "load_scenario", lambda name: scenario)
    with Progress(console=Console(file=io.StringIO())) as progress:
        return benchmarks_main._one("x", arena, (), quick=True, progress=progress, bar=progress.add_task(""))


def _scenarios(monkeypatch: pytest.MonkeyPatch, **runs: Callable[[Any], Result]) -> list[str]:
    """These instead of the real ones; answers the arguments of a run of them."""

    def load_scenario(name: str) -> Scenario:
        return Scenario(name, "A scenario", runs[name], lambda quick: 0)

    monkeypatch.setattr(benchmarks_main, "load_scenario", load_scenario)
    return [*runs, "--peers", "none", "--out", "run"]


def _finds(name: str) -> Callable[[Any], Result]:
    return lambda stage: Result(name, "A scenario", "", [], [])


def test_a_scenario_that_fails_is_told_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(stage: Any) -> Result:
        raise RuntimeError("no wheel")

    assert main(_scenarios(monkeypatch, footprint=fails, memory=_finds("memory"))) == 1
    report = msgspec.json.decode(Path("run", "results.json").read_bytes(), type=Report)
    assert [(result.scenario, result.error) for result in report.results] == [
        ("footprint", "RuntimeError: no wheel"),
        ("memory", ""),
    ]
    assert "\nfootprint: RuntimeError: no wheel\n" in capsys.readouterr().err


def test_ctrl_c_ends_a_run_and_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crew: list[Contender] = []

    def interrupted(stage: Any) -> Result:
        crew.extend(stage.arena.crew(OURS, 2, "interrupted"))
        os.kill(os.getpid(), signal.SIGINT)
        crew[0].line(60)
        raise AssertionError

    assert main(_scenarios(monkeypatch, footprint=_finds("footprint"), recovery=interrupted)) == 130
    assert not any(Path(f"/proc/{contender.pid}").exists() for contender in crew)
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last == "interrupted: run/results.json has footprint; --render makes tables and pictures of it"


def test_ctrl_c_ends_the_server_of_an_arena_that_does_not_stand_yet() -> None:
    arena = Arena()
    Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), arena:
        pass
    assert not arena.server.running


def test_a_process_may_be_dismissed_by_its_thread_and_by_who_clears_the_arena(arena: Arena) -> None:
    crew = arena.crew(OURS, 2, "twice")
    arena.clear()
    arena.dismiss(crew)


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
    assert whole[2] > 5, "hand-offs by message are traced"  # type: ignore[operator]
    assert all(0 < ours < whole[0] and 0 < floor < whole[1] for ours, floor, _ in steps)  # type: ignore[operator]


def test_each_end_of_a_body_is_traced(arena: Arena) -> None:
    table = end_steps(arena, ("normal", "abandoned"), blocks=1, times=3)
    assert [row.who for row in table.rows] == ["body ends: normal", "body ends: abandoned"]
    assert all(isinstance(value, float) and value > 0 for row in table.rows for value in row.values)


def _answer(*holds: tuple[float, float], waiting: Sequence[float] = ()) -> Answer:
    turns = [Hold(entered, entered, leaving, leaving) for entered, leaving in holds]
    return Answer(turns, 0.0, [], 0.0, 10.0, list(waiting), 0, [])


def test_hand_offs_are_told_in_order_and_by_process() -> None:
    found = hand_offs([_answer((0.0, 1.0), (4.0, 5.0), (6.0, 7.0)), _answer((1.5, 2.0), (2.25, 3.0))])
    assert [hand_off.crossed for hand_off in found] == [True, False, True, False]


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
     (2048.0, "B", "2 KiB"), (None, "s", "-"), ("did not finish", "s", "did not finish"), (12_345.0, "n", "12,345"),
     (-3e-5, "s", "not measurable")],
)  # fmt: skip
def test_figures_are_shown_as_a_person_reads_them(value: float | str | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text  # type: ignore[arg-type]


def test_who_did_not_run_has_a_reason_and_no_figures() -> None:
    table = Table("a lock", inference.COLUMNS, [Row.absent("theirs", "it ended", inference.COLUMNS)])
    assert markdown(table)[-1] == "| theirs | it ended | - | - | - | - | - |"


def _report() -> Report:
    table = Table("a lock", [Column("p50", "s")], [Row("ours", [0.001])])
    targets = [at_most("one", 1.0, 1.2, "x"), at_most("other", 1.5, 1.2, "x")]
    return Report({"date": "today"}, [Result("x", "A scenario", "What is measured.", [table], targets)])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in which something is published."""
    pictures = tmp_path / "project" / "benchmarks" / "published" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "old.svg").write_text("old")
    (pictures.parent / "results.json").write_text("old")
    for page in ("benchmarks/README.md", "README.md"):
        (tmp_path / "project" / page).write_text(f"before\n{START}\nold\n{END}\nafter\n")
    return tmp_path / "project"


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("latin-1") for path in folder.rglob("*") if path.is_file()}


def _whole_run(
    folder: Path, *, failed: str = "", absent: str = "", command: str = "python -m benchmarks --publish"
) -> Path:
    """The made-up results of all scenarios, with what the summary wants of them."""
    results = [
        Result(name, name, "", _of_the_summary(name), [], error="no wheel" if name == failed else "") for name in NAMES
    ]
    results[1].charts = [Bars("handoff", "Hand-off", "from one body to the next", "p50")]
    where = {"command": command, "date": "2026-01-01 00:00", "processor": "p"}
    where |= {"not installed": absent} if absent else {}
    folder.mkdir()
    (folder / "results.json").write_bytes(msgspec.json.encode(Report(where, results)))
    return folder


def _of_the_summary(scenario: str) -> list[Table]:
    tables: dict[str, Table] = {}
    for _, where, title, column in SUMMARY:
        if where == scenario:
            rows = [Row(OURS.title, ["-"]), Row("redis-py Lock", ["-"])]
            table = tables.setdefault(title, Table(title, [Column("x")], rows))
            table.columns.append(Column(column, "n"))
            for row, value in zip(table.rows, (7.0, 8.0), strict=True):
                row.values.append(value)
    return list(tables.values())


def test_what_is_published_is_overwritten_by_a_whole_run(tmp_path: Path, project: Path) -> None:
    folder = _whole_run(tmp_path / "run")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "of-another-run.svg").touch()
    assert main(["--render", "--publish", "--out", str(folder)], project) == 0
    found = _files(project)
    assert found["README.md"].startswith(f"before\n{START}\n\n| | aiogpulock |")
    assert "| uncontended acquire and release, median | 7 | - | - | 8 |" in found["README.md"]
    assert 'src="published/pictures/handoff-light.svg"' in found["benchmarks/README.md"]
    assert found["benchmarks/published/results.json"] == (folder / "results.json").read_text()
    pictures = {Path(name).name for name in found if "pictures" in name}
    assert pictures == {f"handoff-{theme}.{suffix}" for theme in ("light", "dark") for suffix in ("svg", "png")}


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ({"failed": "footprint"}, "footprint failed"),
        ({"command": "python -m benchmarks --quick --out of--publish"}, "not the results of"),
        ({"absent": "redis-fifo-lock"}, "redis-fifo-lock could not be installed"),
    ],
)
def test_nothing_is_published_of_a_run_that_failed_or_is_no_whole_one(
    run: dict[str, str], why: str, tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _files(project)
    assert main(["--render", "--publish", "--out", str(_whole_run(tmp_path / "run", **run))], project) == 1
    assert "nothing is published: " in (told := capsys.readouterr().err)
    assert why in told
    assert _files(project) == before


def test_nothing_is_published_unless_both_pages_can_be_filled(tmp_path: Path, project: Path) -> None:
    (project / "README.md").write_text("no marks")
    before = _files(project)
    with pytest.raises(ValueError, match=r"README\.md has no marks"):
        main(["--render", "--publish", "--out", str(_whole_run(tmp_path / "run"))], project)
    assert _files(project) == before


def test_results_are_rendered_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = _report()
    (tmp_path / "results.json").write_bytes(msgspec.json.encode(report))
    assert main(["--render", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "figures.md").read_text() == figures(report, Path("pictures"))
    out, err = capsys.readouterr()
    assert out == "\n".join(targets(report)) + "\n"
    assert err.startswith(f"written: {tmp_path}/results.json, ")
    assert len(err.splitlines()) == 1


def test_tables_are_printed_where_nothing_is_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_bytes(
        msgspec.json.encode(Report({}, [Result("x", "X", "", [Table("a lock", [Column("p50", "s")], [])], [])]))
    )
    assert main(["--render", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "| a lock | p50 |"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--render"], "results.json: No such file or directory"),
        (["--render", "handoff"], "--render shows all results of the folder"),
        (["--publish", "--peers="], "--publish: the documented figures come from one whole run"),
        (["--peers=,"], "--peers names nobody: there are redis_fifo_lock, "),
        (["--peers", "redis_py,redis-fifo-lock"], "no peer redis-fifo-lock: there are redis_fifo_lock, "),
        (["lock"], "no scenario lock: there are uncontended, "),
    ],
)
def test_what_makes_no_sense_is_an_error_and_leaves_nothing(
    arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--out", str(tmp_path / "run")])
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "file" / "run")])
    assert f"{tmp_path}/file/run: Not a directory" in capsys.readouterr().err


def test_runs_write_elsewhere_than_what_is_published(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit, match="2"):
        main(["--render", "--out", "benchmarks/published"], project)
    assert "only --publish writes benchmarks/published" in capsys.readouterr().err


def test_a_target_is_said_to_be_met_or_missed() -> None:
    text = figures(_report(), Path("pictures"))
    assert "| A scenario | one | ≤ 1.20 × | 1.00 × | met |" in text
    assert "| A scenario | other | ≤ 1.20 × | 1.50 × | **missed** |" in text


def _summed_up(*scenarios: str) -> set[tuple[str, str, str]]:
    return {(scenario, table, column) for _, scenario, table, column in SUMMARY if scenario in scenarios}


def _columns(scenario: str, tables: Sequence[Table]) -> set[tuple[str, str, str]]:
    return {(scenario, table.title, column.name) for table in tables for column in table.columns}


def test_the_summary_names_tables_and_columns_that_the_scenarios_make() -> None:
    """That of the uncontended lock is asked where it has run."""
    crowds = list(waiters.CROWDS)
    made = {
        *_columns("handoff", [handoff._table({}, [], handoff.Samples([]))]),
        *_columns("waiters", [waiters._times(2, crowds, {}), waiters._all_efforts((2, 1000), {})]),
        *_columns("recovery", [recovery._deaths({}, recovery.TIMES)]),
    }
    assert _summed_up(*NAMES) - _summed_up("uncontended") <= made


def test_figures_are_replaced_where_they_stood(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "benchmarks" / "README.md").read_text())
    once = filled(readme, figures(_report(), Path("pictures")))
    readme.write_text(once)
    assert filled(readme, figures(_report(), Path("pictures"))) == once
    assert once.count(START) == 1
    assert "| ours | 1 ms |" in once


def test_each_peer_and_each_scenario_says_what_it_is() -> None:
    for peer in peers():
        assert all("==" in requirement for requirement in peer.requirements), "another version would be another peer"
    for name in NAMES:
        assert load_scenario(name).run.__doc__


def test_what_a_hand_off_takes_is_told_where_all_were_served() -> None:
    figures = waiters.Figures(2, 1000, 0.1, 33_944.0, 70_000.0, 0.9, 1001.0, "")
    assert waiters._efforts(figures) == [None, None, None, 1001.0], "most of these are not of a hand-off"
    assert waiters._efforts(figures._replace(served=1000)) == [33_944.0, 70_000.0, 0.9, 1001.0]


def test_a_waiter_of_this_library_that_is_not_served_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters, "_serve", lambda *_, **__: waiters.Figures(9, 10, 0.1, 2.0, 60.0, 0.1, 18.0, ""))
    stage = cast(Stage, None)
    contestant = waiters.Contestant(peers()[0], [(2, 10)], 5.0)
    contestant.run(stage)
    assert contestant.found[2, 10][0].served == 9  # type: ignore[union-attr]
    with pytest.raises(DoesNotRunError, match="9 of 10 waiters were served"):
        waiters.Contestant(OURS, [(2, 10)], 5.0).run(stage)


def test_a_peer_that_fails_drops_out_and_keeps_the_samples_it_has() -> None:
    early, late, *_ = peers()
    arena = SimpleNamespace(dismiss=lambda crew: None, failures=Counter[tuple[str, str]]())
    stage = cast(Stage, SimpleNamespace(peers=[early, late], say=lambda text: None, arena=arena))
    field = Field(stage, [OURS, early, late], handoff.Samples, handoff.COLUMNS)

    def batch(number: int, fails: Peer) -> None:
        def step(peer: Peer, course: handoff.Samples) -> None:
            if peer is fails:
                raise DoesNotRunError("it ended")
            course.seconds.append(float(number))

        field.batch(number, step)

    batch(0, fails=early)
    batch(1, fails=late)
    assert {peer: course.seconds for peer, course in field.courses.items()} == {OURS: [0.0, 1.0], late: [0.0]}
    assert field.absent == [Row.absent(early.title, "it ended", handoff.COLUMNS)]
    assert arena.failures == {(early.title, "it ended"): 1, (late.title, "it ended"): 1}
    with pytest.raises(DoesNotRunError, match="it ended"):
        batch(2, fails=OURS)
