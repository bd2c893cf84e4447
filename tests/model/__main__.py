"""``python -m tests.model --config ci``: explore configurations and print what was found."""

from __future__ import annotations

import argparse
import sys
import time

from tests.model.configs import CONFIGS, SUITES
from tests.model.explore import Explorer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--config", choices=sorted({*CONFIGS, *SUITES}), default="ci")
    parser.add_argument("--max-seconds", type=float, default=None, help="stop each configuration early")
    arguments = parser.parse_args()
    started, states, violations, stopped = time.monotonic(), 0, 0, 0
    for name in SUITES.get(arguments.config, (arguments.config,)):
        report = Explorer(CONFIGS[name]).run(max_seconds=arguments.max_seconds)
        print(report, flush=True)
        states += report.states
        violations += report.violation is not None
        stopped += not report.exhausted
    extent = f"{stopped} stopped early" if stopped else "all exhausted"
    seconds = time.monotonic() - started
    print(f"in all: {states:,} distinct states, {extent}, {violations} violations, {seconds:.0f} s")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
