"""Alerts reach people: once, with all that they need, without secrets, and never in the way of a lock."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import requests

from aiogpulock import ConfigError, GpuLockManager, GpuLockMonitor, Settings
from aiogpulock.alerts import Alerts, send_test
from aiogpulock.alerts.channel import Channel
from aiogpulock.alerts.notice import Notice
from aiogpulock.config import AlertSettings
from aiogpulock.models import Alert
from tests.edges.shell import Shell
from tests.edges.web_hook import WebHook
from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.unit.support import eventually


@pytest.fixture
def hook() -> Iterator[WebHook]:
    with WebHook() as hook:
        yield hook


@pytest.fixture
def settings(hook: WebHook) -> AlertSettings:
    return AlertSettings(urls=(hook.url,))


STALL = Alert("loop_stalled", "warning", "gpu_lock:0", "the event loop has been blocked", "h1", "asr")


async def test_a_monitor_tells_what_it_found_and_did(
    redis_url: str, settings: AlertSettings, hook: WebHook, redis_cleanup: redis.Redis
) -> None:
    RawLock(redis_cleanup).hold("stale", lease=1)
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    alerts = Alerts(settings)
    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        monitor = GpuLockMonitor(manager, alerts=alerts)
        await asyncio.sleep(0.005)
        await monitor.round()
        redis_cleanup.delete("gpu_lock:7")
        await monitor.round()
    await alerts.close()

    assert sorted(hook.titles) == [
        "[critical] zombie_locks_detected gpu_lock:7",
        "[resolved] zombie_locks_detected gpu_lock:7",
        "[warning] zombie_lock_cleaned gpu_lock:0",
    ]
    cleaned = next(message for message in hook.received if "cleaned" in message["title"])
    assert "no beat in time" in cleaned["message"]
    assert cleaned["type"] == "warning"


async def test_the_same_is_told_once_and_another_holder_again(settings: AlertSettings, hook: WebHook) -> None:
    alerts = Alerts(settings)
    for holder in ("h1", "h1", "h2", "h1"):
        alerts(Alert("loop_stalled", "warning", "gpu_lock:0", "blocked", holder))
    await alerts.close()
    assert hook.titles == ["[warning] loop_stalled gpu_lock:0"] * 2


async def test_what_waits_for_a_further_attempt_gets_it_at_the_end(
    settings: AlertSettings, hook: WebHook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Channel, "PAUSES", (60.0, 60.0))
    hook.status = 503
    alerts = Alerts(settings)
    alerts(STALL)
    await eventually(lambda: hook.received, description="the first attempt")
    await asyncio.sleep(0.2)
    hook.status = 200  # it has restarted
    await alerts.close()
    assert hook.asked == 2
    assert "did not reach" not in caplog.text


async def test_the_critical_failure_of_another_process_is_p0_with_its_record(
    own_server: RealServer, settings: AlertSettings, hook: WebHook
) -> None:
    """A release that fails, in a program that knows of no alert: the monitor finds it in the lock's history."""
    options: dict[str, Any] = {"redis": {"connect_timeout": 0.3}, "restart_grace": 0}
    alerts = Alerts(settings)
    async with GpuLockManager(own_server.url, **options) as manager, GpuLockManager(own_server.url) as watching:
        monitor = GpuLockMonitor(watching, alerts=alerts)
        async with manager.lock(0, task_name="<b>@channel</b>"):
            own_server.pause()
        own_server.resume()

        async def told() -> bool:
            await monitor.round()
            return bool(hook.received)

        await eventually(told, description="the alert")
    await alerts.close()

    [message] = [message for message in hook.received if "critical_failure" in message["title"]]
    assert message["title"] == "[P0] gpu_lock_critical_failure gpu_lock:0"
    assert message["type"] == "failure"
    assert "level: P0" in message["message"]
    assert '"traceback":"Traceback' in message["message"]
    assert '"released":false' in message["message"]
    assert "<b>" not in message["message"]
    assert "@channel" not in message["message"]


async def test_a_hook_of_the_program_itself_tells_without_a_monitor(
    own_server: RealServer, settings: AlertSettings, hook: WebHook
) -> None:
    alerts = Alerts(settings)
    options: dict[str, Any] = {"redis": {"connect_timeout": 0.3}, "restart_grace": 0}
    async with GpuLockManager(own_server.url, alert_hook=alerts, **options) as manager:
        async with manager.lock(0):
            own_server.pause()
        own_server.resume()
    await alerts.close()
    assert hook.titles == ["[P0] gpu_lock_critical_failure gpu_lock:0"]


async def test_a_hanging_web_hook_delays_neither_a_heartbeat_nor_another_place(
    manager: GpuLockManager, hook: WebHook
) -> None:
    with WebHook() as hanging:
        hanging.status = None
        alerts = Alerts(AlertSettings(urls=(hanging.url, hook.url)))
        alerts.CLOSE_TIMEOUT = 0.1
        async with manager.lock(0) as lease:
            began = time.monotonic()
            alerts(STALL)
            alerts.conditions([Alert("redis_disconnected", "critical", "", "gone")])
            assert time.monotonic() - began < 1
            await eventually(lambda: len(hook.received) == 2, description="the other place to be told")
            [lock] = await manager.status()
            assert lock.silent_for is not None
            assert lock.silent_for < 3
            lease.check()
        hanging.release.set()
        await alerts.close()


async def test_a_refused_notice_is_tried_again_and_then_given_up_with_the_reason(
    settings: AlertSettings, hook: WebHook, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Channel, "PAUSES", (0.01, 0.01))
    hook.status = 500
    alerts = Alerts(settings)
    alerts(STALL)
    await eventually(lambda: "did not reach" in caplog.text, description="the log line")
    await alerts.close()
    assert len(hook.received) == 3
    assert "error=500" in caplog.text


@pytest.mark.parametrize("status", [200, 500])
async def test_no_secret_is_shown_anywhere(
    hook: WebHook, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(Channel, "PAUSES", ())
    caplog.set_level(logging.DEBUG)
    hook.status = status
    mail = "mailto://user:s3cr3tpw@localhost:1/?smtp=localhost&from=a@example.org&to=b@example.org"
    settings = AlertSettings(urls=(hook.url, mail))
    alerts = Alerts(settings)
    alerts(STALL)
    await eventually(lambda: hook.received, description="the notice")
    await alerts.close()
    sent = await asyncio.to_thread(send_test, Settings(gpu_lock_alerts=AlertSettings(urls=(hook.url,))))
    tokens = AlertSettings(urls=("dingtalk://s3cr3ttoken", "https://hooks.example.org/s3cr3t/s3cr3t"))
    shown = caplog.text + repr(settings) + repr(tokens) + repr(sent) + repr(hook.received)
    assert "s3cr3t" not in shown
    assert (sent[0].error == "") == (status == 200)


async def test_a_flood_is_held_back_and_what_is_critical_is_not_behind_it(
    settings: AlertSettings, hook: WebHook
) -> None:
    alerts = Alerts(settings, log=lambda alert: None)
    for number in range(60):
        alerts(Alert("zombie_lock_cleaned", "warning", f"gpu_lock:{number}", "cleaned"))
    alerts(Alert("gpu_lock_critical_failure", "P0", "gpu_lock:0", "stays held"))
    await alerts.close()
    assert len(hook.received) == 21
    assert "[P0] gpu_lock_critical_failure gpu_lock:0" in hook.titles


def test_what_is_urgent_comes_first_and_pushes_the_rest_out(
    hook: WebHook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Channel, "WAITING", 3)
    hook.late = threading.Event()
    channel = Channel(hook.url)
    channel.post(notice())
    wait_until(lambda: hook.asked == 1, description="the first is on its way")
    for number in (1, 2, 3, 4):
        channel.post(notice(number))
    for level in ("critical", "P0"):
        channel.post(Notice(alert=Alert("stuck", level, "gpu_lock:0", "stuck"), kind="raised", at=0))
    hook.late.set()
    channel.end()
    channel.join(30)
    stalls = [f"[warning] loop_stalled gpu_lock:{number}" for number in (0, 1)]
    assert hook.titles == [stalls[0], "[P0] stuck gpu_lock:0", "[critical] stuck gpu_lock:0", stalls[1]]
    assert [f"gpu_lock:{number} was dropped" in caplog.text for number in (1, 2, 3, 4)] == [False, True, True, True]


def test_an_incident_at_pagerduty_ends_with_its_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    def send(_: requests.Session, request: requests.PreparedRequest, **__: object) -> requests.Response:
        sent.append(json.loads(request.body or "{}"))
        response = requests.Response()
        response.status_code = 202
        return response

    monkeypatch.setattr(requests.Session, "send", send)
    for url in (f"pagerduty://{'a' * 32}@{'b' * 20}", f"pagerduty://{'a' * 32}@{'b' * 20}/?region=eu"):
        sent.clear()
        channel = Channel(url)
        for kind in ("raised", "repeated", "resolved"):
            assert not channel.send(Notice(alert=STALL, kind=kind, at=0)).error
        assert [message["event_action"] for message in sent] == ["trigger", "trigger", "resolve"]
        assert len({message["dedup_key"] for message in sent}) == 1


def test_two_things_of_one_lock_are_two_incidents() -> None:
    def incident(holder: str) -> str:
        return Notice(
            alert=Alert("zombie_locks_detected", "critical", "gpu_lock:0", "", holder), kind="raised", at=0
        ).incident

    assert incident("locked_by_<x>") == "zombie_locks_detected gpu_lock:0 locked_by_\u2039x\u203a"
    assert len({incident(""), incident("dead_waiters"), incident("locked_by_asr:h1"), incident("x" * 2000)}) == 4


def notice(number: int = 0) -> Notice:
    return Notice(alert=Alert("loop_stalled", "warning", f"gpu_lock:{number}", "blocked"), kind="raised", at=0)


def test_posts_from_many_threads_start_one_thread(hook: WebHook) -> None:
    hook.status = None
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for _ in range(50):
        channel = Channel(hook.url)
        before, barrier = set(threading.enumerate()), threading.Barrier(4)

        def post(channel: Channel = channel, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            channel.post(notice())

        posters = [threading.Thread(target=post) for _ in range(4)]
        for poster in posters:
            poster.start()
        for poster in posters:
            poster.join()
        started = [thread for thread in set(threading.enumerate()) - before if thread.name == "aiogpulock-alerts"]
        assert len(started) == 1
    sys.setswitchinterval(interval)
    hook.release.set()


async def test_the_end_waits_for_what_a_full_queue_holds(
    hook: WebHook, settings: AlertSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Channel, "WAITING", 3)
    alerts = Alerts(settings)
    hook.status, hook.late = 200, threading.Event()
    alerts(dead(0))
    await eventually(lambda: hook.asked, description="the first one to be on its way")
    for number in range(1, 5):
        alerts(dead(number))
    threading.Timer(0.3, hook.late.set).start()
    await alerts.close()
    assert len(hook.received) == 4
    assert "gpu_lock:4 was dropped" in caplog.text


async def test_other_settings_lose_no_notice(hook: WebHook, settings: AlertSettings) -> None:
    with WebHook() as kept, WebHook() as added:
        alerts = Alerts(AlertSettings(urls=(hook.url, kept.url)))
        hook.late = kept.late = threading.Event()
        for number in range(3):
            alerts(dead(number))
        alerts.reconfigure(AlertSettings(urls=(kept.url, added.url)))
        alerts(dead(3))
        threading.Timer(0.3, hook.late.set).start()
        await alerts.close()
        assert [len(place.received) for place in (hook, kept, added)] == [3, 4, 1]


def dead(number: int) -> Alert:
    return Alert("zombie_locks_detected", "critical", f"gpu_lock:{number}", "dead")


@pytest.mark.parametrize("url", ["nosuch://s3cr3t", "json://"])
def test_a_url_that_cannot_be_used_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match=r"gpu_lock_alerts\.urls") as refused:
        Alerts(AlertSettings(urls=(url,)))
    assert "s3cr3t" not in str(refused.value)


async def test_a_url_that_cannot_be_used_later_leaves_the_last_good_settings(
    server: RealServer, hook: WebHook, tmp_path: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiogpulock.config.sources.LOOK_EVERY", 0.0)
    file = tmp_path / "watched.yml"
    file.write_text(f"gpu_lock_alerts: {{urls: ['{hook.url}']}}")
    async with GpuLockMonitor(redis_url=server.url, config=file, monitor_interval=0.05):
        file.write_text("gpu_lock_alerts: {urls: ['nosuch://x-and-more']}")
        await eventually(lambda: "settings stay as they were" in caplog.text, description="the complaint")
        server.client().set("gpu_lock:7", "locked_by_x")
        await eventually(lambda: hook.received, description="an alert by the old settings")


def test_without_apprise_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiogpulock.alerts.channel.find_spec", lambda name: None)
    assert Alerts(AlertSettings()).settings.urls == ()
    with pytest.raises(ConfigError, match=r"pip install 'aiogpulock\[alerts\]'"):
        Alerts(AlertSettings(urls=("slack://a/b/c",)))


def test_apprise_is_imported_only_where_there_are_urls(shell: Shell) -> None:
    code = (
        "import sys; from aiogpulock.config import AlertSettings; from aiogpulock.alerts import Alerts\n"
        "from aiogpulock import GpuLockMonitor; Alerts(AlertSettings()); print('apprise' in sys.modules)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_alerts_test_tells_what_became_of_each(shell: Shell, hook: WebHook) -> None:
    with WebHook() as broken:
        broken.status = 503
        urls = {"AIOGPULOCK_ALERTS_URLS": f"['{hook.url}', '{broken.url}']"}
        done = shell.run("alerts", "test", env=urls)
    assert done.returncode == 1
    good, bad = done.stdout.splitlines()
    assert good.endswith("/***: delivered")
    assert "error=503" in bad
    assert "s3cr3t" not in done.stdout + done.stderr
    assert hook.titles == ["[warning] test"]
    wait_until(lambda: broken.received, description="the refused one was sent, too")


def test_alerts_test_without_urls_and_with_a_wrong_one(shell: Shell) -> None:
    nobody = shell.run("alerts", "test")
    assert (nobody.returncode, "gpu_lock_alerts.urls is empty" in nobody.stderr) == (1, True)
    wrong = shell.run("alerts", "test", env={"AIOGPULOCK_ALERTS_URLS": "['nosuch://s3cr3t']"})
    assert wrong.returncode == 78
    assert "s3cr3t" not in wrong.stderr
