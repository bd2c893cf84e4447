"""The command line. `main` is its entry; without the extra ``[cli]`` it says what to install."""

from __future__ import annotations

import sys
from importlib.util import find_spec

NEEDED = ("click", "rich")
HOW_TO_INSTALL = "pip install 'aiogpulock[cli]'"
USAGE = 2
"""The exit status of a call that cannot be carried out as it stands."""
INTERRUPTED = 130
"""The exit status after Ctrl-C."""


def main() -> None:
    """Run the command line; ends the process. Imports neither redis nor rich until a verb needs them."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.stderr.write(f"the aiogpulock command needs {' and '.join(missing)}: {HOW_TO_INSTALL}\n")
        sys.exit(USAGE)
    try:
        from aiogpulock.cli.app import aiogpulock

        aiogpulock(prog_name="aiogpulock")
    except KeyboardInterrupt:  # while it starts
        sys.exit(INTERRUPTED)
