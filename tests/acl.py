"""The least that a Redis user needs, as docs/deploy.md quotes it."""

from __future__ import annotations

KEYS_AND_CHANNELS = "resetkeys ~gpu_lock* ~{gpu_lock* resetchannels &gpu_lock*"

COMMANDS = (
    "-@all +evalsha +eval +hello +auth +ping +select +client|setname +info +subscribe +unsubscribe +publish "
    "+time +pubsub|numsub +get +set +del +exists +expire +pexpire +pttl "
    "+hmget +hget +hset +hdel +hsetnx +hkeys +hgetall +hincrby "
    "+zadd +zrem +zscore +zrank +zrange +zcard +zremrangebyscore +zremrangebyrank +xadd"
)
"""Commands within scripts need the caller's permission too."""

LEAST_PRIVILEGES = f"{KEYS_AND_CHANNELS} {COMMANDS}"
"""``ACL SETUSER gpu on >password`` and this."""

MONITORS = "+scan +xrange +xrevrange"
"""What monitors, ``history`` and the live page are given besides; without it they say what they cannot see."""

PUB_SUB = ("subscribe", "unsubscribe", "publish")
"""Without these the lock works by polling."""
