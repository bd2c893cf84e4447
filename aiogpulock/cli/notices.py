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
        logging.getLogger("aiogpulock.gpu.finder").addFilter(_short)


def _short(record: logging.LogRecord) -> bool:
    """A driver that is there and fails is news to everybody."""
    if not any(isinstance(word, NvmlError) and word.status == "no_nvml" for word in record.args or ()):
        return True
    record.msg, record.args = NO_DRIVER, ()
    return sys.stderr.isatty()
