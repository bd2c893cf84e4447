"""The live page, in a real browser."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis
from selenium.webdriver.common.keys import Keys
from starlette.applications import Starlette
from starlette.routing import Mount

from aiogpulock import GpuLockManager
from aiogpulock.web import create_app, feed
from tests import nvml_sim
from tests.edges.browser import Browser, served, waiting_elsewhere
from tests.edges.shell import Shell
from tests.gpu.conftest import driver_folder as driver_folder
from tests.gpu.conftest import sim as sim
from tests.nvml_sim import GiB, Simulation
from tests.servers import RealServer, _free_port
from tests.unit.support import eventually, held_elsewhere, waiters

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\x1b[31mred"

TOO_WIDE = """return [...document.querySelectorAll('body *')]
    .filter(node => node.getBoundingClientRect().right > innerWidth + 1)
    .map(node => `${node.tagName} ${node.className} ${node.textContent.slice(0, 20)}`)"""


async def at_rest(watched: feed.Feed) -> None:
    """Return when the feed has no look of its own to come."""
    looks = -1
    while looks != watched.looks:
        looks = watched.looks
        await asyncio.sleep(3 * feed.SETTLE)


async def test_a_hand_off_shows_because_it_is_announced(
    manager: GpuLockManager, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "EVERY", 600.0)  # nothing but the announcement tells of it
    app = create_app(manager)
    async with served(app) as url:
        async with held_elsewhere(manager, task_name="first"):
            second = asyncio.create_task(manager.lock(0, task_name="second").acquire_for("second"))
            await waiters(manager, 1)
            third = asyncio.create_task(manager.lock(0, task_name="third").acquire_for("third"))
            await waiters(manager, 2)
            await browser.open(url)
            await browser.until_text(".gpu .who .task", "first")
            assert await browser.texts(".gpu li .task") == ["second", "third"]
            await browser.until_text("#connection", "live")
            await at_rest(app.state.feed)
        await browser.until_text(".gpu .who .task", "second")
        await browser.until_text(".gpu[data-state=held] .state", "held")  # and it has claimed
        assert await browser.texts(".gpu li .task") == ["third"]
        await browser.until_text("#announcements", "held by second")
        await (await second).release()
        await (await third).release()
        await browser.until_text(".gpu .state", "free")
        await browser.until_text("#events tbody tr", "third")
        assert await browser.run("return document.querySelectorAll('#waits .dot').length") == 3
        assert await browser.leave() == []


async def test_names_that_are_markup_are_shown_as_text(manager: GpuLockManager, browser: Browser) -> None:
    async with (
        served(create_app(manager)) as url,
        held_elsewhere(manager, task_name=HOSTILE),
        waiting_elsewhere(manager, HOSTILE),
    ):
        async with manager.lock("1", task_name=HOSTILE):
            pass
        await browser.open(url)
        for place in (".gpu .who .task", ".gpu li .task", "#events td.task"):
            await browser.until_text(place, HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}"))
        assert await browser.run("return document.querySelectorAll('img, script:not([src])').length") == 0
        assert "owned" not in await browser.run("return document.title")
        assert await browser.leave() == []


async def test_the_dead_in_the_queue_are_told_apart_and_count_for_nobody_s_wait(
    manager: GpuLockManager, browser: Browser, shell: Shell, redis_cleanup: redis.Redis
) -> None:
    async with served(create_app(manager)) as url, held_elsewhere(manager):
        redis_cleanup.xadd(
            "{gpu_lock:0}:events", {"event": "released", "token": 1, "hold_ms": 600_000}
        )  # the lock's past
        dead = shell.start(
            "run", "--name", "dead", "--", "true", env={"AIOGPULOCK_BOOT_ID": "x"}
        )  # no monitor here sweeps it
        await waiters(manager, 1)
        dead.kill()
        await asyncio.to_thread(dead.wait)
        living = asyncio.create_task(manager.lock(0, task_name="living").acquire_for("living"))
        await waiters(manager, 2)
        await browser.open(url)
        await browser.until_text(".gpu li.deaf", "does not answer")
        assert await browser.texts(".gpu li .task") == ["dead", "living"]
        assert "to go" not in (await browser.texts(".gpu li.deaf .times"))[0]
        await browser.until_text(".gpu li:not(.deaf) .times", "about 9m")
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
        assert await browser.leave() == []
    redis_cleanup.delete("{gpu_lock:0}:queue", "{gpu_lock:0}:waiters")  # else the seat of the dead expires after 90 s


async def test_a_long_queue_opens_and_the_page_goes_on(manager: GpuLockManager, browser: Browser) -> None:
    names = [f"w{place}" for place in range(1, 8)]
    async with served(create_app(manager)) as url, held_elsewhere(manager), waiting_elsewhere(manager, *names):
        await browser.open(url)
        await browser.until_text(".gpu .more", "and 3 more")
        assert await browser.texts(".gpu li .task") == names[:4]
        await browser.type(".gpu .more", Keys.ENTER)
        await browser.until_text(".gpu .more", "show fewer")
        assert await browser.texts(".gpu li .task") == names
        async with manager.lock("1", task_name="later"):
            await browser.until_text(".gpu:last-child .who .task", "later")
        await browser.type(".gpu .more", Keys.ENTER)
        await browser.until_text(".gpu .more", "and 3 more")
        assert await browser.leave() == []


async def test_an_error_of_the_page_s_own_is_no_silence(manager: GpuLockManager, browser: Browser) -> None:
    async with served(create_app(manager)) as url:
        await browser.open(url)
        await browser.until_text("#connection", "live")
        await browser.run("setTimeout(() => { throw new Error('planted') })")
        await browser.until_text("#trouble", "This page has failed")
        await browser.leave()


async def test_what_needs_attention_is_counted_first(
    manager: GpuLockManager, browser: Browser, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")  # without expiry
    async with served(create_app(manager)) as url, held_elsewhere(manager):
        async with manager.lock(1):
            pass
        await browser.open(url)
        await browser.until_text("#totals", "1 held · 1 free · 0 waiting")
        assert await browser.text("#alarm") == "1 needs attention"
        assert await browser.run("return document.title") == "1 needs attention, 1 held, 0 waiting · GPU locks"
        assert await browser.texts(".gpu .state") == ["needs attention", "held", "free"]
    redis_cleanup.delete("gpu_lock:7")


async def test_nothing_is_there_yet(manager: GpuLockManager, browser: Browser) -> None:
    async with served(create_app(manager)) as url:
        await browser.open(url)
        await browser.until_text("#no-gpus", "No lock has been used yet")
        assert "Nothing has happened yet" in await browser.text("#no-events")
        assert await browser.texts("figure .empty") == ["No hold has ended yet."] * 2


async def test_a_server_that_goes_shows_and_one_that_comes_back_is_found(
    manager: GpuLockManager, browser: Browser
) -> None:
    port = _free_port()
    async with served(create_app(manager), port) as url:
        await browser.open(url)
        await browser.until_text("#connection", "live")
    await browser.until_text("#connection", "disconnected since")
    async with held_elsewhere(manager, task_name="meanwhile"), served(create_app(manager), port):
        await browser.until_text(".gpu .who .task", "meanwhile")
        assert await browser.text("#connection") == "live"


async def test_without_redis_the_last_state_stays_and_says_so(own_server: RealServer, browser: Browser) -> None:
    async with (
        GpuLockManager(own_server.url, restart_grace=0) as manager,
        served(create_app(manager)) as url,
        held_elsewhere(manager, task_name="asr"),
    ):
        await browser.open(url)
        await browser.until_text(".gpu .who .task", "asr")
        own_server.stop()
        await browser.until_text("#trouble", "What is shown may be old")
        assert await browser.text(".gpu .who .task") == "asr"
        own_server.start()

        async def over() -> bool:
            return await browser.text("#trouble") == ""

        await eventually(over, description="the trouble is over")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone_in_both_schemes(manager: GpuLockManager, browser: Browser, scheme: str) -> None:
    long = "x" * 250
    async with (
        served(create_app(manager)) as url,
        held_elsewhere(manager, task_name=long),
        waiting_elsewhere(manager, long),
    ):
        async with manager.lock("a" * 128, task_name=long):
            pass
        await browser.phone()
        await browser.scheme(scheme)
        await browser.open(url)
        await browser.until_text(".gpu li .task", "xxx")
        assert await browser.run(TOO_WIDE) == []
        assert await browser.run("return document.documentElement.scrollWidth") == 390
        colour = await browser.run("return getComputedStyle(document.body).backgroundColor")
        assert colour == {"light": "rgb(245, 246, 248)", "dark": "rgb(14, 17, 22)"}[scheme]


async def test_it_works_under_a_prefix(manager: GpuLockManager, browser: Browser) -> None:
    outer = Starlette(routes=[Mount("/ops/gpu", create_app(manager))])
    async with served(outer) as url, held_elsewhere(manager, task_name="asr"):
        await browser.open(f"{url}/ops/gpu")
        await browser.until_text(".gpu .who .task", "asr")
        assert await browser.leave() == []


async def test_the_memory_of_this_host_s_gpus_is_shown(server: RealServer, browser: Browser, sim: Simulation) -> None:
    sim.use(0, 20 * GiB)
    async with (
        GpuLockManager(server.url, gpu_memory={"nvml": "auto"}) as manager,
        served(create_app(manager)) as url,
        held_elsewhere(manager),  # by its UUID
    ):
        await browser.open(url)
        await browser.until_text(".gpu .memory", "20 of 80 GiB in use")
        assert await browser.texts(".gpu h3") == ["GPU 0", "GPU 1"]
        assert nvml_sim.uuid(0)[:12] in await browser.text(".gpu .model")
        assert await browser.run("return document.querySelector('.gpu h3').title") == nvml_sim.uuid(0)
        assert await browser.run("return document.querySelector('.bar').getAttribute('aria-valuenow')") == "25"
        async with manager.lock(1):
            pass
        await browser.until_text("#events", "memory freed")
        assert await browser.texts("#events .notable") == [], "nothing is wrong"
        sim.use(0, 40 * GiB)
        await browser.until_text(".gpu .memory", "40 of 80 GiB in use")


async def test_an_operator_releases_with_the_keyboard(manager: GpuLockManager, browser: Browser) -> None:
    lease = await manager.lock(0, task_name="stuck").acquire_for("stuck")
    async with served(create_app(manager, token="sécret-€")) as url:
        await browser.open(url)
        await browser.until_text(".gpu .who .task", "stuck")
        await browser.type(".gpu .release", Keys.ENTER)
        assert "GPU 0 is held by stuck" in await browser.text("#release-what")
        await browser.type("#release [name=token]", "of the last one", Keys.ESCAPE)
        assert not await browser.run("return document.querySelector('#release').open")
        await browser.type(".gpu .release", Keys.ENTER)
        assert await browser.run("return document.querySelector('#release [name=token]').value") == ""
        await browser.type("#release [name=token]", "wrong", Keys.ENTER)
        await browser.until_text("#release-problem", "not the token")
        lease.check()
        await browser.type("#release [name=token]", Keys.BACKSPACE * 5, "sécret-€", Keys.ENTER)
        await lease.lost.wait()
        await browser.until_text(".gpu .state", "free")


async def test_without_a_token_nothing_can_be_released(manager: GpuLockManager, browser: Browser) -> None:
    async with served(create_app(manager)) as url, held_elsewhere(manager):
        await browser.open(url)
        await browser.until_text(".gpu .state", "held")
        assert await browser.run("return document.querySelector('.release').hidden")


async def test_another_program_s_lock_is_told_apart(
    manager: GpuLockManager, browser: Browser, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:0", b"locked_by_IndexTTS\xff\x1b", px=60_000)
    async with served(create_app(manager)) as url:
        await browser.open(url)
        await browser.until_text(".gpu .state", "held by another program")
        assert await browser.text(".gpu .who .task") == "locked_by_IndexTTS\\xff\x1b"
        redis_cleanup.set("gpu_lock:0", "locked_by_IndexTTS")
        await browser.until_text(".gpu .state", "needs attention")
        assert "never expires" in await browser.text(".gpu .note")
    redis_cleanup.delete("gpu_lock:0")


async def test_a_lock_that_cannot_be_read_hides_no_other(
    manager: GpuLockManager, browser: Browser, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.hset("{gpu_lock:0}:holder", mapping={"id": "x", "v": 99})
    redis_cleanup.set("gpu_lock:0", "locked_by_:x", px=60_000)
    async with served(create_app(manager)) as url, manager.lock(1, task_name="asr"):
        await browser.open(url)
        await browser.until_text(".gpu .note", "newer aiogpulock")
        assert await browser.texts(".gpu .state") == ["cannot be read", "held"]
    redis_cleanup.delete("gpu_lock:0", "{gpu_lock:0}:holder")


def test_the_page_asks_for_nothing_outside() -> None:
    for file in Path(feed.__file__).with_name("static").iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, file.name
        assert "innerHTML" not in text, file.name
