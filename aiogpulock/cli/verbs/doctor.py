"""``aiogpulock doctor``: is everything here as the lock needs it?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from aiogpulock.cli.options import Target, json_option, target_options

if TYPE_CHECKING:
    from aiogpulock.cli.examination import Diagnosis


@click.command(short_help="Check everything here, and say what to do.")
@json_option
@target_options
def command(as_json: bool, target: Target) -> None:
    """Check settings, server, permissions, clock, GPUs and this host, and say what to do about each trouble.

    A trial lock is taken and given back. Exit status: 0 when locks work, with or without warnings; 1 when something
    must be repaired; 69 when Redis cannot be reached; 78 when the settings are wrong.
    """
    import asyncio

    from aiogpulock.cli.examination import examine, status_for
    from aiogpulock.cli.session import print_json

    findings = asyncio.run(examine(target))
    if as_json:
        print_json(findings=findings)
    else:
        _show(findings)
    sys.exit(status_for(findings))


def _show(findings: list[Diagnosis]) -> None:
    from rich.table import Table
    from rich.text import Text

    from aiogpulock.cli.tables import show
    from aiogpulock.cli.words import plain

    styles = {"ok": "green", "info": "dim", "warning": "yellow", "problem": "bold red"}
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(Text(finding.level, styles[finding.level]), Text(finding.check), Text(plain(finding.message)))
    show(table)
