"""Where a run took place: figures travel between machines as ratios only."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.arena import Arena
from benchmarks.peers import ROOT


def describe(arena: Arena) -> dict[str, str]:
    with arena.server.client() as client:
        server = client.info("server")
    name = "Valkey" if "valkey_version" in server else "Redis"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "server": f"{name} {server.get('valkey_version') or server['redis_version']}, unix socket",
        "redis-py": f"{version('redis')} (hiredis {version('hiredis')})",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
