"""``python -m tests.pythons``: the cancellation sweep on every newer Python that is installed here.

Cancellation is where the versions of asyncio differ most, and where the interpreter looks for signals differs too. Name
other tests to run those instead.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.workers import ROOT

SWEEP = (
    "tests/unit/test_cancellation.py",
    "tests/unit/test_loss_and_cancellation.py",
    "tests/gpu/test_cancellation_beside_a_gpu.py",
    "tests/unit/test_background.py",
    "tests/unit/test_sync.py",
)
NEWEST_MINOR = 20


def version_of(python: str) -> tuple[int, int] | None:
    """What an interpreter says it is; None if it does not run."""
    done = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None
    major, minor = map(int, done.stdout.split())
    return major, minor


def newer_pythons() -> dict[tuple[int, int], str]:
    """By version, those on the path and pyenv's."""
    names = (f"python3.{minor}" for minor in range(sys.version_info.minor + 1, NEWEST_MINOR))
    found = [path for name in names if (path := shutil.which(name))]
    found += map(str, sorted(Path.home().glob(".pyenv/versions/3.*/bin/python")))
    versions = {python: version_of(python) for python in found}
    return {version: python for python, version in versions.items() if version and version > sys.version_info[:2]}


def run(python: str, tests: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="agp-") as directory:
        subprocess.run([python, "-m", "venv", directory], check=True)
        own = f"{directory}/bin/python"
        subprocess.run([own, "-m", "pip", "install", "-q", "-e", ".[test]"], cwd=ROOT, check=True)
        return subprocess.run([own, "-m", "pytest", "-q", "-x", *tests], cwd=ROOT, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("tests", nargs="*", default=SWEEP, help=f"default: {' '.join(SWEEP)}")
    tests = list(parser.parse_args().tests)
    failed = []
    pythons = newer_pythons()
    for (major, minor), python in pythons.items():
        started = time.monotonic()
        code = run(python, tests)
        print(
            f"Python {major}.{minor}: {'failed' if code else 'passed'}, {time.monotonic() - started:.0f} s", flush=True
        )
        failed += [python] if code else []
    if not pythons:
        print(f"no Python newer than {sys.version_info.major}.{sys.version_info.minor} is installed here")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
