"""``python -m tests.oldest``: the pytest plugin on the oldest pytest and pytest-asyncio that pyproject.toml allows.

Ini keys and the order of hooks are where the versions of pytest differ most. Name other tests to run those instead.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib

from tests.workers import ROOT

PLUGIN = "tests/edges/test_pytest_plugin.py"
TESTS = "bad_mark or at_odds or leak_is_an_error or wider_fixture or shown_as_the_holder or unused or lost_it"
ALSO_NEEDED = ("psutil", "uvloop")
"""By the tests, in whatever version."""


def oldest() -> list[str]:
    """The lower bounds of pytest and its plugins."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extra = tomllib.load(file)["project"]["optional-dependencies"]["test"]
    return [re.sub(r">=", "==", requirement) for requirement in extra if requirement.startswith("pytest")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oldest", description=__doc__)
    parser.add_argument("tests", nargs="*", help=f"default: some of {PLUGIN}")
    tests = parser.parse_args().tests or [PLUGIN, "-k", TESTS]
    with tempfile.TemporaryDirectory(prefix="ago-") as directory:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
        own = f"{directory}/bin/python"
        pip = [sys.executable, "-m", "pip", "--python", own, "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, "-e", ".[embedded]", *oldest(), *ALSO_NEEDED], cwd=ROOT, check=True)
        print(*oldest(), flush=True)
        return subprocess.run(
            [own, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests], cwd=ROOT, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
