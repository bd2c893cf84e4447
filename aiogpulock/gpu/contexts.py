"""On which CUDA devices this process has a context: asked of the driver, which makes none for that.

A thread begins with device 0 as its current one, and whatever CUDA is asked for there makes a context of some hundred
MiB on it: perhaps on a GPU that another process has locked.
"""

from __future__ import annotations

import ctypes


def with_a_context() -> tuple[int, ...]:
    """As CUDA counts devices here; none where the program has not used CUDA, or has no driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)):  # not initialised, for one
        return ()
    return tuple(number for number in range(count.value) if _has_context(cuda, number))


def _has_context(cuda: ctypes.CDLL, number: int) -> bool:
    device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    if cuda.cuDeviceGet(ctypes.byref(device), number):
        return False
    failed = cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active))
    return not failed and bool(active.value)
