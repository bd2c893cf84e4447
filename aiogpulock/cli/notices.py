"""What `run` says where there is no driver: one short line, to a person only. `doctor` says it at length."""

from __future__ import annotations

import logging
import sys

from aiogpulock.config import GpuMemorySettings
from aiogpulock.gpu.records import NvmlError

NO_DRIVER = "no NVIDIA driver here: GPUs are locked by their number, their memory is not checked"


def shorten_driver_notice(wanted: GpuMemorySettings) -> None:
    """The library's own would stand in the mail of each cron job. It stays where the settings count on the driver."""
    if wanted.policy in ("off", "report") and wanted.require_free is None:
        notices = _Notices()
        for name in ("gpu.finder", "admission"):
            logging.getLogger(f"aiogpulock.{name}").addFilter(notices)


class _Notices(logging.Filter):
    """A driver that is there and fails is news to everybody; of one that is not there, once is enough."""

    _none = False

    def filter(self, record: logging.LogRecord) -> bool:
        if any(isinstance(word, NvmlError) and word.status == "no_nvml" for word in record.args or ()):
            self._none = True
            record.msg, record.args = NO_DRIVER, ()
            return sys.stderr.isatty()
        return not (self._none and record.name == "aiogpulock.admission")  # that nobody can look follows from it
