"""``python -m tests.model --config ci``: explore a configuration and print what was found."""

from __future__ import annotations

import argparse
import sys

from tests.model.configs import CONFIGS
from tests.model.explore import Explorer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="ci")
    parser.add_argument("--max-seconds", type=float, default=None, help="stop early")
    arguments = parser.parse_args()
    report = Explorer(CONFIGS[arguments.config]).run(max_seconds=arguments.max_seconds)
    print(report)
    return 1 if report.violation else 0


if __name__ == "__main__":
    sys.exit(main())
