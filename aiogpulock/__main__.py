"""``python -m aiogpulock`` is the command ``aiogpulock``."""

from aiogpulock.cli import main

main()
