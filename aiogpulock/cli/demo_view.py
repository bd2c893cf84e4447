"""What a person sees of the demo: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Literal, Protocol, Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

State = Literal["starts", "holds", "waits", "pauses", "killed", "done"]
Tone = Literal["plain", "good", "bad"]
STYLES: dict[State, str] = {"holds": "bold green", "waits": "", "killed": "bold red"}
TONES: dict[Tone, str] = {"plain": "dim", "good": "green", "bad": "red"}
"""Of what happened."""
VERDICTS: dict[Tone, str] = {"plain": "", "good": "bold green", "bad": "bold red"}
QUIET = "dim"


@dataclass(frozen=True)
class Row:
    """One worker at one moment."""

    name: str
    pid: int
    state: State
    position: int
    """In the queue, from 1; 0: not in it."""
    acquisitions: int


@dataclass(frozen=True)
class Event:
    """One line of what happened."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Frame:
    """The whole scene at one moment."""

    title: str
    rows: tuple[Row, ...]
    holder: Row | None
    token: int | None
    queue: tuple[str, ...]
    elapsed: float
    seconds: float
    story: tuple[Event, ...]

    @property
    def acquisitions(self) -> int:
        return sum(row.acquisitions for row in self.rows)


@dataclass(frozen=True)
class Line:
    """One line of the summary."""

    label: str
    text: str
    tone: Tone = "plain"


class View(Protocol):
    """Where the demo shows what happens."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def tell(self, event: Event) -> None: ...
    def show(self, frame: Frame) -> None: ...
    def sum_up(self, lines: list[Line]) -> None: ...


def make_view() -> View:
    """The live table if stdout is a terminal that can move its cursor, else plain lines."""
    console = Console(highlight=False, emoji=False, markup=False)
    return LiveView(console) if sys.stdout.isatty() and not console.is_dumb_terminal else PlainView()


class PlainView:
    """Lines for pipes and logs: each event, and the state once a second."""

    EVERY: ClassVar[float] = 1.0

    def __init__(self) -> None:
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def tell(self, event: Event) -> None:
        click.echo(event.text)

    def show(self, frame: Frame) -> None:
        if time.monotonic() < self._next or frame.holder is None:
            return
        self._next = time.monotonic() + self.EVERY
        click.echo(
            f"{frame.elapsed:4.1f} s  {frame.acquisitions:4} acquisitions, {_holder(frame)}, "
            f"queue: {', '.join(frame.queue) or 'empty'}"
        )

    def sum_up(self, lines: list[Line]) -> None:
        click.echo()
        for line in lines:
            click.echo(f"{line.label:<16}{line.text}")


class LiveView:
    """A table that is drawn over and over in the same place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def tell(self, event: Event) -> None:
        """The story is part of the next frame."""

    def show(self, frame: Frame) -> None:
        self._live.update(picture(frame), refresh=True)

    def sum_up(self, lines: list[Line]) -> None:
        table = Table.grid(padding=(0, 3))
        for line in lines:
            table.add_row(Text(line.label, QUIET), Text(line.text, VERDICTS[line.tone]))
        self._console.print(Padding(table, (1, 1)))


def picture(frame: Frame) -> RenderableType:
    """The frame as rich draws it."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row(Text("holder", QUIET), Text(_holder(frame), no_wrap=True))
    facts.add_row(Text("queue", QUIET), Text(", ".join(frame.queue) or "empty", no_wrap=True, overflow="ellipsis"))
    progress = Table.grid(padding=(0, 2))
    progress.add_row(
        ProgressBar(total=frame.seconds, completed=min(frame.elapsed, frame.seconds), width=40),
        Text(f"{min(frame.elapsed, frame.seconds):.1f} of {frame.seconds:g} s", QUIET),
    )
    parts: list[RenderableType] = [Text(frame.title, "bold"), Text(), _table(frame), Text(), facts, Text(), progress]
    if frame.story:
        parts += [Text(), *(Text(event.text, TONES[event.tone]) for event in frame.story)]
    return Padding(Group(*parts), (1, 1, 0, 1))


def _table(frame: Frame) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style=QUIET)
    for name, width, right in (("worker", 10, 0), ("pid", 8, 1), ("state", 12, 0), ("acquisitions", 12, 1)):
        table.add_column(name, min_width=width, justify="right" if right else "left", no_wrap=True)
    for row in frame.rows:
        state = f"waits, {_ordinal(row.position)}" if row.state == "waits" else row.state
        style = STYLES.get(row.state, QUIET)
        table.add_row(Text(row.name), Text(str(row.pid)), Text(state, style), Text(str(row.acquisitions)))
    return table


def _holder(frame: Frame) -> str:
    if frame.holder is None:
        return "nobody"
    return f"{frame.holder.name} (pid {frame.holder.pid}), fencing token {frame.token}"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
