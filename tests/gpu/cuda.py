"""Allocates on a GPU through the CUDA driver's own library: no framework is needed."""

from __future__ import annotations

import ctypes
import uuid


class Cuda:
    """A context on a visible device, the first by default. For the thread that made it."""

    def __init__(self, ordinal: int = 0) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), ordinal)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: CUDA error {code}")

    @property
    def uuid(self) -> str:
        """As NVML writes it."""
        raw = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid_v2", ctypes.byref(raw), self._device)
        return f"GPU-{uuid.UUID(bytes=bytes(raw))}"

    def allocate(self, size: int) -> ctypes.c_uint64:
        """`size` bytes, written to, so that they are really there."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        self.fill(pointer, size)
        return pointer

    def fill(self, pointer: ctypes.c_uint64, size: int) -> None:
        """Keep the device busy for a moment."""
        self._call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(1), ctypes.c_size_t(size))
        self._call("cuCtxSynchronize")

    def free(self, pointer: ctypes.c_uint64) -> None:
        self._call("cuMemFree_v2", pointer)
