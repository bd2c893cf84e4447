"""Real worker processes: started, told what to do, killed, stopped, continued; none is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
WAIT = 30.0  # seconds; wide, since machines that run tests are busy

Event = dict[str, Any]


class Worker:
    """One process of ``python -m tests.workers``.

    It reads commands from stdin and reports events on stdout, JSON lines both. Every event has `event`, and `at`:
    seconds on the clock of `aiogpulock.clock`, the same for all processes of a machine.
    """

    def __init__(self, program: str, config: dict[str, Any], env: dict[str, str]) -> None:
        self.program = program
        self.events: list[Event] = []
        self._seen = 0
        self._changed = threading.Condition()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = self._spawn(config, env)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _spawn(self, config: dict[str, Any], env: dict[str, str]) -> Any:
        """A `subprocess.Popen`, or what behaves like one."""
        return subprocess.Popen(
            [sys.executable, "-X", "dev", "-m", "tests.workers", self.program, json.dumps(config)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        pid: int = self._process.pid
        return pid

    @property
    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self.events.append({"event": "end of output", "at": time.monotonic()})
            self._changed.notify_all()

    def tell(self, do: str, **arguments: Any) -> None:
        """Send one command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def expect(self, event: str, *, timeout: float = WAIT, **fields: Any) -> Event:
        """The first event of this kind and with these fields, waited for if need be."""
        found = self.find(event, timeout=timeout, **fields)
        if found is None:
            raise AssertionError(
                f"worker {self.program} {self.pid}: no {event!r} {fields} within {timeout} s; "
                f"last events {self.events[-5:]}; stderr ends: {self.errors[-2000:]}"
            )
        return found

    def find(self, event: str, *others: str, timeout: float = 0.0, **fields: Any) -> Event | None:
        """The first event of one of these kinds and with these fields; None if there is none within `timeout` s."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for candidate in self.events:
                    if candidate["event"] in (event, *others) and fields.items() <= candidate.items():
                        return candidate
                ended = bool(self.events) and self.events[-1]["event"] == "end of output"
                if ended or not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return None

    def signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    def kill(self) -> float:
        """SIGKILL; answers when, on the clock of the events."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._process.kill()
        return now

    def stop(self) -> None:
        """SIGSTOP; returns when the process is stopped."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def cont(self) -> None:
        self.signal(signal.SIGCONT)

    def wait(self, timeout: float = WAIT) -> int:
        """The exit status; negative: ended by that signal."""
        status: int = self._process.wait(timeout)
        return status

    def close(self) -> None:
        """End it: in order if it can, by SIGKILL if it must."""
        with contextlib.suppress(ProcessLookupError):
            self.cont()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()


class Crew:
    """Starts workers, and ends all of them with the test."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self.may_complain: set[int] = set()
        """Pids of workers whose stderr may hold a traceback."""

    def start(
        self,
        url: str,
        *,
        program: str = "driven",
        boot: str = "",
        register: str = "",
        ready: bool = True,
        **settings: Any,
    ) -> Worker:
        """A worker with a manager on `url`. Another `boot` id puts it, for the others, on another host.

        Without a `restart_grace` there is none: the server may just have been started for this test.
        """
        config = {"url": url, "register": register, "settings": {"restart_grace": 0} | settings}
        worker = Worker(program, config, {"AIOGPULOCK_BOOT_ID": boot} if boot else {})
        self._workers.append(worker)
        if ready:
            worker.expect("ready")
        return worker

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        complaints = []
        for worker in reversed(self._workers):
            worker.signal(signal.SIGCONT)
        for worker in reversed(self._workers):
            with contextlib.suppress(OSError):
                assert worker._process.stdin is not None
                worker._process.stdin.close()
        for worker in reversed(self._workers):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(10)
            if ("Traceback" in worker.errors or "Task was destroyed" in worker.errors) and (
                worker.pid not in self.may_complain
            ):
                complaints.append(worker.errors)
            worker.close()
        if error is None:
            assert not complaints, "\n".join(complaints)
