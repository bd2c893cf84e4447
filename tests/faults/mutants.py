"""Planted bugs of the Python side, and what catches each. ``python -m tests.faults.mutants`` prints the matrix.

Each is planted in a copy of the tree and hunted there by its killer: a fault of the campaign, or a test. Each edit
asserts that its text is there exactly once. The killers must pass on the unchanged copy, or a kill would prove nothing.
The planted bugs of the scripts are in `tests.model.mutants`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.workers import ROOT


class Edit(NamedTuple):
    file: str
    search: str
    replacement: str


class Mutant(NamedTuple):
    """A planted bug. `killer`: a fault of the campaign, or a path of a test with its name."""

    name: str
    killer: str
    edits: tuple[Edit, ...]


class Verdict(NamedTuple):
    mutant: str
    killer: str
    killed: bool
    evidence: str
    seconds: float


CYCLES = 12
SWEEP = "tests/unit/test_cancellation.py"

MUTANTS = (
    Mutant(
        "a body starts at the message, without a claim",
        "forged-messages",
        (
            Edit(
                "acquisition.py",
                "        self._sent_at = clock.now()\n        try:\n",
                "        self._sent_at = clock.now()\n        if self._waiter.hint:\n"
                "            return Held(self._waiter.hint, False, 0.0)\n        try:\n",
            ),
        ),
    ),
    Mutant(
        "the local deadline counts from the reply, not from the send",
        "proxy-isolated-holder",
        (Edit("lease.py", "max(self._deadline, sent_at + self", "max(self._deadline, clock.now() + self"),),
    ),
    Mutant(
        "a beat takes up a lease whose deadline has passed",
        "stop-lone-holder",
        (
            Edit("heartbeat.py", 'hold.lose("lease_expired")  # before any I/O', "pass  # any I/O"),
            Edit("heartbeat.py", 'hold.lose("lease_expired")\n        live', "pass\n        live"),
            Edit("heartbeat.py", "        if live:\n", "        if False:\n"),
            Edit("guard.py", "            if hold.overdue:\n", "            if False:\n"),
        ),
    ),
    Mutant(
        "a cancelled release is not repeated (redis-py#3847)",
        f"{SWEEP}::test_leaving_the_body",
        (
            Edit(
                "leaving.py",
                "released = await finish(lambda: _release(manager, hold, reason))",
                "released = await _release(manager, hold, reason)",
            ),
        ),
    ),
    Mutant(
        "a cancelled waiter does not withdraw (zk-ruby#49)",
        f"{SWEEP}::test_acquire_of_a_held_lock_whose_grant_comes_at_that_moment",
        (
            Edit(
                "acquisition.py",
                '            await finish(lambda: self._withdraw("cancelled"))\n            raise\n        finally:',
                "            raise\n        finally:",
            ),
        ),
    ),
    Mutant(
        "no look after the inbox is back (redis-lock-py, redisson#1763)",
        "inbox-kill",
        (Edit("waiting.py", "        if self._events():\n            self._wake_some()\n", ""),),
    ),
    Mutant(
        "the guard thread never beats (redisson#5698)",
        "blocked-loop",
        (Edit("guard.py", "elif late <= hold.terms.max_stall and (", "elif False and ("),),
    ),
    Mutant(
        "EVALSHA without EVAL behind it",
        "script-flush",
        (
            Edit(
                "scripts.py",
                "            reply = await self._eval(name, keys, terms, arguments)\n            if isinstance",
                "            raise\n            if isinstance",
            ),
        ),
    ),
    Mutant(
        "a dead holder is not noticed before its deadline",
        "kill-holder",
        (Edit("liveness.py", "(process):\n            listener()", "(process):\n            pass"),),
    ),
    Mutant(
        "a process is known by its pid alone",
        "tests/unit/test_liveness.py::test_a_reused_pid_is_another_process",
        (Edit("liveness.py", "not readable and now_started == started", "not readable"),),
    ),
    Mutant(
        "a lease that Redis forgot is not re-asserted",
        "restart-lost-event",
        (Edit("heartbeat.py", '"missing":\n            return True', '"missing":\n            hold.lose("other")'),),
    ),
    Mutant(
        "a blocked holder does not re-assert",
        "restart-lost-blocked",
        (Edit("guard.py", 'reply = self._call("reassert"', 'reply = None and self._call("reassert"'),),
    ),
    Mutant(
        "a message withdraws what is not ours",
        "forged-messages",
        (Edit("manager.py", '"cancelled", self.inbox.channel)', '"cancelled")'),),
    ),
    Mutant(
        "a forked child uses its parent's connections",
        "fork",
        (Edit("manager.py", "if self._pid != os.getpid():\n            raise", "if False:\n            raise"),),
    ),
    Mutant(
        "a server that is read-only for a while ends the wait",
        "readonly",
        (Edit("redis_client.py", "    rx.ReadOnlyError,\n", ""), Edit("redis_client.py", '    "READONLY",\n', "")),
    ),
)  # fmt: skip


def copy_tree(into: Path) -> Path:
    shutil.copytree(ROOT / "aiogpulock", into / "aiogpulock", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", into / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "config.yml"):
        shutil.copy(ROOT / name, into / name)
    return into


def plant(mutant: Mutant, tree: Path) -> None:
    for file, search, replacement in mutant.edits:
        path = tree / "aiogpulock" / file
        text = path.read_text()
        assert text.count(search) == 1, f"{mutant.name}: {file} has {text.count(search)} times: {search}"
        path.write_text(text.replace(search, replacement))


def hunt(killer: str, tree: Path) -> tuple[bool, str]:
    """Run the killer in a tree. Answers whether it found something, and what."""
    if "/" in killer:
        command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", "--timeout=60", killer]
    else:
        command = ["-m", "tests.faults", "--fault", killer, "--cycles", str(CYCLES)]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith((f"{killer}: ", "FAILED", "ERROR"))]
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{killer} could not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    assert done.returncode == 0 or lines, f"{killer} fell over: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.returncode == 1, lines[0].removeprefix(f"{killer}: ")[:100] if lines else ""


def judge(mutant: Mutant) -> Verdict:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="agm-") as directory:
        tree = copy_tree(Path(directory))
        plant(mutant, tree)
        killed, evidence = hunt(mutant.killer, tree)
    return Verdict(mutant.name, mutant.killer, killed, evidence, time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutants", description=__doc__)
    parser.add_argument("only", nargs="*", help="words of the bugs to plant; default: all")
    parser.add_argument("--no-control", action="store_true", help="do not run the killers on the unchanged tree first")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if all(word in m.name for word in arguments.only)]
    if not arguments.no_control:
        with tempfile.TemporaryDirectory(prefix="agm-") as directory:
            tree = copy_tree(Path(directory))
            for killer in dict.fromkeys(m.killer for m in chosen):
                found, evidence = hunt(killer, tree)
                if found:
                    print(f"{killer} fails without any planted bug: {evidence}")
                    return 1
        print("every killer passes on the unchanged tree\n", flush=True)
    verdicts = []
    for mutant in chosen:
        verdict = judge(mutant)
        verdicts.append(verdict)
        mark = "killed  " if verdict.killed else "SURVIVED"
        print(
            f"{mark}  {verdict.seconds:5.1f} s  {verdict.mutant}\n             by {verdict.killer}: {verdict.evidence}",
            flush=True,
        )
    survived = sum(not verdict.killed for verdict in verdicts)
    print(f"{len(verdicts)} planted bugs, {len(verdicts) - survived} killed, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
