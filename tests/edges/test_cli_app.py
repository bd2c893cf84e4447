"""What all verbs share: help, errors, pipes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aiogpulock.cli.app import VERBS
from tests.edges.shell import ROOT, Shell

HEAVY = ("redis", "rich", "asyncio", "yaml", "msgspec", "pynvml", "starlette", "apprise")


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_imports_nothing_heavy(verb: str | None) -> None:
    words = [verb, "--help"] if verb else ["--help"]
    program = f"""
import sys
sys.argv = ["aiogpulock", *{words!r}]
from aiogpulock.cli import main
try:
    main()
except SystemExit as end:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    sys.stderr.write(" ".join(loaded))
    raise
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)

    assert done.returncode == 0
    assert done.stdout.startswith("Usage: aiogpulock")
    assert done.stderr == ""
    assert "..." not in done.stdout.partition("Commands:")[2]  # nothing is cut
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_shells_complete_verbs(kind: str, shell: Shell) -> None:
    script = shell.run("completion", kind)
    assert script.returncode == 0
    assert "_AIOGPULOCK_COMPLETE" in script.stdout


def test_bash_completes_a_verb_and_its_options(shell: Shell) -> None:
    words = {"_AIOGPULOCK_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "aiogpulock qu"}
    assert shell.run(env=words).stdout == "plain,queue\n"
    words |= {"COMP_CWORD": "2", "COMP_WORDS": "aiogpulock run --nonb"}
    assert shell.run(env=words).stdout == "plain,--nonblock\n"
