"""``python -m tests.model --config ci``: explore configurations, one process each, and print what was found."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time

from tests.model.configs import CONFIGS, SUITES
from tests.model.side_by_side import explore_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--config", choices=sorted({*CONFIGS, *SUITES}), default="ci")
    parser.add_argument("--max-seconds", type=float, default=None, help="stop each configuration early")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many are explored side by side")
    arguments = parser.parse_args()
    started, states, violations, stopped = time.monotonic(), 0, 0, 0
    names = SUITES.get(arguments.config, (arguments.config,))
    for report in explore_all(names, arguments.jobs, arguments.max_seconds):
        print(report, flush=True)
        states += report.states
        violations += report.violation is not None
        stopped += not report.exhausted
    extent = f"{stopped} stopped early" if stopped else "all exhausted"
    seconds, children = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"in all: {states:,} distinct states, {extent}, {violations} violations, {seconds:.0f} s, "
        f"{children.ru_utime + children.ru_stime:.0f} s of CPU"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
