"""``python -m tests.workers PROGRAM CONFIG``: the worker programs; CONFIG is JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.workers import driven, programs

if __name__ == "__main__":
    program, config = sys.argv[1], json.loads(sys.argv[2])
    if program == "driven":
        asyncio.run(driven.main(config))
    else:
        programs.PROGRAMS[program](config)
