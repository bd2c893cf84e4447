"""The descendants of this process: who they are, and how all of them are ended. Standard library only, no threads."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def _prctl(option: int, argument: int | bytes) -> None:
    """Linux alone has it; elsewhere nothing happens."""
    if sys.platform == "linux":
        none = ctypes.c_ulong(0)
        given = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
        ctypes.CDLL(None).prctl(option, given, none, none, none)


def adopt_orphans() -> None:
    """From now on a descendant whose parent dies becomes a child of this process, not of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when the thread that forked it dies. It outlasts exec, but not a set-user-ID program."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os.kill(os.getpid(), signal.SIGKILL)


def show_as(name: str) -> None:
    """The name in ps and top; 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode())


def descendants(root: int) -> list[int]:
    """Every process below `root`, parents first, those not yet reaped included. Empty where there is no /proc.

    A process whose first thread has ended looks like a zombie and may compute on, so what counts is who is still there.
    """
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parent = entry.read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(entry.parent.name))
    found: list[int] = []
    layer = [root]
    while layer:
        layer = [child for parent in layer for child in children.get(parent, ())]
        found += layer
    return found


def with_variable(name: str, value: str) -> list[int]:
    """Every process of this user that was started with this environment variable; none where there is no /proc."""
    found = []
    for entry in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{name}={value}".encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def send(pids: list[int], *signums: int) -> None:
    """Signal each of `pids`; those that are gone, or may not be signalled, are passed over."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            for signum in signums:
                os.kill(pid, signum)
