"""Plants bugs in a copy of the tree and hunts them there, by a fault of the campaign or by a test."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers import untraced
from tests.planted import Edit, Mutant, Verdict, plant
from tests.workers import ROOT

CYCLES = 12

FELL_OVER = (
    "before any fault",
    "never started",
    "fell over",
    "could not be tried",
    "broken: ",
    "SyntaxError",
    "ImportError",
    "NameError",
    "AttributeError",
    "UnboundLocalError",
)
"""Signs that the planted bug broke the program before the killer could notice anything."""


def judge(mutant: Mutant) -> Verdict:
    """Run the killer against the planted bug."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="agm-") as directory:
        tree = copy_tree(Path(directory))
        for file, text in planted(mutant).items():
            (tree / "aiogpulock" / file).write_text(text)
        try:
            evidence = hunt(mutant.killer, tree)
        except (AssertionError, RuntimeError, subprocess.TimeoutExpired) as error:
            evidence = f"fell over: {error}"
    refused = evidence if not mutant.fails and any(sign in evidence for sign in FELL_OVER) else ""
    return Verdict(mutant, "" if refused else evidence[:110], time.monotonic() - started, refused)


def control(killer: str) -> str:
    """What a killer finds in the tree as it is: nothing, or a kill by it would prove nothing."""
    with tempfile.TemporaryDirectory(prefix="agm-") as directory:
        return hunt(killer, copy_tree(Path(directory)))


def planted(mutant: Mutant) -> dict[str, str]:
    """Each module that the bug changes, and its new text."""
    by_file: dict[str, tuple[Edit, ...]] = {}
    for edit in mutant.edits:
        by_file[edit.file] = (*by_file.get(edit.file, ()), edit)
    return {
        file: plant((ROOT / "aiogpulock" / file).read_text(), edits, mutant.name) for file, edits in by_file.items()
    }


def copy_tree(into: Path) -> Path:
    for name in ("aiogpulock", "tests"):
        shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "config.yml"):
        shutil.copy(ROOT / name, into / name)
    return into


def hunt(killer: str, tree: Path) -> str:
    """Run the killer in a tree; answers what it found."""
    if "/" in killer:
        command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", "--timeout=60", killer]
    else:
        command = ["-m", "tests.faults", "--fault", killer, "--cycles", str(CYCLES)]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env={**untraced(), "PYTHONPATH": str(tree), "COLUMNS": "500"},  # a reason in full
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith((f"{killer}: ", "FAILED", "ERROR"))]
    # A fixture's complaint is the weaker evidence, and that of a program that fell over the weakest.
    lines.sort(key=lambda line: (any(sign in line for sign in FELL_OVER), line.startswith("ERROR")))
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{killer} could not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    assert done.returncode == 0 or lines, f"{killer} fell over: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    if done.returncode == 0:
        return ""
    return lines[0].removeprefix(f"{killer}: ").removeprefix(f"FAILED {killer}").removeprefix(" - ")
