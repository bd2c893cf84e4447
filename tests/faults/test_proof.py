"""The command that runs all of the proof: the end of its log tells what failed."""

from __future__ import annotations

import pytest

from tests.faults import mutants
from tests.planted import Edit, Mutant
from tests.proof import TAIL, run, summary


def test_the_last_lines_of_a_failed_part_are_printed_again_at_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    script = f"import sys\nfor n in range({TAIL}): print('line', n)\nprint('the reason', file=sys.stderr)\nsys.exit(3)"
    good, bad = run("good", ("-c", "print('well')")), run("bad", ("-c", script))
    said = capfd.readouterr().out.splitlines()
    assert [line for line in said if line in ("well", "line 0", "the reason")] == ["well", "line 0", "the reason"]

    beginning, *again, _, passed, failed = summary([good, bad]).splitlines()
    assert beginning == "== the end of bad"
    assert again == [*(f"line {n}" for n in range(1, TAIL)), "the reason"]
    assert passed.split()[0] == "passed"
    assert failed.startswith("failed (3)")


def test_a_planted_bug_that_only_breaks_the_program_is_not_killed() -> None:
    edit = Edit("liveness.py", "not readable and now_started == started", "not readible and now_started == started")
    killer = "tests/unit/test_liveness.py::test_a_reused_pid_is_another_process"
    verdict = mutants.judge(Mutant("misspelt", killer, (edit,)))
    assert not verdict.killed
    assert "NameError" in verdict.refused
