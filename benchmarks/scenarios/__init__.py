"""The scenarios, one module each: TITLE, and `run(stage)`, whose docstring says what is measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.arena import Arena
from benchmarks.peers import Peer
from benchmarks.results import Result

NAMES = (
    "uncontended",
    "handoff",
    "waiters",
    "many_locks",
    "recovery",
    "memory",
    "footprint",
    "inference",
    "monitoring",
)


@dataclass(frozen=True)
class Stage:
    """What a scenario runs on."""

    arena: Arena
    peers: Sequence[Peer]
    quick: bool
    say: Callable[[str], None]
    """Tell the progress bar what is being done."""

    def pick(self, full: Any, quick: Any) -> Any:
        """A size of the full run, or its smaller one."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    run: Callable[[Stage], Result]
    descriptors: Callable[[bool], int]
    """Open files that it needs; a quick run may need fewer."""


def load_scenario(name: str) -> Scenario:
    module = importlib.import_module(f"benchmarks.scenarios.{name}")
    return Scenario(name, module.TITLE, module.run, getattr(module, "descriptors", lambda quick: 0))
