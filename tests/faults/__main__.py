"""``python -m tests.faults``: the campaign. Ends with 1 if anything was violated; what it was stands at the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tests.faults.campaign import Result, run_fault
from tests.faults.kinds import KINDS

CI_KILLS, CI_CYCLES = 200, 20


def cycles_of(fault: str, options: argparse.Namespace) -> int:
    if options.cycles is not None:
        return int(options.cycles)
    return CI_KILLS if fault == "kill-holder" else CI_CYCLES


def table(results: list[Result]) -> str:
    head = (
        f"{'fault':24}{'cycles':>7}{'violations':>11}{'95% bound':>10}{'declared':>9}{'stale':>6}{'lost':>6}"
        f"{'holds':>8}{'p50 ms':>8}{'p99 ms':>8}{'s':>6}"
    )
    lines = [head]
    for r in results:
        bound = f"{r.bound:.3f}" if not r.violations else "-"
        lines.append(
            f"{r.fault:24}{r.cycles:>7}{len(r.violations):>11}{bound:>10}{r.declared:>9}{r.stale:>6}{r.lost:>6}"
            f"{r.entries:>8}{r.percentile(50) * 1000:>8.0f}{r.percentile(99) * 1000:>8.0f}{r.seconds:>6.0f}"
        )
    return "\n".join(lines)


def complaints(results: list[Result], seed: int) -> str:
    """Each violation in full, and at the end one line for each: the end of a log tells what happened."""
    told = [(r.fault, violation) for r in results for violation in r.violations[:10]]
    lines = [f"\n{fault}: {violation}" for fault, violation in told]
    lines += ["", "violated:", *(f"  {fault}: {_last_line(violation)}" for fault, violation in told)]
    again = " ".join(f"--fault {r.fault}" for r in results if r.violations)
    return "\n".join([*lines, f"again: python -m tests.faults {again} --seed {seed} (--first N --cycles 1: one cycle)"])


def _last_line(violation: str) -> str:
    """The line that says most: the only one, or the error at the end of a traceback, behind its beginning."""
    first, *rest = violation.strip().splitlines()
    return f"{first[:160]} … {rest[-1][:160]}" if rest else first[:300]


def run(name: str, options: argparse.Namespace) -> Result:
    try:
        result = run_fault(KINDS[name](), cycles=cycles_of(name, options), seed=options.seed, first=options.first)
    except Exception:  # the others go on, and the table is printed
        result = Result(name, violations=[f"could not be tried: {traceback.format_exc()}"])
    print(f"{name}: {result.cycles} cycles, {len(result.violations)} violations", file=sys.stderr, flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--fault", action="append", choices=sorted(KINDS), metavar="NAME", help="all if not given")
    parser.add_argument("--list", action="store_true", help="say what faults there are")
    parser.add_argument("--cycles", type=int, help=f"default: {CI_KILLS} of kill-holder, {CI_CYCLES} of each other")
    parser.add_argument("--first", type=int, default=0, help="number of the first cycle, to run one again")
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--jobs", type=int, default=5, help="how many faults are tried side by side")
    parser.add_argument("--ci", action="store_true", help="the defaults by name: what continuous integration runs")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:24}{kind.what}" for name, kind in KINDS.items()))
        return 0
    started = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda name: run(name, options), options.fault or KINDS))
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "faults": [asdict(r) for r in results]}, indent=1))
    print(table(results))
    total, violations = sum(r.cycles for r in results), sum(len(r.violations) for r in results)
    bound = f" (95 % upper bound {3 / total:.4f} per cycle)" if total and not violations else ""
    print(
        f"\n{violations} violations in {total} cycles{bound}; {sum(r.stale for r in results)} stale writes rejected; "
        f"seed {options.seed}; {time.monotonic() - started:.0f} s",
        flush=True,
    )
    if violations:
        print(complaints(results, options.seed))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
