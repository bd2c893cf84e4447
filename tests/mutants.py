"""``python -m tests.mutants``: plant every bug, in the scripts and in the Python side, and print what killed each.

The killers of the Python side run on the unchanged tree first: they must pass there, or a kill would prove nothing.
Those of the scripts are the model's configurations and rules, which pass in continuous integration.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.faults import mutants as of_python
from tests.faults.planted_bugs import MUTANTS as PYTHON
from tests.model import mutants as of_lua
from tests.model.planted_bugs import MUTANTS as LUA
from tests.planted import Mutant, Verdict, matrix


def judge(mutant: Mutant) -> Verdict:
    return of_lua.judge(mutant) if mutant in LUA else of_python.judge(mutant)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("only", nargs="*", help="words of the bugs to plant; default: all")
    parser.add_argument("--no-control", action="store_true", help="do not run the killers on the unchanged tree first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many are hunted side by side")
    arguments = parser.parse_args()
    started = time.monotonic()
    chosen = [m for m in (*PYTHON, *LUA) if all(word in f"{m.name} {m.known}" for word in arguments.only)]
    killers = [] if arguments.no_control else list(dict.fromkeys(m.killer for m in chosen if m in PYTHON))
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = {
            killer: what for killer, what in zip(killers, pool.map(of_python.control, killers), strict=True) if what
        }
        for killer, what in found.items():
            print(f"{killer} fails without any planted bug: {what}")
        if found:
            return 1
        print(f"{len(killers)} killers pass on the unchanged tree\n", flush=True)
        verdicts = list(pool.map(judge, chosen))
    print(f"{matrix(verdicts)}; {time.monotonic() - started:.0f} s")
    return 0 if all(verdict.killed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
