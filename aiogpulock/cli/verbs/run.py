"""``aiogpulock run``: flock(1) for GPUs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys

import click
from click.shell_completion import CompletionItem

from aiogpulock.cli.exits import CONFLICT, NOT_EXECUTABLE, NOT_FOUND
from aiogpulock.cli.options import WAIT, GpuId, Seconds, Target, target_options

MOST_COMPLETIONS = 500
_INTERPRETER = re.compile(r"(python|pypy|bash|sh|dash|zsh|perl|ruby|node)[0-9.]*")


def _complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The command's name as the shell would, then files."""
    if ctx.params.get("words") or "/" in incomplete or not incomplete:
        return [CompletionItem(incomplete, type="file")]
    found = {
        name
        for folder in os.get_exec_path()
        for name in (os.listdir(folder) if os.path.isdir(folder) else ())  # noqa: PTH112, PTH208 - names are all it needs
        if name.startswith(incomplete)
    }
    return [CompletionItem(name) for name in sorted(found)[:MOST_COMPLETIONS]]


@click.command(
    short_help="Run a command while holding a GPU: flock(1) for GPUs.",
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "--gpu", type=GpuId(), metavar="ID", default="0", show_default=True, help="An index, cuda:N, a UUID, or any name."
)
@click.option("-w", "--timeout", type=WAIT, metavar="S", help="Wait for at most S seconds.")
@click.option("-n", "--nonblock", is_flag=True, help="Do not wait: the same as --timeout 0.")
@click.option(
    "-E",
    "--conflict-exit-code",
    type=click.IntRange(0, 255),
    default=CONFLICT,
    show_default=True,
    metavar="N",
    help="Exit status when the GPU was not got in time.",
)
@click.option("--priority", type=click.IntRange(-100, 100), default=0, metavar="N", help="Higher first; -100 to 100.")
@click.option("--name", metavar="TEXT", help="How others see this job; by default the command's file name.")
@click.option(
    "-k",
    "--kill-after",
    type=Seconds(0, 3600),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds between SIGTERM and SIGKILL.",
)
@target_options
@click.argument(
    "words",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    shell_complete=_complete,
    metavar="[--] COMMAND [ARGUMENT]...",
)
def command(
    gpu: str,
    timeout: float | None,
    nonblock: bool,
    conflict_exit_code: int,
    priority: int,
    name: str | None,
    kill_after: float,
    target: Target,
    words: tuple[str, ...],
) -> None:
    """Run a command while holding a GPU, as flock(1) does with a file.

    Waits for its turn, for ever unless told otherwise here or in the settings. The command finds its GPU in
    CUDA_VISIBLE_DEVICES, and AIOGPULOCK_GPU and AIOGPULOCK_TOKEN beside it. What it leaves running is ended with it.

    \b
    Exit status: the command's own, or
      128+N  it died of signal N       75  the GPU was busy (-E)
      126    it cannot be executed     76  the lease was lost, the command ended
      127    there is no such command  69  no Redis      78  wrong settings
    """
    if nonblock and timeout is not None:
        raise click.UsageError("--nonblock and --timeout exclude each other")
    _check_command(words[0])
    # From here on no signal ends this process by surprise, and until the fork it has one thread.
    from aiogpulock.cli.keeper import FORWARDED, start_keeper

    heard = {signum for signum in FORWARDED if signal.getsignal(signum) is not signal.SIG_IGN}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    kept = start_keeper(words, {signal.Signals(signum) for signum in mask})
    from aiogpulock.cli.runner import Wishes, run

    wishes = Wishes(gpu, name or task_name(words), priority, 0.0 if nonblock else timeout, kill_after, target)
    sys.exit(run(wishes, kept, heard, conflict_exit_code))


def _check_command(program: str) -> None:
    """Before the wait for the GPU, not after it."""
    if shutil.which(program) is not None:
        return
    from aiogpulock.cli.app import complain

    found = "/" in program and os.path.exists(program)  # noqa: PTH110 - the only use of a path here
    complain(f"{program}: {'cannot be executed' if found else 'command not found'}")
    sys.exit(NOT_EXECUTABLE if found else NOT_FOUND)


def task_name(words: tuple[str, ...]) -> str:
    """The file name of the command, or of the script that an interpreter runs. Arguments may be secrets."""
    program = words[0].rpartition("/")[2]
    if _INTERPRETER.fullmatch(program) and len(words) > 1 and not words[1].startswith("-"):
        return words[1].rpartition("/")[2]
    return program
