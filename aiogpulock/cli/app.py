"""The command: its verbs, each in a file of its own that is imported when it is named, and how errors end it."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

VERBS = (
    *("run", "status", "top", "queue", "history", "wait", "release"),
    *("monitor", "alerts", "serve", "doctor", "config", "completion", "demo"),
)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
CLEAR_LINE = "\r\x1b[K"


class Screen:
    """What stands in the last line of the terminal."""

    transient = False
    """A line that may be written over."""


class Verbs(click.Group):
    """Loads ``aiogpulock.cli.verbs.<verb>`` for each verb; turns the library's errors into one line and a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer needs them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"aiogpulock.cli.verbs.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        from aiogpulock.cli.exits import INTERRUPTED, status_of
        from aiogpulock.errors import GpuLockError

        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()
            return answer
        except GpuLockError as error:
            complain(str(error))
            sys.exit(status_of(error))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Also for --help and --version, which end before any verb: a full disk is one line and a status."""
        from aiogpulock.cli.exits import FAILED

        try:
            return super().main(*args, **extra)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            complain(f"{error.filename or 'stdout'}: {error.strerror}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # at its end Python writes the rest
            sys.exit(FAILED)


def complain(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    from aiogpulock.cli.words import plain

    over = CLEAR_LINE if Screen.transient else ""
    click.echo(f"{over}aiogpulock: {plain(' '.join(text.splitlines()))}", err=True)


class _Stderr(logging.Handler):
    """One line for each record. What is wrong with the settings is said once, however often a verb reads them."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._of_settings: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.startswith("aiogpulock.config"):
            if text in self._of_settings:
                return
            self._of_settings.add(text)
        complain(text)


def listen(level: str) -> None:
    """Show what the library logs from `level` on; at first it is warnings and worse."""
    logger = logging.getLogger("aiogpulock")
    logger.setLevel(level.upper())
    for handler in logger.handlers:
        handler.setLevel(level.upper())


def _repair_streams() -> None:
    """A closed stream gets a file, so that no socket of ours gets its number; a command under `run` finds it closed.

    A name that the locale cannot write is no reason to fail.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="replace")


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"aiogpulock {version('aiogpulock')}")
    except PackageNotFoundError:
        click.echo("aiogpulock, not installed")
    ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def aiogpulock() -> None:
    """A GPU lock for async Python: FIFO, event-driven, crash-safe, over Redis.

    Data goes to stdout, everything else to stderr. Exit statuses: 1 no, 2 usage, 69 no Redis, 75 busy, 76 lease lost,
    78 settings.
    """
    _repair_streams()
    logging.getLogger("aiogpulock").addHandler(_Stderr(logging.WARNING))
