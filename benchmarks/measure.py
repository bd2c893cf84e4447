"""From the holds that processes report to the figures that tables show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmarks.arena import Answer
from benchmarks.contender import Hold


class Spread(NamedTuple):
    """Of some samples: how many, the median, the 99th percentile. NaN without samples."""

    samples: int
    p50: float
    p99: float


def spread(samples: Sequence[float]) -> Spread:
    ordered = sorted(samples)
    if not ordered:
        return Spread(0, float("nan"), float("nan"))
    return Spread(len(ordered), ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)])


def highest_median(samples: Sequence[float]) -> float:
    """The top of the 95 % interval of the median: what their true median does not often exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) / 2 + 0.98 * math.sqrt(len(ordered))))]


class HandOff(NamedTuple):
    """From one hold to the next."""

    crossed: bool
    """Into another process."""
    contended: bool
    """Each of the processes comes back for more: none has done its last round."""


def hand_offs(answers: Sequence[Answer]) -> list[HandOff]:
    """The hand-offs between these processes, in order."""
    turns = [(hold, party) for party, answer in enumerate(answers) for hold in answer.holds]
    turns.sort(key=lambda turn: turn[0].entered)
    last = {party: number for number, (_, party) in enumerate(turns)}
    last |= {party: len(turns) for party, answer in enumerate(answers) if answer.waiting}
    return [
        HandOff(party != next_party, number < min(last.values()))
        for number, ((_, party), (_, next_party)) in enumerate(pairwise(turns))
    ]


def by_entry(holds: Sequence[Hold]) -> list[Hold]:
    return sorted(holds, key=lambda hold: hold.entered)


def overlaps(answers: Sequence[Answer]) -> int:
    """How many bodies began before the one before them had ended: a lock allows none."""
    holds = by_entry([hold for answer in answers for hold in answer.holds])
    return sum(later.entered < earlier.leaving for earlier, later in pairwise(holds))
