"""What became of the memory of a hold: decided, mostly behind the hand-off, and told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from msgspec import structs

from aiogpulock.config import GpuMemorySettings
from aiogpulock.episode import SAME_PROCESS, Before, Episode, Standing
from aiogpulock.errands import Errands
from aiogpulock.errors import GpuLockError
from aiogpulock.gpu.records import NvmlError
from aiogpulock.gpu.report import BACK, MemoryReport, crept, in_haste, stood
from aiogpulock.gpu.samples import CONTEXT_BYTES, Baseline, MemorySample, Terms, with_own
from aiogpulock.gpu.verify import Reader, Verification, as_before, skipped, unverifiable
from aiogpulock.lease import Hold
from aiogpulock.scripts import Scripts

logger = logging.getLogger(__name__)

VERDICT_AFTER = 0.010
"""Seconds after a release until its verdict is begun: a process that takes the lock again by then needs none."""
LAST_WORD = 0.25
"""Seconds after which the verdicts under way are final when the manager is closed."""
HUNG = 1.0
"""Seconds that closing waits for them: the driver may hang."""
LOST = "the lease was lost: the memory is somebody else's affair"

_LEVELS = {"not_freed": logging.WARNING, "foreign": logging.WARNING, "unverifiable": logging.INFO}


@dataclass(frozen=True, slots=True)
class Care:
    """One hold's memory."""

    hold: Hold
    settings: GpuMemorySettings
    before: Before
    episode: Episode

    @property
    def terms(self) -> Terms:
        memory = self.settings
        return Terms(tolerance=memory.tolerance_bytes, context=memory.context_bytes, settle_time=memory.settle_time)


class Found(NamedTuple):
    """What a look at the memory, or several, told."""

    report: MemoryReport
    last: MemorySample | None
    """The last look."""
    unanswered: bool
    """The driver did not answer, and may do so later."""


class Verdict:
    """A verdict to come, or under way, on the event loop of the hold; `decide` is that way."""

    def __init__(
        self, care: Care, decide: Callable[[Verdict], Coroutine[Any, Any, None]], under_way: set[Verdict]
    ) -> None:
        self.care = care
        self.hurried = False
        """The manager is being closed."""
        self.task: asyncio.Task[None] | None = None
        self._decide = decide
        self._under_way = under_way
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(VERDICT_AFTER, self.begin)
        under_way.add(self)

    @property
    def is_stranded(self) -> bool:
        """Its event loop was closed: it never comes."""
        return self._loop.is_closed()

    def begin(self) -> None:
        self._timer.cancel()
        self.task = asyncio.create_task(self._decide(self), name="aiogpulock-verdict")

    def end(self) -> None:
        """On its own loop."""
        self._under_way.discard(self)
        self._timer.cancel()
        if self.task is not None:
            self.task.cancel()

    def give_up(self) -> None:
        """The process holds the GPU again. Called on whatever thread."""
        hold = self.care.hold
        hold.memory_report = skipped(hold.gpu.id, SAME_PROCESS)
        if asyncio._get_running_loop() is self._loop:
            self.end()
        else:
            with suppress(RuntimeError):  # the loop is closed, and the task with it
                self._loop.call_soon_threadsafe(self.end)


class Verdicts:
    """The verdicts of one manager."""

    def __init__(self, nvml: Reader, scripts: Scripts, errands: Errands) -> None:
        self._nvml = nvml
        self._scripts = scripts
        self._errands = errands
        self._under_way: set[Verdict] = set()

    async def now(self, care: Care, not_yet: Callable[[], Awaitable[bool]]) -> Found:
        """The verdict while the lock is still held. `not_yet` is called when a look finds memory that is not back."""
        found = await self._verdict(care, not_yet, lambda: LOST if care.hold.lost_reason is not None else "")
        if found.report.status not in ("skipped", "unverifiable"):
            self._judged(care, found.last)
        return found

    def _judged(self, care: Care, last: MemorySample | None) -> None:
        if last is None or last.own is None or not care.before.apart:
            care.episode.judged(last, None)
        elif overdue := care.episode.judged_apart(care.hold, care.before, last, care.terms):
            self._tell_overdue(care, overdue, last)

    def later(self, care: Care) -> None:
        """The hold is over: begin its verdict soon, behind the hand-off."""
        verdict = Verdict(care, self._decide, self._under_way)
        if not care.episode.end(care.hold, verdict):
            verdict.give_up()

    async def _decide(self, verdict: Verdict) -> None:
        """Cancelled as its program ends, it stays under way: `close` tries once more."""
        care, episode = verdict.care, verdict.care.episode
        granted = partial(self._granted_since, care.hold)
        ended = partial(self._again_held, verdict)
        judge_by = partial(self._judge_by, verdict)
        found = await self._verdict(care, granted, ended, judge_by, hurried=verdict.hurried)
        unknown = found.report.status == "unverifiable"
        counts = episode.unjudged(verdict) if unknown else episode.judged(found.last, verdict)
        self._under_way.discard(verdict)
        if counts:
            self.tell(care.hold, found.report, guessed=care.before.is_a_guess(care.terms.tolerance))

    def _judge_by(self, verdict: Verdict, baseline: Baseline, sample: MemorySample) -> tuple[Baseline, bool]:
        care, before = verdict.care, baseline.sample.own
        if before is None:
            return baseline, False
        own, overdue = care.episode.saw(verdict, care.hold, before, sample, care.terms)
        if overdue is not None:
            self._tell_overdue(care, overdue, sample)
        return with_own(baseline, own), overdue is not None

    def _tell_overdue(self, care: Care, overdue: Standing, sample: MemorySample) -> None:
        care.episode.told()
        gpu = overdue.hold.gpu.id
        self.tell(overdue.hold, stood(gpu, overdue.bytes, overdue.before, overdue.since, sample, care.terms))

    def _again_held(self, verdict: Verdict) -> str:
        return "" if verdict.care.episode.is_awaited(verdict) else SAME_PROCESS

    async def at_a_glance(self, care: Care) -> Found:
        """What one look says, while the lock is still held."""
        try:
            baseline = await care.before.baseline(care.terms.tolerance)
        except NvmlError as error:
            return _unseen(care, error)
        verification = self._verification(care, care.terms)
        report = await verification.glance(baseline)
        return Found(report, verification.last, verification.unanswered)

    async def _verdict(
        self,
        care: Care,
        granted: Callable[[], Awaitable[bool]],
        ended: Callable[[], str],
        judge_by: Callable[[Baseline, MemorySample], tuple[Baseline, bool]] = as_before,
        *,
        hurried: bool = False,
    ) -> Found:
        terms, hurried = care.terms, hurried and care.terms.settle_time > LAST_WORD
        if hurried:
            terms = structs.replace(terms, settle_time=LAST_WORD)
        try:
            baseline = await care.before.baseline(terms.tolerance)
        except NvmlError as error:
            return _unseen(care, error)
        verification = self._verification(care, terms, granted=granted, ended=ended, judge_by=judge_by)
        report = await verification.run(baseline)
        last = verification.last
        own = last.own if last is not None else None
        if hurried:
            report = in_haste(report, baseline, own, terms)
        report = self._with_what_crept(care.episode, report, own, terms)
        return Found(report, last, verification.unanswered)

    def _verification(self, care: Care, terms: Terms, **asked: Any) -> Verification:
        before, family = care.before, care.before.family
        return Verification(self._nvml, care.hold.gpu.id, before.uuid, family.pids, terms, kin=family.kin, **asked)

    def _with_what_crept(self, episode: Episode, report: MemoryReport, own: int | None, terms: Terms) -> MemoryReport:
        before, now = report.baseline, report.used
        if report.status in BACK and own is not None and before is not None and now is not None:
            report = crept(report, *episode.crept(before, now), terms)
        if report.status == "not_freed":
            episode.told()
        return report

    async def _granted_since(self, hold: Hold) -> bool:
        """Where Redis does not tell, somebody may have been."""
        try:
            return await self._scripts.granted_since(hold.keys, hold.token)
        except GpuLockError:
            return True

    def tell(self, hold: Hold, report: MemoryReport, *, guessed: bool = False) -> None:
        """On the lease, in the log, and in the lock's history."""
        hold.memory_report = report
        level = _LEVELS.get(report.status, logging.DEBUG)
        context = hold.memory.context_bytes if hold.memory is not None else CONTEXT_BYTES
        if report.status == "unverifiable" and not guessed and (report.bytes or 0) > report.tolerance + context:
            level = logging.WARNING  # it may be a leak
        status, key = report.status, hold.keys.lock
        figures = {"memory_status": status, "memory_bytes": report.bytes, "memory_seconds": report.seconds}
        text = "memory of %s after %s: %s, %s"
        logger.log(level, text, key, hold.task_name, status, report.reason, extra={"lock_key": key, **figures})
        if report.status != "skipped":
            note = partial(self._scripts.verdict, hold.keys, hold.id, hold.token, hold.task_name, report)
            self._errands.add(f"verdict on {hold.id}", note)

    async def close(self) -> None:
        """Give the verdicts under way a moment, those too that were cancelled before, as a program ends.

        Without one, the next hold of this process is judged by the time before this one.
        """
        await _ended([verdict.task for verdict in self._under_way if verdict.task is not None], patience=0)
        for verdict in list(self._under_way):
            verdict.hurried = True
            verdict.begin()
        await _ended([verdict.task for verdict in self._under_way if verdict.task is not None], patience=HUNG)
        for verdict in list(self._under_way):
            self._under_way.discard(verdict)
            hold = verdict.care.hold
            if verdict.care.episode.unjudged(verdict):
                hold.memory_report = skipped(hold.gpu.id, "its manager was closed before a verdict")


def _unseen(care: Care, error: NvmlError) -> Found:
    """Nobody knows what there was before the hold."""
    return Found(unverifiable(care.hold.gpu.id, f"{error.status}: {error}"), None, not error.lasts)


async def _ended(tasks: Sequence[asyncio.Task[None]], *, patience: float) -> None:
    """Cancel them after so many seconds."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=patience)
        for task in late:
            task.cancel()
        await asyncio.wait(tasks)
