"""The guard thread: it beats while the event loop is blocked, by a synchronous CUDA call for example.

It has its own connection, and sits on it: the drop of that connection is also how a holder whose loop is blocked
notices that the server restarted, in time to re-assert within the restart grace.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import redis
import redis.exceptions as rx
from redis.backoff import NoBackoff
from redis.retry import Retry

from aiogpulock import clock
from aiogpulock.heartbeat import Holds, settle
from aiogpulock.keys import LockKeys
from aiogpulock.lease import Hold
from aiogpulock.redis_client import connection_options
from aiogpulock.replies import parse_beat
from aiogpulock.scripts import load_script, script_command

logger = logging.getLogger(__name__)


class Guard:
    """Steps in when the loop's beat is half an interval late, for at most `max_stall` seconds per stall.

    If `loop` was closed and its manager was not, the thread releases what is held, and ends by itself.

    `ticked_at` tells when the loop last ran its heartbeat; `on_stall` is called once per stall, from this thread;
    `restored` after a re-assertion, on the loop when it runs again.
    """

    FASTEST: ClassVar[float] = 0.05
    """Seconds between two looks, at least."""
    RECONNECT: ClassVar[float] = 0.1
    PATIENCE: ClassVar[float] = 0.5
    """Seconds that the loop has to answer, once its beat is late, before it counts as blocked."""

    def __init__(
        self,
        url: str,
        holds: Holds,
        loop: asyncio.AbstractEventLoop,
        *,
        timeout: float,
        ticked_at: Callable[[], float],
        clean_run: Callable[[], str],
        on_stall: Callable[[Hold, float], None],
        restored: Callable[[Hold], None],
    ) -> None:
        self._holds = holds
        self._loop = loop
        self._timeout = timeout
        self._ticked_at = ticked_at
        self._clean_run = clean_run
        self._on_stall = on_stall
        self._restored = restored
        options = connection_options(url, connect_timeout=timeout, name="aiogpulock-guard")
        retry = Retry(NoBackoff(), 0)
        self._pool = redis.ConnectionPool.from_url(**{**options, "socket_timeout": timeout, "retry": retry})
        self._connection: Any | None = None
        self._period = 60.0
        self._stopping = False
        self._asked_at: float | None = None
        self._answered = threading.Event()
        """Set by the loop as soon as it runs."""
        self._reported = False
        self._mutex = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="aiogpulock-guard", daemon=True)
        self._thread.start()

    def cover(self, hold: Hold) -> None:
        """Look often enough for `hold`."""
        period = max(hold.terms.interval / 4, self.FASTEST)
        if period < self._period:
            self._period = period
            self._wake()

    def close(self) -> None:
        """Stop; waits for the thread for as long as a Redis call of it may take. Idempotent."""
        self._stop()
        self._thread.join(self._timeout + 1)

    def _stop(self) -> None:
        """Once: a number that is closed twice may be another file's by then."""
        with self._mutex:
            if not self._stopping:
                self._stopping = True
                os.write(self._wake_write, b"x")  # the end of a pipe is no word while a forked child has a copy
                os.close(self._wake_write)

    def _wake(self) -> None:
        with self._mutex:
            if not self._stopping:
                os.write(self._wake_write, b"x")

    def _run(self) -> None:
        dropped = False
        while not self._stopping:
            try:
                self._look(reconnected=dropped)
            except Exception:  # whatever it is, the leases must be guarded
                logger.exception("guard thread: going on after an error")
                self._drop()
            if self._is_over():
                self._stop()  # nobody else is left to do it
            dropped = self._sleep()
        self._drop()
        with self._mutex:  # whoever stops it may not have written yet
            os.close(self._wake_read)

    def _is_over(self) -> bool:
        """The loop was closed, and no lease is left to release: all were, or have ended in Redis too."""
        return self._loop.is_closed() and all(
            hold.state in ("released", "lost") or clock.now() >= hold.ends_at for hold in self._guarded()
        )

    def _guarded(self) -> list[Hold]:
        return [hold for hold in self._holds.all() if hold.terms.max_stall > 0]

    def _sleep(self) -> bool:
        """Until the next look; answers whether the connection was dropped meanwhile."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        descriptor = self._descriptor()
        if descriptor >= 0:
            poll.register(descriptor, select.POLLIN)
        pause = self._period if descriptor >= 0 else min(self._period, self.RECONNECT)
        ready = {fd for fd, _ in poll.poll(pause * 1000)}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if descriptor >= 0 and descriptor in ready:
            self._drop()  # nothing is ever sent unasked on this connection but its end
            return True
        return descriptor < 0

    def _look(self, *, reconnected: bool) -> None:
        guarded = self._guarded()
        if not self._connected() or not guarded:
            return
        if self._loop.is_closed():
            for hold in guarded:
                self._release(hold)
            return
        holds = [hold for hold in guarded if hold.state == "held"]
        if not holds:
            return
        late = clock.now() - self._ticked_at()
        for hold in holds:
            if not hold.terms.heartbeat:
                continue
            if hold.overdue:
                hold.lose("stalled" if late > hold.terms.max_stall else "lease_expired")
            elif late <= hold.terms.max_stall and (reconnected or self._is_due(hold, late)):
                self._beat(hold)
        self._report(holds[0], late)

    def _is_due(self, hold: Hold, late: float) -> bool:
        interval = hold.terms.interval
        return late >= 1.5 * interval and clock.now() - hold.beat_at >= interval / 2

    def _report(self, hold: Hold, late: float) -> None:
        """A late beat is no stall yet: it may be Redis that hangs. So the loop itself is asked."""
        if late < 1.5 * hold.terms.interval or self._answered.is_set():
            self._asked_at, self._reported = None, False
            self._answered.clear()
        elif self._asked_at is None:
            self._asked_at = clock.now()
            with suppress(RuntimeError):  # the loop was closed just now: the next look sees that
                self._loop.call_soon_threadsafe(self._answered.set)
        elif not self._reported and clock.now() - self._asked_at > self.PATIENCE:
            self._reported = True
            self._on_stall(hold, late)

    def _beat(self, hold: Hold) -> None:
        sent_at = clock.now()
        reply = self._call("heartbeat", hold.keys, (hold.id, hold.token, *hold.terms.lease))
        if reply is not None and settle(hold, parse_beat(reply, hold.keys), sent_at) and hold.state == "held":
            sent_at = clock.now()
            claim = (hold.id, hold.token, *hold.terms.lease, *hold.reassertion())
            reply = self._call("reassert", hold.keys, claim)
            if reply is not None:
                beat = parse_beat(reply, hold.keys)
                settle(hold, beat, sent_at)
                if beat.status == "renewed":
                    with suppress(RuntimeError):  # the loop was closed just now: the next look releases
                        self._loop.call_soon_threadsafe(self._restored, hold)

    def _release(self, hold: Hold) -> None:
        """The loop is closed: nobody is left to run the body, so the lease ends."""
        hold.begin_release()
        if hold.state == "releasing" and self._call(
            "release", hold.keys, (hold.id, hold.token, "leaked", "", 1), terms=hold.terms.script
        ):
            hold.end_release()

    # its connection

    def _descriptor(self) -> int:
        sock = self._connection._sock if self._connection is not None else None
        return sock.fileno() if sock is not None else -1

    def _connected(self) -> bool:
        if self._connection is None:
            # Not by its make_connection, which counts: after a hundred attempts it refuses.
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            try:
                connection.connect()
            except (rx.RedisError, OSError):
                return False
            self._connection = connection
        return True

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _call(self, name: str, keys: LockKeys, arguments: tuple[Any, ...], terms: tuple[int, int] = (0, 0)) -> Any:
        """Run one script; None if it could not be run now: the next look tries again."""
        if self._connection is None:
            return None
        command = script_command(name, keys, (*terms, self._clean_run(), *arguments))
        try:
            self._connection.send_command(*command, check_health=False)
            try:
                return self._connection.read_response()
            except rx.NoScriptError:
                self._connection.send_command("EVAL", load_script(name).source, *command[2:], check_health=False)
                return self._connection.read_response()
        except rx.ResponseError as error:
            logger.warning("guard thread: %s of %s failed: %s", name, keys.lock, error)
        except (rx.RedisError, OSError) as error:
            logger.warning("guard thread: connection lost: %s", error)
            self._drop()
        return None
