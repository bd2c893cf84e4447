"""The demo's referee against planted stays: what it lets pass and what it must not."""

from __future__ import annotations

import math

import pytest

from aiogpulock.cli.demo_referee import Referee, Stay, Verdict, exit_code, hand_offs, judge, percentile


def stay(worker: str, token: int, entered_at: float, left_at: float = math.inf, asked_at: float = 0.0) -> Stay:
    return Stay(worker, token, asked_at, entered_at, left_at)


def test_taking_turns_with_rising_tokens_is_exclusion() -> None:
    verdict = judge([stay("b", 6, 2.0, 3.0), stay("a", 5, 1.0, 2.0), stay("a", 9, 3.5)])
    assert verdict == Verdict((), ())
    assert exit_code(verdict) == 0


def test_entering_before_another_left_is_an_overlap() -> None:
    verdict = judge([stay("a", 5, 1.0, 2.0), stay("b", 6, 1.999, 3.0)])
    assert len(verdict.overlaps) == 1
    assert "b (token 6) entered beside a (5), 1.000 ms before it left" in verdict.overlaps[0]
    assert exit_code(verdict) == 1


def test_a_short_stay_inside_a_long_one_does_not_hide_the_next_overlap() -> None:
    verdict = judge([stay("a", 1, 1.0, 9.0), stay("b", 2, 2.0, 3.0), stay("c", 3, 4.0, 5.0)])
    assert [line.split()[0] for line in verdict.overlaps] == ["b", "c"]


def test_nobody_may_enter_after_one_who_never_left() -> None:
    verdict = judge([stay("a", 5, 1.0), stay("b", 6, 50.0, 51.0)])
    assert "which never left" in verdict.overlaps[0]


@pytest.mark.parametrize("second", [4, 5])
def test_a_token_that_does_not_rise_breaks_exclusion(second: int) -> None:
    verdict = judge([stay("a", 5, 1.0, 2.0), stay("b", second, 2.0, 3.0)])
    assert verdict.overlaps == ()
    assert verdict.regressions == (f"b entered with {second} after a with 5",)
    assert exit_code(verdict) == 1


def test_a_killed_worker_was_inside_until_the_kill() -> None:
    referee = Referee()
    referee.entered("a", 5, asked_at=0.0, at=1.0)
    referee.entered("b", 6, asked_at=0.0, at=2.5)
    referee.died("a", killed_at=2.0, last_sign=1.9)
    assert judge(referee.stays).held


def test_a_killed_worker_that_gave_signs_of_life_later_was_inside_until_then() -> None:
    referee = Referee()
    referee.entered("a", 5, asked_at=0.0, at=1.0)
    referee.entered("b", 6, asked_at=0.0, at=2.5)
    referee.died("a", killed_at=2.0, last_sign=2.6)
    assert len(judge(referee.stays).overlaps) == 1


def test_entering_twice_without_leaving_is_not_forgotten() -> None:
    referee = Referee()
    referee.entered("a", 5, asked_at=0.0, at=1.0)
    referee.entered("a", 6, asked_at=1.0, at=2.0)
    referee.left("a", 3.0)
    assert len(judge(referee.stays).overlaps) == 1


def test_only_a_worker_that_was_waiting_makes_a_hand_off() -> None:
    stays = [stay("a", 1, 1.0, 2.0), stay("b", 2, 2.25, 3.0, asked_at=1.5), stay("c", 3, 9.0, 9.5, asked_at=8.0)]
    assert hand_offs(stays) == [0.25]


def test_what_follows_a_kill_is_no_hand_off() -> None:
    referee = Referee()
    referee.entered("a", 5, asked_at=0.0, at=1.0)
    referee.entered("b", 6, asked_at=0.0, at=2.5)
    referee.died("a", killed_at=2.0, last_sign=1.9)
    referee.left("b", 3.0)
    referee.entered("c", 7, asked_at=0.0, at=3.5)
    assert hand_offs(referee.stays) == [0.5]


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [50.0, 99.0, 100.0]
    assert math.isnan(percentile([], 50))
