"""A file of JSON lines, one per event that must not be forgotten. That it cannot be written harms nothing else."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)

MOST_KEPT = 1024 * 1024
"""Bytes that wait for a file that can be written again."""


class JsonLines:
    """Appends records to the file that `path` names at each call; None writes nothing.

    What cannot be written, on a full disk for one, is kept and written later, by the next call that can. `setting`
    names the file's setting in the one error line of a path that cannot be written.
    """

    def __init__(self, path: Callable[[], Path | None], setting: str) -> None:
        self._path = path
        self._setting = setting
        self._kept = b""
        self._lock = threading.Lock()
        self.error = ""
        """Why not everything is written, or could be now; empty: it is, and it could."""

    def append(self, record: object) -> None:
        """One write per line: several processes may share the file."""
        line = msgspec.json.encode(record) + b"\n"
        with self._lock:
            if len(self._kept) + len(line) > MOST_KEPT:
                logger.error("%s takes nothing, and too much is kept: a line is lost", self._setting)
            else:
                self._kept += line
            self._write()

    def check(self) -> None:
        """Write what is kept, and find out whether a record could be written before there is one."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        try:
            path = self._path()
            if path is None:
                self._kept = b""
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._append_to(path)
            self.error = ""
        except (OSError, RuntimeError) as failure:  # RuntimeError: there is no home directory
            if not self.error:
                logger.error("cannot write %s: %s", self._setting, failure)
            self.error = f"cannot write {self._setting}: {failure}"

    def _append_to(self, path: Path) -> None:
        # Without O_NONBLOCK a pipe that nobody reads would stop the event loop for ever.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            while self._kept:
                self._kept = self._kept[os.write(file, self._kept) :]
        finally:
            os.close(file)
