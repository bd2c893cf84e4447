"""A real headless Chromium, and the app on a real port for it to look at."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from starlette.applications import Starlette

from aiogpulock import GpuLockManager, Lease
from tests.unit.support import eventually, waiters

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000")


class Browser:
    """What a test asks of the browser; every call runs in a thread, since the event loop serves the page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    async def _call(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(call, *args)

    async def open(self, url: str) -> None:
        await self._call(self.driver.get, url)

    async def leave(self) -> list[str]:
        """Close the page; answers what it complained of, refusals by its security policy among them."""
        await self.open("about:blank")
        return [entry["message"] for entry in await self._call(self.driver.get_log, "browser")]

    async def run(self, script: str) -> Any:
        return await self._call(self.driver.execute_script, script)

    async def text(self, css: str) -> str:
        """What is visible of the first match; empty without one."""
        return str(await self.run(f"return document.querySelector({css!r})?.innerText ?? ''"))

    async def texts(self, css: str) -> list[str]:
        return list(await self.run(f"return [...document.querySelectorAll({css!r})].map(node => node.innerText)"))

    async def until_text(self, css: str, expected: str, *, timeout: float = 30.0) -> None:
        async def shown() -> bool:
            return expected in await self.text(css)

        await eventually(shown, description=f"{css} shows {expected!r}", timeout=timeout)

    async def element(self, css: str) -> WebElement:
        found: WebElement = await self._call(self.driver.find_element, By.CSS_SELECTOR, css)
        return found

    async def type(self, css: str, *keys: str) -> None:
        await self._call((await self.element(css)).send_keys, *keys)

    async def devtools(self, command: str, **parameters: Any) -> Any:
        return await self._call(self.driver.execute_cdp_cmd, command, parameters)

    async def phone(self) -> None:
        await self.devtools(
            "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True
        )

    async def desktop(self) -> None:
        await self.devtools("Emulation.clearDeviceMetricsOverride")

    async def scheme(self, name: str) -> None:
        await self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])


def start_browser() -> webdriver.Chrome:
    """Chromium and its driver as Debian packages them."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


@asynccontextmanager
async def served(app: Starlette, port: int = 0) -> AsyncIterator[str]:
    """The app on a real port of this host; the URL ends without a slash."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started or task.done(), description="uvicorn listens")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def waiting_elsewhere(manager: GpuLockManager, *tasks: str) -> AsyncIterator[None]:
    """These tasks wait for GPU 0, in this order; at the end they give up."""
    queue: list[asyncio.Task[Lease]] = []
    try:
        for place, name in enumerate(tasks, 1):
            queue.append(asyncio.create_task(manager.lock(0, task_name=name).acquire_for(name + str(place))))
            await waiters(manager, place)
        yield
    finally:
        for waiting in queue:
            waiting.cancel()
        for lease in await asyncio.gather(*queue, return_exceptions=True):
            if isinstance(lease, Lease):
                await lease.release()
