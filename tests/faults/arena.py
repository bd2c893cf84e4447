"""Where one fault is tried: a server, a judge, and workers that contend for one lock."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from aiogpulock import clock
from tests.faults.judge import JudgeProcess, Message
from tests.faults.zygote import ForkedWorker, Zygote
from tests.helpers import left_behind
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.workers import Event

SETTINGS: dict[str, Any] = {
    "heartbeat": {"interval": 0.25, "timeout": 1.5},
    "claim_window": 0.5,
    "restart_grace": 1.0,
    "fallback_timeout": 60.0,  # beyond every bound and `PATIENCE`: who is served by it alone was forgotten
    "poll_interval": 0.1,
    "max_poll_interval": 0.4,
    "max_wait_time": None,
    "redis": {"connect_timeout": 1.0},
}
PATIENCE = 30.0
"""Seconds for what comes by itself unless something is broken: nobody's timer, but the machine's business."""


class Stuck(Exception):
    """No progress within the bound: a lost wake-up."""


class Arena:
    """`workers` contend; `url` is what they connect to, the server's own unless it is told otherwise."""

    def __init__(self, seed: str, *, workers: int = 3, server: RealServer, settings: dict[str, Any]) -> None:
        self.random = random.Random(seed)
        self.server = server
        self.url = server.url
        self.settings = {**SETTINGS, **settings}
        self.config: dict[str, Any] = {}
        """What each worker is started with, beside url, register and settings."""
        self.boots: Iterator[str] | None = None
        """A boot id for each worker, if they are to be on different hosts."""
        self.workers: dict[int, ForkedWorker] = {}
        self.violations: list[str] = []
        self._wanted = workers
        self._seed = seed
        self._cycle: int | None = None
        self._all: list[ForkedWorker] = []
        self._killed: set[int] = set()
        self._directory = Path(tempfile.mkdtemp(prefix="agj-", dir="/tmp"))  # short: a socket path has 103 bytes
        self._client: redis.Redis | None = None
        self._client_pid = 0
        self.judge = JudgeProcess(self._directory)
        self._zygote = Zygote()

    @property
    def client(self) -> redis.Redis:
        """Our own connection, made anew if the server was restarted."""
        if self._client is None or self._client_pid != self.server.pid:
            self._client, self._client_pid = self.server.client(), self.server.pid
        return self._client

    @property
    def lock(self) -> RawLock:
        return RawLock(self.client)

    def begin_cycle(self, number: int, seed: str) -> None:
        """From now on the campaign, the judge and each worker draw by this seed, and violations name the cycle."""
        self._cycle, self._seed = number, seed
        self.random.seed(seed)
        self.judge.cycle(number, seed)
        for place, worker in enumerate(self.workers.values()):
            with contextlib.suppress(BrokenPipeError):  # it has ended: that is told by its end
                worker.tell("seed", seed=f"{seed}/{place}")

    def violated(self, what: str) -> None:
        self.violations.append(what if self._cycle is None else f"{what.rstrip()}, in cycle {self._cycle}")

    # workers

    def start(self, url: str = "", *, contends: bool = True) -> ForkedWorker:
        """One more that contends, on a URL of its own if one is given."""
        config = {
            "url": url or self.url,
            "register": self.judge.path,
            "settings": self.settings,
            "seed": f"{self._seed}/{len(self.workers)}",
            **self.config,
        }
        env = {"AIOGPULOCK_BOOT_ID": next(self.boots)} if self.boots else {}
        worker = self._zygote.worker(config, env)
        self._all.append(worker)
        self.workers[worker.pid] = worker
        if contends:
            worker.tell("contend")
        return worker

    def fill(self) -> None:
        """Start as many as are missing."""
        while len(self.workers) < self._wanted:
            self.start()

    def await_ready(self) -> None:
        """Every worker has reached its server. What cuts it off before is no fault of a lock that is in use."""
        for worker in self.workers.values():
            if worker.find("ready", timeout=PATIENCE) is None:
                raise Stuck(f"worker {worker.pid} never started: {worker.errors[-2000:]}")

    def retire(self, worker: ForkedWorker) -> None:
        """End it in order."""
        worker.let_go()
        self._check_end(worker)
        del self.workers[worker.pid]

    def bury(self, worker: ForkedWorker) -> None:
        """It was killed: forget it."""
        del self.workers[worker.pid]
        self._killed.add(worker.pid)
        worker.wait()

    # holders

    def capture(self, worker: ForkedWorker | None = None) -> tuple[ForkedWorker, Message]:
        """A holder that stays until it is freed, and its entry."""
        entry = self.judge.capture(worker.pid if worker else 0, PATIENCE)
        if not entry:
            raise Stuck(f"nobody entered within {PATIENCE:g} s, before any fault of this cycle; {self._state()}")
        return self.workers[entry["pid"]], entry

    def next(self, since: float, *, bound: float, not_by: ForkedWorker | None = None) -> Message:
        """The first entry since then; raises `Stuck` beyond the bound."""
        timeout = max(0.0, since - clock.now()) + bound
        entry = self.judge.next(since, not_by.pid if not_by else 0, timeout)
        if not entry:
            raise Stuck(f"nobody entered within {bound:g} s; {self._state()}")
        return entry

    def pause(self, most: float, least: float = 0.0) -> None:
        """A moment, drawn by the seed."""
        time.sleep(self.random.uniform(least, most))

    def await_waiters(self, count: int) -> list[int]:
        """Pids of the waiters, first in line first, once there are so many."""
        lock, deadline = self.lock, clock.now() + PATIENCE
        while len(pids := [int(task) for task in lock.queued_tasks() if int(task) in self.workers]) < count:
            if clock.now() > deadline:
                raise Stuck(f"{count} waiters never queued; {self._state()}")
            time.sleep(0.002)
        return pids

    def _state(self) -> str:
        with contextlib.suppress(Exception):
            lock = self.lock
            return f"holder {lock.holder}, queue {lock.queued_tasks()}, value {lock.value!r}, inside {self.inside}"
        return "the server does not answer"

    @property
    def inside(self) -> list[int]:
        pids: list[int] = self.judge.report()["inside"]
        return pids

    def is_out(self, worker: ForkedWorker, *, within: float) -> bool:
        """Whether its body has ended, by the word of the judge, within so many seconds."""
        deadline = clock.now() + within
        while worker.pid in self.inside:
            if clock.now() > deadline:
                return False
            time.sleep(0.01)
        return True

    def said(self, event: str) -> list[Event]:
        """Every time that any worker said so."""
        return [said for worker in self._all for said in list(worker.events) if said["event"] == event]

    def count(self, event: str) -> int:
        return len(self.said(event))

    # end

    def finish(self) -> Message:
        """End the workers in order, look what is left, and answer the judge's report."""
        self._cycle = None
        for worker in self.workers.values():
            worker.let_go()
        for worker in self.workers.values():
            self._check_end(worker)
        if self.server.running:
            self._check_left()
        return self.judge.report()

    def _check_end(self, worker: ForkedWorker) -> None:
        closed = worker.find("closed", timeout=PATIENCE)
        if closed is None:
            self.violated(f"worker {worker.pid} did not end in order: {worker.errors[-2000:]}")
        elif closed["tasks"]:
            self.violated(f"left: {closed['tasks']} tasks after close in worker {worker.pid}")
        elif any(text in worker.errors for text in ("Traceback", "Task was destroyed", "never awaited")):
            self.violated(f"worker {worker.pid} complained: {worker.errors[-3000:]}")

    def _check_left(self) -> None:
        client = self.client
        left = left_behind(client.keys("*"))
        queued = self.lock.queued_tasks()
        if queued and all(int(task) in self._killed for task in queued):
            # The seat of a waiter that was killed stays until its inbox expires.
            left = [key for key in left if not key.endswith((":queue", ":waiters"))]
        names = ["?"]
        for _ in range(1000):  # a proxy takes a moment to close its end
            names = [info["name"] for info in client.client_list() if info["name"].startswith("aiogpulock")]
            if not names:
                break
            time.sleep(0.01)
        if left:
            self.violated(f"left: keys {left}")
        if names:
            self.violated(f"left: connections {names}")

    def close(self) -> None:
        for worker in self._all:
            worker.kill()
            worker.close()
        self._zygote.close()
        self.judge.close()
        shutil.rmtree(self._directory, ignore_errors=True)
