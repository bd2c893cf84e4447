"""``@pytest.mark.gpu_lock(0)``: tests that share a GPU take turns, over all workers, suites and programs.

A marked test waits for its GPU before its fixtures are set up, and gives it back when the last of them is torn down.
The lease lives in a background thread. So it does not matter how a test runs: plain, in any event loop, blocked in
CUDA. pytest loads this module always; what talks to Redis is imported with the first test that is marked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from aiogpulock.pytest_plugin.mark import NAME, MarkError, Wish, parse, wish_of
from aiogpulock.pytest_plugin.options import Options, add_options, read_options

if TYPE_CHECKING:
    from aiogpulock.pytest_plugin.turns import Turn, Turns
    from aiogpulock.sync import Lease

_OPTIONS = pytest.StashKey[Options]()
_TURNS = pytest.StashKey["Turns"]()
_TURN = pytest.StashKey["Turn"]()
_ITEM = pytest.StashKey[pytest.Item]()
"""The test that is run, for fixtures of a wider scope."""
_TIMER = pytest.StashKey[tuple[Any, float] | None]()
"""pytest-timeout's settings for the test, and by when on the monotonic clock its timer rings; None: it does not run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{NAME}(gpu_id=0, *, max_wait_time=…, priority=…, …): the test runs while it alone holds this GPU; "
        "keywords as for aiogpulock.gpu_lock",
    )
    config.stash[_OPTIONS] = read_options(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _TURNS in config.stash:
        config.stash[_TURNS].close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """After the skip marks were looked at, before the first fixture."""
    item.config.stash[_ITEM] = item
    with _one_line():
        wish = wish_of(item, item.config.stash[_OPTIONS].gpu)
    if wish is not None and not item.config.getoption("setupplan", default=False):
        with _timeout_stands_still(item):
            item.stash[_TURN] = _take(item, wish)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """After the last fixture is torn down."""
    with _then_complain(lambda: _give_back(item)):
        yield


@pytest.fixture
def gpu_lock(request: pytest.FixtureRequest) -> Iterator[Lease]:
    """The lease of this test. A test without a mark gets the default GPU, from here to the teardown of this fixture."""
    turn = request.node.stash.get(_TURN, None)
    if turn is not None:
        yield turn.lease
        return
    with _held(request.config, Wish(request.config.stash[_OPTIONS].gpu, {})) as lease:
        yield lease


@pytest.fixture(scope="session")
def gpu_lock_factory(request: pytest.FixtureRequest) -> Callable[..., AbstractContextManager[Lease]]:
    """For fixtures of a wider scope: ``with gpu_lock_factory(0): yield load_model()``. Arguments as for the mark.

    Tests that are marked with the same GPU join the lease while it is held.
    """

    def hold(*args: Any, **keywords: Any) -> AbstractContextManager[Lease]:
        with _one_line():
            wish = parse("gpu_lock_factory", args, keywords, request.config.stash[_OPTIONS].gpu)
        return _held(request.config, wish)

    return hold


@contextmanager
def _held(config: pytest.Config, wish: Wish) -> Iterator[Lease]:
    item = config.stash[_ITEM]
    with _timeout_stands_still(item):
        turn = _take(item, wish)

    def give_back() -> str:
        item = config.stash[_ITEM]
        with _timeout_stands_still(item):
            return config.stash[_TURNS].give_back(turn, item.nodeid)

    with _then_complain(give_back):
        yield turn.lease


def _take(item: pytest.Item, wish: Wish) -> Turn:
    """Wait for the GPU; ends the test where it cannot be had."""
    options, turns = item.config.stash[_OPTIONS], _turns(item.config)
    with _one_line():
        lock = turns.lock(wish, item.nodeid)
        absence = turns.absence(wish.gpu_id) if options.without_gpu != "run" else ""
        if not absence:
            return turns.take(wish, lock, item.nodeid)
    if options.without_gpu == "fail":
        pytest.fail(absence, pytrace=False)
    pytest.skip(absence)


@contextmanager
def _one_line() -> Iterator[None]:
    """An error of the lock, or of a mark, ends the test without a traceback: its text says what to do."""
    from aiogpulock.errors import GpuLockError

    try:
        yield
    except (GpuLockError, MarkError) as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@contextmanager
def _then_complain(give_back: Callable[[], str]) -> Iterator[None]:
    """Afterwards give the GPU back. What is to be complained of fails the test, or is a note to its own failure."""
    try:
        yield
    except BaseException as error:
        complaint = give_back()
        if complaint:
            error.add_note(complaint)
        raise
    complaint = give_back()
    if complaint:
        pytest.fail(complaint, pytrace=False)


def _turns(config: pytest.Config) -> Turns:
    if _TURNS not in config.stash:
        from aiogpulock.pytest_plugin.turns import Turns

        config.stash[_TURNS] = Turns(config.stash[_OPTIONS])
    return config.stash[_TURNS]


def _give_back(item: pytest.Item) -> str:
    turn = item.stash.get(_TURN, None)
    if turn is None:
        return ""
    del item.stash[_TURN]
    _stop_timeout(item)  # the test is over; what may take time now has a bound of its own
    return item.config.stash[_TURNS].give_back(turn, item.nodeid)


# pytest-timeout


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    answer = yield
    item.stash[_TIMER] = settings, time.monotonic() + settings.timeout
    return answer


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_TIMER] = None
    return (yield)


@contextmanager
def _timeout_stands_still(item: pytest.Item) -> Iterator[None]:
    """While a test waits for its turn, pytest-timeout's clock, if it runs, does not: it goes on with what is left."""
    settings, rings_by = item.stash.get(_TIMER, None) or (None, 0.0)
    left = rings_by - time.monotonic()
    _stop_timeout(item)
    try:
        yield
    finally:
        if settings is not None:
            if left <= 0:  # it has rung, and this is the end of the test: that has a bound as well
                left = settings.timeout
            shown = math.floor(left * 1000) / 1000 or left  # in its message
            item.config.hook.pytest_timeout_set_timer(item=item, settings=settings._replace(timeout=shown))
            item.stash[_TIMER] = settings, time.monotonic() + left


def _stop_timeout(item: pytest.Item) -> None:
    if item.stash.get(_TIMER, None) is not None:
        item.config.hook.pytest_timeout_cancel_timer(item=item)
