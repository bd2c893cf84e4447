"""Where a run takes place: figures travel between machines as ratios only, and nobody's settings are in them."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers import ROOT, Peer
from tests.servers import RealServer


def without_settings(*kept: str) -> dict[str, str]:
    """The variables of this process but for settings, also those of the tests, save `kept`: no config.yml is read."""
    others = {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(("AIOGPULOCK_", "REDIS_URL"))
    }
    return others | {"AIOGPULOCK_CONFIG": os.devnull}


NOT_INSTALLED = "not installed"


def describe_peers(cast: Sequence[Peer]) -> dict[str, str]:
    """Their requirements, and who could not be installed."""
    absent = [peer.title for peer in cast if not peer.is_installable]
    there = dict.fromkeys(each for peer in cast if peer.is_installable for each in peer.requirements)
    return {"peers": ", ".join(there)} | ({NOT_INSTALLED: ", ".join(absent)} if absent else {})


def describe(server: RealServer) -> dict[str, str]:
    """The machine, the versions and the time, as a reader of the figures wants to know them."""
    with server.client() as client:
        info = client.info("server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "aiogpulock": version("aiogpulock"),
        "server": f"{name} {info.get('valkey_version') or info['redis_version']}, unix socket",
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
