"""``python -m tests.model --config ci``: explore configurations, one process each, and print what was found.

Ends with 1 if a promise was broken, and with 3 if none was but a configuration was stopped early.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time

from tests.model.configs import CONFIGS, SUITES
from tests.model.side_by_side import explore_all

BROKEN, STOPPED = 1, 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--config", choices=sorted({*CONFIGS, *SUITES}), default="ci")
    parser.add_argument("--max-seconds", type=float, default=None, help="stop each configuration early")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many are explored side by side")
    arguments = parser.parse_args()
    started, states, stopped, broken = time.monotonic(), 0, 0, []
    names = SUITES.get(arguments.config, (arguments.config,))
    for report in explore_all(names, arguments.jobs, arguments.max_seconds):
        print(report, flush=True)
        states += report.states
        broken += [report] if report.violation else []
        stopped += not report.exhausted and not report.violation
    extent = f"{stopped} stopped early" if stopped else "all exhausted"
    seconds, children = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"in all: {states:,} distinct states, {extent}, {len(broken)} violations, {seconds:.0f} s, "
        f"{children.ru_utime + children.ru_stime:.0f} s of CPU"
    )
    if stopped:
        print("NOT SHOWN: what was stopped early was not explored to its end")
    for report in broken:
        print(f"broken in {report.config}: {report.violation}")
    return BROKEN if broken else STOPPED if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
