"""How times, places and names are said to people."""

from __future__ import annotations

import pytest

from aiogpulock.cli.words import duration, fit, ordinal, plain, who


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0s"), (0.9, "0s"), (59.9, "59s"), (130, "2m10s"), (3600, "1h00m"), (11_100, "3h05m"), (187_200, "2d04h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_ordinals() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"),
    ]


def test_what_moves_a_terminal_is_replaced_and_what_is_writing_stays() -> None:
    assert plain("a\x1b[2J\u202eb\u2028c\x9bd") == "a\ufffd[2J\ufffdb\ufffdc\ufffdd"
    assert plain("größe 模型.py") == "größe 模型.py"


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("模型训练", 8, "模型训练"), ("模型训练", 6, "模型…"), ("模", 1, "…")],
)
def test_a_line_is_cut_to_its_columns(text: str, columns: int, shown: str) -> None:
    assert fit(text, columns) == shown


def test_who_is_as_much_as_is_known() -> None:
    assert who("alice", "h1", 812) == "alice@h1 pid 812"
    assert who("", "h1", 812) == "h1 pid 812"
    assert who(None, None, None) == ""
