"""The bugs that are planted in the Python side, and what catches each: a fault of the campaign, or a test."""

from __future__ import annotations

from tests.planted import Edit, Mutant

SWEEP = "tests/unit/test_cancellation.py"
ERRORS = "tests/unit/test_gpu_lock_error_handling.py"

MUTANTS = (
    Mutant(
        "a body starts at the message, without a claim",
        "forged-messages",
        (
            Edit(
                "acquisition.py",
                "        self._sent_at = clock.now()\n        try:\n",
                "        self._sent_at = clock.now()\n        if self._waiter.hint:\n"
                "            return Held(self._waiter.hint, False, 0.0)\n        try:\n",
            ),
        ),
    ),
    Mutant(
        "the local deadline counts from the reply, not from the send",
        "proxy-isolated-holder",
        (Edit("lease.py", "max(self._deadline, sent_at + self", "max(self._deadline, clock.now() + self"),),
    ),
    Mutant(
        "a beat takes up a lease whose deadline has passed",
        "stop-lone-holder",
        (
            Edit("heartbeat.py", 'hold.lose("lease_expired")  # before any I/O', "pass  # any I/O"),
            Edit("heartbeat.py", 'hold.lose("lease_expired")\n        live', "pass\n        live"),
            Edit("heartbeat.py", "        if live:\n", "        if False:\n"),
            Edit("guard.py", "            if hold.overdue:\n", "            if False:\n"),
        ),
    ),
    Mutant(
        "a cancelled release is not repeated",
        f"{SWEEP}::test_leaving_the_body",
        (
            Edit(
                "leaving.py",
                "released = await finish(lambda: _release(manager, hold, reason))",
                "released = await _release(manager, hold, reason)",
            ),
        ),
        ("redis-py#3847",),
    ),
    Mutant(
        "a cancelled waiter does not withdraw",
        f"{SWEEP}::test_acquire_of_a_held_lock_whose_grant_comes_at_that_moment",
        (
            Edit(
                "acquisition.py",
                '            await finish(lambda: self._withdraw("cancelled"))\n            raise\n        finally:',
                "            raise\n        finally:",
            ),
        ),
        ("zk-ruby#49",),
    ),
    Mutant(
        "the watchdog outlives the unlock",
        f"{SWEEP}::test_leaving_the_body",
        (
            Edit("leaving.py", "            manager.forget(hold)\n", "            pass\n"),
            Edit("lease.py", '            self._state = "releasing"\n', ""),
            Edit("lease.py", '            self._state = "released"\n', "            pass\n"),
        ),
        ("redisson#7272",),
    ),
    Mutant(
        "a body begins although its own lease is over",
        "tests/unit/test_edges_of_a_lease.py::test_a_claim_whose_reply_is_read_a_lease_late_is_repeated_before_the_body",
        (Edit("acquisition.py", " if clock.now() < self._sent_at + self._terms.local_lease:", ":"),),
        ("etcd#11456",),
    ),
    Mutant(
        "a release that failed is forgotten here, and stays in Redis",
        f"{ERRORS}::test_emergency_release_on_normal_failure",
        (Edit("leaving.py", "    released = await _retry(manager, hold)\n", "    released = None\n"),),
        ("curator#1193",),
    ),
    Mutant(
        "a retried release goes by the lock, not by the id",
        f"{ERRORS}::test_an_emergency_release_never_frees_the_successor",
        (
            Edit(
                "leaving.py",
                "lambda scripts: _end(scripts, hold, \"emergency\")",
                "lambda scripts: _forced(scripts, hold)",
            ),
            Edit(
                "leaving.py",
                "async def _retry(",
                "async def _forced(scripts, hold):\n"
                "    seen = (await scripts.snapshot(hold.keys)).value or ''\n"
                "    ended, more = await scripts.reap(hold.keys, hold.terms.script, seen, 'forced', 'forced', '')\n"
                "    return Released(ok=ended, more=more, detail='')\n\n\n"
                "async def _retry(",
            ),
        ),
        ("etcd#22082",),
    ),
    Mutant(
        "a secret is in the error",
        "tests/unit/test_redis_client.py::test_a_wrong_password_is_told_without_the_password",
        (Edit("config/settings.py", "None if self.url is None else redact_url(self.url)", "self.url"),),
    ),
    Mutant(
        "no look after the inbox is back",
        "inbox-kill",
        (Edit("waiting.py", "        if self._events():\n            self._wake_some()\n", ""),),
        ("redis-lock-py", "redisson#1763"),
    ),
    Mutant(
        "the guard thread never beats",
        "blocked-loop",
        (Edit("guard.py", "elif late <= hold.terms.max_stall and (", "elif False and ("),),
        ("redisson#5698",),
    ),
    Mutant(
        "no EVAL behind the EVALSHA of a script that ran before",
        "script-flush",
        (
            Edit(
                "scripts.py",
                "            reply = await self._eval(name, keys, terms, arguments)\n            if isinstance",
                "            if name in vars(self).get('ran', ()):\n                raise\n"
                "            reply = await self._eval(name, keys, terms, arguments)\n            if isinstance",
            ),
            Edit(
                "scripts.py",
                "            reply = await self._client.execute(*self._command(name, keys, terms, arguments))\n",
                "            reply = await self._client.execute(*self._command(name, keys, terms, arguments))\n"
                "            vars(self).setdefault('ran', set()).add(name)\n",
            ),
        ),
    ),
    Mutant(
        "a dead holder is not noticed before its deadline",
        "kill-holder",
        (Edit("liveness.py", "(process):\n            listener()", "(process):\n            pass"),),
    ),
    Mutant(
        "a request of ours that came back with old data stays at the head",
        "tests/integration/test_polling.py::test_a_request_of_ours_that_came_back_with_old_data_holds_nobody_up",
        (Edit("acquisition.py", "        if reply.holder_process == manager.process:\n", "        if False:\n"),),
    ),
    Mutant(
        "the next in line is not told to watch the new holder",
        "kill-grantee",
        (Edit("lua/parts/grant.lua", "  if granted then\n    tell_next(unreachable)\n", "  if granted then\n"),),
    ),
    Mutant(
        "the seats of the dead hide a crash from those behind them",
        "kill-holder-and-waiter",
        (Edit("waiting.py", " and waiter is not self._first()", ""),),
    ),
    Mutant(
        "a process is known by its pid alone",
        "tests/unit/test_liveness.py::test_a_reused_pid_is_another_process",
        (Edit("liveness.py", "not readable and now_started == started", "not readable"),),
    ),
    Mutant(
        "a lease that Redis forgot is not re-asserted",
        "restart-lost-event",
        (Edit("heartbeat.py", '"missing":\n            return True', '"missing":\n            hold.lose("other")'),),
    ),
    Mutant(
        "a blocked holder does not re-assert",
        "restart-lost-blocked",
        (Edit("guard.py", 'reply = self._call("reassert"', 'reply = None and self._call("reassert"'),),
    ),
    Mutant(
        "a message withdraws what is not ours",
        "forged-messages",
        (Edit("incoming.py", '"cancelled", self._parts.inbox.channel)', '"cancelled")'),),
    ),
    Mutant(
        "a forked child uses its parent's connections",
        "fork",
        (Edit("manager.py", "if self._pid != os.getpid():\n            raise", "if False:\n            raise"),),
    ),
    Mutant(
        "a server that is read-only for a while ends the wait",
        "readonly",
        (Edit("redis_client.py", "    rx.ReadOnlyError,\n", ""), Edit("redis_client.py", '    "READONLY",\n', "")),
    ),
)  # fmt: skip
