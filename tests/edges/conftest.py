"""Fixtures for the edges: real processes of the command line, and a real browser, started once for all tests."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.edges.shell import Shell
from tests.servers import RealServer

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from tests.edges.browser import Browser


@pytest.fixture(scope="session", autouse=True)
def _no_ignored_signals() -> Iterator[None]:
    """What is ignored here is ignored in every child: under nohup, or in the background of a script."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)}
    for signum, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def shell(server: RealServer) -> Iterator[Shell]:
    """Runs the command line on the clean server."""
    with Shell(server.url) as shell:
        yield shell


@pytest.fixture(scope="session")
def _driver() -> Iterator[Chrome]:
    from tests.edges.browser import start_browser

    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
async def browser(_driver: Chrome) -> AsyncIterator[Browser]:
    from tests.edges.browser import Browser

    browser = Browser(_driver)
    yield browser
    await browser.desktop()
    await browser.leave()
