"""Metrics for Prometheus, made of one look at Redis: whichever process is asked, the answer is the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from aiogpulock.errors import ConfigError
from aiogpulock.gpu.report import Status
from aiogpulock.health import Survey
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

HOW_TO_INSTALL = "pip install 'aiogpulock[server]'"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LOCK = ("gpu", "uuid")
_EXCEPTIONS = ("normal_release_failures", "emergency_releases", "release_script_errors", "ownership_violations")
_LOST = ("lease_expired", "process_gone", "displaced", "forced", "forced_by_monitor")
_FORCED = ("forced", "forced_by_monitor")
_VERDICTS = get_args(Status)


class _Counter(NamedTuple):
    """A counter of the locks' shared statistics; with a label, one value per name."""

    name: str
    help: str
    names: tuple[str, ...]
    label: str = ""
    prefix: str = ""
    """In the statistics the name of a labelled value follows this."""


_COUNTERS = (
    _Counter("attempts", "Requests for the lock.", ("attempts",)),
    _Counter("acquisitions", "How requests ended.", ("acquisitions", "timeouts"), "outcome"),
    _Counter("lease_lost", "Leases that others ended.", _LOST, "reason", "ended_"),
    _Counter("forced_releases", "Live holders and foreign values that were ended.", _FORCED, "reason", "ended_"),
    _Counter("exceptions", "What went wrong while leaving.", _EXCEPTIONS, "kind"),
    _Counter("memory_verdicts", "What became of the memory after a release.", _VERDICTS, "status", "memory_"),
    _Counter("incidents", "Alerts that processes raised.", ("alerts",)),
)
_OUTCOMES = {"acquisitions": "acquired", "timeouts": "timeout"}


async def render_metrics(manager: GpuLockManager, *, timeout: float | None = None) -> bytes:
    """The text that ``/metrics`` answers, of type `CONTENT_TYPE`, within `timeout` seconds as `health_check` does.

    Without Redis it has ``aiogpulock_redis_up 0`` and nothing else. Raises `ConfigError` without prometheus-client.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigError(f"/metrics needs prometheus-client: {HOW_TO_INSTALL}")
    return text_of(await manager.survey(timeout=timeout))


def text_of(survey: Survey) -> bytes:
    """The same of a survey that was made before."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(survey))
    text: bytes = generate_latest(registry)
    return text


class _Collector:
    """A registry of its own per scrape: the truth is in Redis, so there is nothing to keep between scrapes."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey

    def collect(self) -> Iterator[Metric]:
        report, locks = self._survey
        yield _gauge("redis_up", "Whether Redis answers.", float(report.redis_connected))
        if not report.redis_connected:
            return
        yield _gauge("zombies", "Dead locks and queues that nobody has repaired yet.", report.zombie_count)
        if report.clock_offset is not None:
            yield _gauge("clock_offset_seconds", "By how much the server's clock is ahead.", report.clock_offset)
        yield from _gauges(locks)
        yield from _times(locks)
        for counter in _COUNTERS:
            yield _counter(counter, locks)


def _labels(lock: LockSnapshot) -> list[str]:
    return [lock.gpu_id, lock.gpu_id if lock.gpu_id.startswith(("GPU-", "MIG-")) else ""]


def _gauge(name: str, help_text: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"aiogpulock_{name}", help_text, value=value)


def _gauges(locks: Iterable[LockSnapshot]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    families: list[tuple[str, str, Any]] = [
        ("held", "1 while somebody holds the lock.", lambda lock: float(lock.value is not None)),
        ("foreign", "1 while another program's value stands under the key.", lambda lock: float(lock.foreign)),
        ("quarantined", "1 while the GPU is in quarantine.", lambda lock: float(lock.quarantine is not None)),
        ("queue_length", "Requests that wait.", lambda lock: lock.waiters - lock.dead_waiters),
        ("holder_age_seconds", "Since the lease began.", lambda lock: lock.age),
        (
            "holder_silent_seconds",
            "Since the last beat of a holder with a heartbeat.",
            lambda lock: lock.silent_for if lock.beats else None,
        ),
        ("lease_left_seconds", "Until the lease ends without a beat.", lambda lock: lock.deadline_in),
    ]
    locks = list(locks)
    for name, help_text, value_of in families:
        family = GaugeMetricFamily(f"aiogpulock_{name}", help_text, labels=_LOCK)
        for lock in locks:
            value = value_of(lock)
            if value is not None:
                family.add_metric(_labels(lock), value)
        yield family


def _times(locks: Iterable[LockSnapshot]) -> Iterator[Metric]:
    from prometheus_client.core import SummaryMetricFamily

    wait = SummaryMetricFamily("aiogpulock_wait_seconds", "In the queue, of holds that have ended.", labels=_LOCK)
    hold = SummaryMetricFamily("aiogpulock_hold_seconds", "Of holds that have ended.", labels=_LOCK)
    for lock in locks:
        holds = lock.stats.get("holds", 0)
        wait.add_metric(_labels(lock), holds, lock.stats.get("wait_ms", 0) / 1000)
        hold.add_metric(_labels(lock), holds, lock.stats.get("hold_ms", 0) / 1000)
    yield from (wait, hold)


def _counter(counter: _Counter, locks: Iterable[LockSnapshot]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    labels = [*_LOCK, counter.label] if counter.label else _LOCK
    family = CounterMetricFamily(f"aiogpulock_{counter.name}", counter.help, labels=labels)
    for lock in locks:
        for name in counter.names:
            label = [_OUTCOMES.get(name, name)] if counter.label else []
            family.add_metric([*_labels(lock), *label], lock.stats.get(counter.prefix + name, 0))
    return family
