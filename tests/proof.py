"""``python -m tests.proof``: everything that shows the protocol to be right, one part after the other.

``--ci`` runs the share of continuous integration; the tests that belong to it are in stages of their own.
``--only PART`` runs one part. Ends with 1 if any part failed; the last lines of each such part are printed again at
the end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import deque
from typing import NamedTuple

from tests.workers import ROOT

TAIL = 40
"""Lines of a failed part that are printed again."""

TESTS = (
    "-m",
    "pytest",
    "-q",
    "tests/model",
    "tests/faults",
    "tests/unit/test_cancellation.py",
    "tests/gpu/test_cancellation_beside_a_gpu.py",
    "tests/unit/test_loss.py",
    "tests/integration/test_waiting.py",
    "tests/integration/test_guard.py",
    "tests/integration/test_server_trouble.py",
    "tests/integration/test_demo.py",
)

CI: dict[str, tuple[str, ...]] = {
    "model": ("-m", "tests.model", "--config", "ci"),
    "faults": ("-m", "tests.faults", "--ci"),
    "soak": ("-m", "tests.faults.soak", "--seconds", "60"),
    "newer Pythons": ("-m", "tests.pythons"),
}
WHOLE: dict[str, tuple[str, ...]] = {
    "tests": TESTS,
    **CI,
    "larger models": ("-m", "tests.model", "--config", "large"),
    "planted bugs": ("-m", "tests.mutants"),
    "soak": ("-m", "tests.faults.soak", "--seconds", "600"),
}


class Part(NamedTuple):
    """How one part ended."""

    name: str
    code: int
    seconds: float
    tail: tuple[str, ...]


def run(name: str, command: tuple[str, ...]) -> Part:
    """Run one part, and pass on what it says as it comes."""
    print(f"== {name}: python {' '.join(command)}", flush=True)
    started, tail = time.monotonic(), deque[str](maxlen=TAIL)
    with subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            tail.append(line.rstrip("\n"))
    return Part(name, process.returncode, time.monotonic() - started, tuple(tail))


def summary(parts: list[Part]) -> str:
    """What failed once more, then one line for each part."""
    lines = [line for part in parts if part.code for line in (f"== the end of {part.name}", *part.tail)]
    lines += ["== proof"]
    lines += [
        f"{f'failed ({part.code})' if part.code else 'passed':11} {part.seconds:6.0f} s  {part.name}" for part in parts
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--ci", action="store_true", help="the share of continuous integration")
    parser.add_argument("--only", choices=sorted({*CI, *WHOLE}), metavar="PART", help=", ".join(WHOLE))
    arguments = parser.parse_args()
    parts = CI if arguments.ci else WHOLE
    if arguments.only:
        parts = {arguments.only: {**WHOLE, **parts}[arguments.only]}
    ended = [run(name, command) for name, command in parts.items()]
    print(summary(ended))
    return 1 if any(part.code for part in ended) else 0


if __name__ == "__main__":
    sys.exit(main())
