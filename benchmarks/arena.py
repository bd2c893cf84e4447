"""Where contests take place: one real server, and the processes of whoever takes part."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contender import Hold, Order, Setup
from benchmarks.environment import without_settings
from benchmarks.peers import ROOT, Peer
from tests.servers import RealServer

PATIENCE = 20.0
"""Seconds that a process gets beyond what it was ordered to take."""
RESTART_GRACE = 6.2
"""Seconds after a start for which this library may grant nothing: its 5 s, and 1 s as an uptime is in whole ones."""
DESCRIPTORS = 11_000
"""Open files that ten thousand waiters with a connection each need, on the server's side."""


class DoesNotRunError(Exception):
    """A process did not start, ended, or fell silent."""


class Answer(NamedTuple):
    """What one process did."""

    holds: list[Hold]
    cpu: float
    """Seconds of CPU."""
    lags: list[float]
    """Seconds by which its event loop was late, every 5 ms, if that was watched."""
    began: float
    """When it got the order."""
    ended: float
    """When it answered."""
    waiting: list[float]
    """Since when each task waits that is not in yet."""
    failures: int
    errors: list[str]


Failures = Counter[tuple[str, str]]
"""How often something went wrong in a contestant's process: by its title and by the error."""


class Contender:
    """One process that takes part."""

    def __init__(self, peer: Peer, setup: Setup, failures: Failures, env: dict[str, str] | None = None) -> None:
        self.peer = peer
        self._failures = failures
        try:
            python = peer.python()
        except subprocess.CalledProcessError as error:
            why = last_line(str(error.stderr or error))  # of ensurepip there is no stderr
            raise DoesNotRunError(f"its requirements cannot be installed: {why}") from error
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.contender", peer.module, json.dumps(setup._asdict())],
            env=without_settings() | {"PYTHONPATH": str(ROOT)} | (env or {}),
            cwd=tempfile.gettempdir(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def line(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The next line that it prints. Raises `DoesNotRunError`."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise DoesNotRunError(f"no answer within {timeout:.0f} s") from None
        if line is None:
            raise DoesNotRunError(self.complaint() or "it ended")
        if line.get("failures"):
            self._failures[self.peer.title, kind(line["errors"][0])] += line["failures"]
        return line

    def complaint(self) -> str:
        """The last line that it wrote to stderr."""
        return last_line(os.pread(self._stderr.fileno(), 1 << 20, 0).decode("utf-8", "replace"))

    def tell(self, order: Order) -> None:
        self._write(json.dumps(order._asdict()))

    def go_on(self) -> None:
        """End a hold that lasts until told."""
        self._write("")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise DoesNotRunError(self.complaint() or "it ended") from error

    def answer(self, timeout: float = PATIENCE) -> Answer:
        """The answer to an order; what is told of entries before it is passed over."""
        until = time.monotonic() + timeout
        while "holds" not in (line := self.line(max(0.1, until - time.monotonic()))):
            pass
        holds = [Hold(*hold) for hold in line.pop("holds")]
        return Answer(holds, **line)

    def released(self) -> float:
        """When the body of its one hold ended. Raises `DoesNotRunError` if its release failed."""
        answer = self.answer()
        if not answer.holds:
            raise DoesNotRunError(f"the holder's release failed: {', '.join(map(kind, answer.errors))}")
        return answer.holds[0].leaving

    def entered(self, timeout: float = PATIENCE) -> float:
        """When it entered, as told."""
        line = self.line(timeout)
        if "entered" not in line:
            kinds = {kind(error) for error in line["errors"]}
            raise DoesNotRunError(
                f"its waiter fails: {', '.join(kinds)}" if kinds else "it did not acquire the lock in time"
            )
        entered: float = line["entered"]
        return entered

    def told(self) -> float | None:
        """When it entered, if it has told so by now."""
        return None if self._lines.empty() else self.entered(0)

    def kill(self) -> float:
        """SIGKILL; answers when."""
        at = time.monotonic()
        self._process.kill()
        return at

    def end(self) -> None:
        """SIGKILL, until its sockets are closed."""
        self.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP, until it has stopped; or it was killed."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        self.end()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()


class Usage(NamedTuple):
    """What the server has done so far, or between two looks."""

    requests: float
    """Reads from sockets: a command, or a pipeline of them, each."""
    commands: int
    """Those inside scripts among them."""
    cpu: float
    """Seconds."""
    connections: int
    """Open now, without the one that asks."""

    def since(self, before: Usage) -> Usage:
        commands = self.commands - before.commands
        return Usage(self.requests - before.requests, commands, self.cpu - before.cpu, self.connections)


class Arena:
    """One server, and the processes that were started on it."""

    def __init__(self, failures: Failures | None = None) -> None:
        raise_descriptor_limit()
        self.failures: Failures = Counter() if failures is None else failures
        self.server = RealServer(("--maxclients", str(DESCRIPTORS)))
        self._contenders: list[Contender] = []

    def __enter__(self) -> Arena:
        self.server.__enter__()
        try:
            self._client = self.server.client()
            time.sleep(RESTART_GRACE)  # it may have restarted without its data: this library grants nothing for so long
        except BaseException:
            self.server.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.clear()
        finally:
            self.server.close()

    def clear(self) -> None:
        """Dismiss everybody who is left."""
        self.dismiss(self._contenders[:])

    def start(self, peer: Peer, setup: Setup, env: dict[str, str] | None = None) -> Contender:
        """A process that is ready for orders, with a lock of its peer's own. Raises `DoesNotRunError`."""
        contender = Contender(peer, setup._replace(lock=f"{peer.name}-{setup.lock}"), self.failures, env)
        self._contenders.append(contender)
        try:
            contender.line(60)
        except BaseException:
            self.dismiss([contender])
            raise
        return contender

    def crew(self, peer: Peer, processes: int, lock: str, **setup: Any) -> list[Contender]:
        """Several of them, for one lock."""
        crew: list[Contender] = []
        try:
            setups = (Setup(self.server.url, lock, party=each, parties=processes, **setup) for each in range(processes))
            crew.extend(self.start(peer, one) for one in setups)  # as far as they start
        except BaseException:
            self.dismiss(crew)
            raise
        return crew

    @contextlib.contextmanager
    def guests(self, peer: Peer, processes: int, lock: str, **setup: Any) -> Iterator[list[Contender]]:
        """A crew that is dismissed at the end."""
        before = len(self._contenders)
        try:
            yield self.crew(peer, processes, lock, **setup)
        finally:
            self.dismiss(self._contenders[before:])

    def dismiss(self, contenders: Sequence[Contender]) -> None:
        for contender in contenders:
            contender.kill()
        for contender in contenders:
            contender.close()
            with contextlib.suppress(ValueError):  # an interrupt clears the arena while a thread dismisses its own
                self._contenders.remove(contender)

    def usage(self) -> Usage:
        info = self._client.info("everything")
        cpu = info["used_cpu_sys"] + info["used_cpu_user"]
        requests, commands = info["total_reads_processed"], info["total_commands_processed"]
        return Usage(requests, commands, cpu, info["connected_clients"] - 1)

    def wait_until_quiet(self, most: float) -> None:
        """Until nobody came and little was asked for 0.75 s, or for `most` seconds: those who poll are never quiet."""
        until, quiet, before = time.monotonic() + most, 0, self.usage()
        while time.monotonic() < until and quiet < 3:
            time.sleep(0.25)
            now = self.usage()
            calm = now.connections == before.connections and now.since(before).requests < 20
            quiet, before = quiet + 1 if calm else 0, now


def contest(crew: Sequence[Contender], order: Order) -> list[Answer]:
    """The same order for all, at once."""
    for contender in crew:
        contender.tell(order)
    return [contender.answer(order.seconds + PATIENCE) for contender in crew]


ONE_TURN = Order(hold=-1, tell=True)


def take_turns(crew: Sequence[Contender], turns: int, pause: Callable[[], float]) -> list[float]:
    """Seconds from the end of a body to the next one, in the other process, which waits alone: nobody can overtake it.

    `pause` says how long the other has waited before the holder leaves. An odd number of `turns` lets a floor, whose
    processes stand in a ring, begin again with the first.
    """
    holder, waiter = crew
    samples = []
    holder.tell(ONE_TURN)
    holder.entered()
    for _ in range(turns):
        waiter.tell(ONE_TURN)
        time.sleep(pause())
        holder.go_on()
        entered = waiter.entered()
        samples.append(entered - holder.released())
        holder, waiter = waiter, holder
    holder.go_on()
    holder.released()
    return samples


def kind(error: str) -> str:
    """The name of an error's class."""
    return error.partition(":")[0]


def raise_descriptor_limit() -> None:
    """`ulimit -n`, as high as it may go."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def descriptor_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:200]
