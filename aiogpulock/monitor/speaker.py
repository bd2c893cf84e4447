"""Of monitors that tell the same people one speaks: they are told once, and nothing is lost when another takes over."""

from __future__ import annotations

import math
import secrets
from contextlib import suppress
from typing import NamedTuple

from aiogpulock import clock
from aiogpulock.errors import GpuLockError, ProtocolError
from aiogpulock.keys import speaker_key, told_key
from aiogpulock.redis_client import RedisClient


class Turn(NamedTuple):
    """Who tells people in this round, and what they know already."""

    speaks: bool
    began: float
    """Epoch seconds, the server's clock, whole milliseconds as in the ids of a stream."""
    told_until: float
    """People have been told all that there was until then, on the same clock; 0: nobody watched of late."""
    spoken_until: float
    """The same on this host's `clock.now`; -inf: never."""


class Speaker:
    """The key that says who speaks lapses after `ROUNDS` rounds without it: then another monitor takes over.

    Beside it stands until when people have been told all: whoever takes over goes on from there. There is one for each
    audience (`Alerts.audience`); a new one, where the URLs have changed, goes on from where the one that knows most is.
    A monitor without an audience always speaks: its log is nobody else's. All monitors repair; whoever speaks tells of
    it, also of what another did. Without Redis each tells that Redis is away.
    """

    ROUNDS = 3
    KEEP_TOLD = 3600.0
    """Seconds without any monitor after which what happened is no news any more."""

    def __init__(self, namespace: str, audience: str) -> None:
        self._key = speaker_key(namespace, audience) if audience else None
        log, newest = told_key(namespace, "log"), told_key(namespace)
        self._writes = (told_key(namespace, audience), newest) if audience else (log,)
        self._reads = (self._writes[0], newest, log)
        self._name = secrets.token_hex(8).encode()
        self._speaks = False
        self._told_until = 0.0

    async def turn(self, client: RedisClient, interval: float) -> Turn:
        """Ask before looking at the locks: what there was when the turn began is seen by then.

        `interval`: seconds between rounds. Raises `RedisUnavailableError`, `AuthenticationError`.
        """
        asked = clock.now()
        speaks = await self._claim(client, interval)
        told = await self._told(client)
        seconds, micros = await client.execute("TIME")
        began = (int(seconds) * 1000 + int(micros) // 1000) / 1000
        told_until = min(told, began)
        return Turn(speaks, began, told_until, asked - (began - told_until) if told_until else -math.inf)

    async def has_told(self, client: RedisClient, turn: Turn, interval: float) -> None:
        """People know all that this turn has found. Never raises: told twice is better than lost."""
        if not turn.speaks:
            return
        self._told_until = turn.began
        keep = round(max(self.KEEP_TOLD, 2 * self.ROUNDS * interval))
        with suppress(GpuLockError):
            for key in self._writes:
                await client.execute("SET", key, f"{turn.began:.3f}", "EX", keep)

    async def resign(self, client: RedisClient) -> None:
        """Let another one speak at once. Never raises."""
        if self._speaks and self._key:
            self._speaks = False
            with suppress(GpuLockError):
                if await client.execute("GET", self._key) == self._name:
                    await client.execute("DEL", self._key)

    async def _told(self, client: RedisClient) -> float:
        if self._told_until and not self._key:
            return self._told_until  # what others tell their logs is not in this one
        for key in self._reads:
            with suppress(ProtocolError):  # something else has the key
                if seconds := _seconds(await client.execute("GET", key)):
                    return max(seconds, self._told_until)
        return self._told_until

    async def _claim(self, client: RedisClient, interval: float) -> bool:
        """A server that refuses writes: all speak."""
        if self._key is None:
            return True
        ttl = max(1000, round(self.ROUNDS * interval * 1000))
        try:
            other = await client.execute("SET", self._key, self._name, "NX", "GET", "PX", ttl)
            if other == self._name:
                await client.execute("PEXPIRE", self._key, ttl)
            self._speaks = other in (None, self._name)
        except GpuLockError:
            self._speaks = True
        return self._speaks


def _seconds(text: bytes | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        return 0.0
    return seconds if 0 < seconds < math.inf else 0.0
