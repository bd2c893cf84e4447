"""Contestants whose batches alternate, so that whatever disturbs one disturbs all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from benchmarks.arena import Contender, DoesNotRunError
from benchmarks.peers import Peer
from benchmarks.results import Column, Row
from benchmarks.scenarios import Stage


class Course(Protocol):
    """One contestant's processes and samples."""

    crew: list[Contender]
    seconds: list[float]


C = TypeVar("C", bound=Course)


class Field(Generic[C]):
    """Who takes part. A peer that fails drops out and keeps the samples it has; this library and the floors may not."""

    def __init__(self, stage: Stage, cast: Sequence[Peer], course: Callable[[], C], columns: Sequence[Column]) -> None:
        self.courses = {peer: course() for peer in cast}
        self.absent: list[Row] = []
        """Of those without a sample: why."""
        self._stage = stage
        self._columns = columns
        self._running = list(cast)

    def start(self, step: Callable[[Peer, C], None]) -> None:
        """`step` starts the processes of a course."""
        for peer in list(self._running):
            self._stage.say(f"start {peer.title}")
            self._try(peer, step)

    def batch(self, number: int, step: Callable[[Peer, C], None]) -> None:
        """`step` adds samples to a course."""
        for peer in list(self._running):
            self._stage.say(f"batch {number + 1}: {peer.title}")
            if error := self._try(peer, step):
                self._stage.arena.failures[peer.title, str(error)] += 1

    def dismiss(self) -> None:
        for peer in self._running:
            self._stage.arena.dismiss(self.courses[peer].crew)

    def _try(self, peer: Peer, step: Callable[[Peer, C], None]) -> DoesNotRunError | None:
        course = self.courses[peer]
        try:
            step(peer, course)
        except DoesNotRunError as error:
            if peer not in self._stage.peers:
                raise
            self._running.remove(peer)
            self._stage.arena.dismiss(course.crew)
            if not course.seconds:
                del self.courses[peer]
                self.absent.append(Row.absent(peer.title, str(error), self._columns))
            return error
        return None
