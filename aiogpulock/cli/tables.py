"""Tables on stdout: fitted to a terminal, never cut in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from aiogpulock.cli.words import plain

Cell = str | tuple[str, str]
"""A text, or a text and its style."""
IN_A_PIPE = 10_000
"""Columns."""
MIN_WIDTH = 8


def make_console() -> Console:
    """Names from elsewhere are shown as they are: no markup, no emoji, no guesses. NO_COLOR is heeded."""
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = IN_A_PIPE
    return console


def show(picture: RenderableType) -> None:
    """Print it; in a pipe without the blanks that fill up columns."""
    console = make_console()
    if console.is_terminal:
        console.print(picture)
        return
    with console.capture() as captured:
        console.print(picture)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def make_table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], *, gives_way: Sequence[str]) -> Table:
    """Heads that begin with ``>`` stand over numbers. The columns `gives_way` are cut where space is scarce."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for head in heads:
        name = head.removeprefix(">")
        table.add_column(
            name,
            overflow="ellipsis",
            justify="right" if head.startswith(">") else "left",
            no_wrap=name not in gives_way,  # rich narrows those that could wrap first; the cells themselves never do
            min_width=MIN_WIDTH if name in gives_way else None,
        )
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _text(cell: Cell) -> Text:
    text, style = cell if isinstance(cell, tuple) else (cell, "")
    return Text(plain(text), style, no_wrap=True, overflow="ellipsis")
