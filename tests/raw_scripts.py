"""The shipped scripts, called one by one on a real server; and the lock's keys, read from outside."""

from __future__ import annotations

from typing import Any

import redis

from aiogpulock.keys import LockKeys, lock_keys
from aiogpulock.scripts import load_script


class RawLock:
    """One lock as the scripts and Redis see it. Times in ms; every call is one EVAL by `client`."""

    def __init__(
        self, client: redis.Redis, gpu: str = "0", *, window: int = 2000, grace: int = 0, clean_run: str = ""
    ) -> None:
        self.client = client
        self.keys: LockKeys = lock_keys(gpu, "gpu_lock")
        self.window, self.grace, self.clean_run = window, grace, clean_run

    def call(self, script: str, *arguments: Any) -> list[Any]:
        keys, source = self.keys.script_keys, load_script(script).source
        general = (self.window, self.grace, self.clean_run)
        reply: list[Any] = self.client.eval(source, len(keys), *keys, *general, *arguments)
        return reply

    def acquire(self, waiter: str, **changed: Any) -> list[Any]:
        """A call of acquire.lua; the keywords are its ARGV by name."""
        arguments: dict[str, Any] = {
            "hint": 0,
            "inbox": f"inbox-{waiter}",
            "mode": "push",
            "next_check": 1000,
            "expires": 60_000,
            "lease": 60_000,
            "ttl": 600_000,
            "arrival": 0,
            "priority": 0,
            "max_waiters": -1,
            "may_wait": 1,
            "task": waiter,
            "process": "{}",
        }
        assert changed.keys() <= arguments.keys()
        return self.call("acquire", waiter, *(arguments | changed).values())

    def hold(self, holder: str, **changed: Any) -> int:
        """Acquire the free lock; answers the token."""
        reply = self.acquire(holder, **changed)
        assert reply[0] == "held", reply
        return int(reply[1])

    def release(self, holder: str, token: int, reason: str = "normal") -> list[Any]:
        return self.call("release", holder, token, reason)

    def beat(self, holder: str, token: int, lease: int = 60_000, ttl: int = 600_000) -> list[Any]:
        return self.call("heartbeat", holder, token, lease, ttl)

    def withdraw(self, waiter: str, reason: str = "cancelled", inbox: str = "") -> list[Any]:
        """`inbox`: only if the waiter belongs to it."""
        return self.call("withdraw", waiter, reason, inbox)

    def reassert(self, holder: str, token: int, lease: int = 60_000, inbox: str = "inbox") -> list[Any]:
        return self.call("reassert", holder, token, lease, 600_000, inbox, holder, "{}", 1, 0)

    def reap(self, seen: str, outcome: str = "forced", reason: str = "forced", call: str = "") -> list[Any]:
        """`call`: the id of this call, to repeat it."""
        return self.call("reap", seen, outcome, reason, "test", call)

    def key(self, part: str) -> str:
        return f"{{{self.keys.lock}}}:{part}"

    @property
    def holder(self) -> dict[str, str]:
        record: dict[str, str] = self.client.hgetall(self.key("holder"))
        return record

    @property
    def holder_id(self) -> str | None:
        return self.holder.get("id")

    @property
    def value(self) -> str | None:
        value: str | None = self.client.get(self.keys.lock)
        return value

    @property
    def queue(self) -> list[str]:
        """Waiter ids, first in line first."""
        queue: list[str] = self.client.zrange(self.key("queue"), 0, -1)
        return queue

    def queued_tasks(self) -> list[str]:
        """Task names, first in line first."""
        entries = [self.client.hget(self.key("waiters"), waiter) for waiter in self.queue]
        return [entry.split(" ", 4)[4] for entry in entries if entry]

    def inbox_of(self, task: str) -> str:
        """What the lock knows of the inbox of a queued task: mode, next check, expires, deaf, process."""
        waiter = self.queue[self.queued_tasks().index(task)]
        inbox = self.client.hget(self.key("waiters"), waiter).split(" ", 1)[0]
        record: str = self.client.hget(self.key("waiters"), f"@{inbox}")
        return record

    @property
    def now(self) -> int:
        """The server's clock, ms."""
        seconds, micros = self.client.time()
        return seconds * 1000 + micros // 1000
