"""Of what parts the scripts of ``lua/`` are made."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from aiogpulock.scripts import LAST_PART, PARTS, files_of

LUA = resources.files("aiogpulock") / "lua"
SCRIPTS = sorted(file.name.removesuffix(".lua") for file in LUA.iterdir() if file.name.endswith(".lua"))


def code_of(file: str) -> str:
    """Its text without comments."""
    return re.sub(r"--.*", "", (LUA / f"{file}.lua").read_text())


def made_by(part: str) -> set[str]:
    """Functions and constants that it makes for those behind it; of its variables they may use none."""
    code = code_of(f"parts/{part}")
    constants = re.findall(r"^local ([A-Z_, ]+) =", code, re.MULTILINE)
    names = {name for line in constants for name in line.split(", ")}
    return names | set(re.findall(r"^local function (\w+)", code, re.MULTILINE))


def used_by(file: str) -> set[str]:
    """What it calls, and the constants that it names."""
    code = code_of(file)
    return set(re.findall(r"(?<![.\w])(\w+)\(", code)) | set(re.findall(r"\b[A-Z_]+\b", code))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_begins_with_all_parts_that_it_uses_and_the_last_is_one_of_them(name: str) -> None:
    begins, last = files_of(name), LAST_PART.get(name, PARTS[-1])
    lacks = {part for part in PARTS if f"parts/{part}" not in begins and made_by(part) & used_by(name)}
    assert not lacks, f"{name} uses {lacks}"
    assert last == "state" or made_by(last) & used_by(name), f"{name} needs nothing of {last}"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_builds_on_those_before_it(part: str) -> None:
    later = PARTS[PARTS.index(part) + 1 :]
    assert not {name for name in later if made_by(name) & used_by(f"parts/{part}")}


def test_only_scripts_have_a_last_part() -> None:
    assert set(LAST_PART) <= set(SCRIPTS)
