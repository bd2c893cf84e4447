"""The lock over HTTP, and the lock in web servers. Needs the extra ``[server]``.

`create_app` is one ASGI app with health, status and a live page, to be mounted or served; `serve` serves it. `GpuGate`
and `gpu_lifespan` put the lock into a server of your own.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiogpulock.web.app import create_app as create_app
    from aiogpulock.web.gate import GpuGate as GpuGate
    from aiogpulock.web.lifespan import gpu_lifespan as gpu_lifespan
    from aiogpulock.web.server import serve as serve

HOW_TO_INSTALL = "pip install 'aiogpulock[server]'"


def _missing(name: str | None) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"aiogpulock.web needs {name}: {HOW_TO_INSTALL}", name=name)


if find_spec("starlette") is None:  # what all of it needs; what else is missing is said at its first use
    raise _missing("starlette")

_HOMES = {
    "GpuGate": "gate",
    "create_app": "app",
    "gpu_lifespan": "lifespan",
    "serve": "server",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aiogpulock.web' has no attribute {name!r}")
    try:
        value = getattr(import_module(f"aiogpulock.web.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("aiogpulock"):
            raise
        raise _missing(error.name) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
