"""What all verbs share: help, errors, pipes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import redis

from aiogpulock.cli.app import VERBS
from tests.edges.shell import COMMAND, ROOT, Shell

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


def test_a_locale_that_cannot_write_a_name_is_no_failure(shell: Shell, redis_cleanup: redis.Redis) -> None:
    env = {"PYTHONIOENCODING": "ascii"}
    assert shell.run("run", "--name", "größe", "--", "true", env=env).returncode == 0
    shown = shell.run("history", env=env)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "gr??e" in shown.stdout


def test_closed_streams_are_no_failure(shell: Shell, redis_cleanup: redis.Redis) -> None:
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, "run", "--", "sh", "-c", "exit 7"],
        env=shell.env,
        timeout=60,
    )
    assert closed.returncode == 7


@pytest.mark.parametrize(
    ("words", "completion"),
    [
        ("run -- xar", "plain,xargs"),  # a command, as the shell itself would
        ("run --gpu 1 -- python tr", "file,tr"),
        ("run -- ./tr", "file,./tr"),
        ("status --config se", "file,se"),
        ("config check se", "file,se"),
    ],
)
def test_bash_completes_what_run_runs_and_files(shell: Shell, words: str, completion: str) -> None:
    typed = f"aiogpulock {words}"
    variables = {"_AIOGPULOCK_COMPLETE": "bash_complete", "COMP_CWORD": str(typed.count(" ")), "COMP_WORDS": typed}
    assert completion in shell.run(env=variables).stdout.splitlines()
