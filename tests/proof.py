"""``python -m tests.proof``: everything that shows the protocol to be right, one part after the other.

``--ci`` runs the share of continuous integration; the tests that belong to it are in its test stage. ``--only PART``
runs one part. Ends with 1 if any part failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.workers import ROOT

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
    "tests/integration/test_crash_recovery.py",
    "tests/integration/test_guard.py",
    "tests/integration/test_restart.py",
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--ci", action="store_true", help="the share of continuous integration")
    parser.add_argument("--only", choices=sorted({*CI, *WHOLE}), metavar="PART", help=", ".join(WHOLE))
    arguments = parser.parse_args()
    parts = CI if arguments.ci else WHOLE
    if arguments.only:
        parts = {arguments.only: parts[arguments.only]}
    results = []
    for name, command in parts.items():
        print(f"== {name}: python {' '.join(command)}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
        results.append((name, code, time.monotonic() - started))
    print("== proof")
    for name, code, seconds in results:
        print(f"{'failed' if code else 'passed'} {seconds:6.0f} s  {name}")
    return 1 if any(code for _, code, _ in results) else 0


if __name__ == "__main__":
    sys.exit(main())
