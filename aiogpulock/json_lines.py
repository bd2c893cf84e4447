"""A file of JSON lines, one per event that must not be forgotten. That it cannot be written harms nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)


class JsonLines:
    """Appends records to the file that `path` names at each call; None writes nothing.

    `setting` names the file's setting in the one error line of a path that cannot be written.
    """

    def __init__(self, path: Callable[[], Path | None], setting: str) -> None:
        self._path = path
        self._setting = setting
        self.error = ""
        """Why the last record was not written, or could not be now; empty: it was, or it could."""

    def append(self, record: object) -> None:
        """One write per line: several processes may share the file."""
        self._write(msgspec.json.encode(record) + b"\n")

    def check(self) -> None:
        """Find out whether a record could be written, before there is one."""
        self._write(b"")

    def _write(self, line: bytes) -> None:
        try:
            path = self._path()
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.write(line)
            self.error = ""
        except (OSError, RuntimeError) as failure:  # RuntimeError: there is no home directory
            if not self.error:
                logger.error("cannot write %s: %s", self._setting, failure)
            self.error = f"cannot write {self._setting}: {failure}"
