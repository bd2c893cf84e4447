"""The metrics, the alert rules and the dashboard: each is checked by promtool, and they know the same names."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from aiogpulock import ConfigError, GpuLockManager, LockTimeoutError
from aiogpulock.metrics import CONTENT_TYPE, render_metrics
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.unit.support import held_elsewhere

MONITORING = Path(__file__).parents[2] / "monitoring"
RULES = MONITORING / "prometheus-alerts.yml"


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Runs promtool (Debian: the package prometheus), or skips where it is not installed; fails if it complains."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return (done.stdout + done.stderr).decode()


def samples(text: bytes) -> dict[str, float]:
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def busy(manager: GpuLockManager) -> bytes:
    """The metrics of a lock that was held, lost, waited for in vain, and is held again."""
    async with held_elsewhere(manager):
        with pytest.raises(LockTimeoutError):
            await manager.lock(0, max_wait_time=0.05).acquire()
    lease = await manager.lock(0).acquire_for("victim")
    await manager.force_release(0)
    with pytest.raises(Exception, match="lost"):
        await lease.release()
    async with held_elsewhere(manager):
        return await render_metrics(manager)


async def test_what_happened_to_a_lock_is_in_the_metrics(manager: GpuLockManager) -> None:
    found = samples(await busy(manager))

    gpu = 'gpu="0",uuid=""'
    forced = 'gpu="0",reason="forced",uuid=""'
    assert found["aiogpulock_redis_up"] == 1
    assert found["aiogpulock_zombies"] == 0
    assert found[f"aiogpulock_held{{{gpu}}}"] == 1
    assert found[f"aiogpulock_queue_length{{{gpu}}}"] == 0
    assert found[f"aiogpulock_holder_age_seconds{{{gpu}}}"] >= 0
    assert found[f"aiogpulock_attempts_total{{{gpu}}}"] == 4
    assert found['aiogpulock_acquisitions_total{gpu="0",outcome="acquired",uuid=""}'] == 3
    assert found['aiogpulock_acquisitions_total{gpu="0",outcome="timeout",uuid=""}'] == 1
    assert found[f"aiogpulock_lease_lost_total{{{forced}}}"] == 1
    assert found[f"aiogpulock_forced_releases_total{{{forced}}}"] == 1
    assert found[f"aiogpulock_hold_seconds_count{{{gpu}}}"] == 2
    assert found[f"aiogpulock_hold_seconds_sum{{{gpu}}}"] > 0.04


async def test_an_expired_lease_is_counted_whoever_noticed(redis_url: str, redis_cleanup: redis.Redis) -> None:
    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        RawLock(redis_cleanup).hold("dead", lease=1)
        await asyncio.sleep(0.005)
        async with manager.lock(0):
            found = samples(await render_metrics(manager))
    assert found['aiogpulock_lease_lost_total{gpu="0",reason="lease_expired",uuid=""}'] == 1


async def test_a_holder_without_a_heartbeat_is_not_silent(manager: GpuLockManager) -> None:
    silent = 'aiogpulock_holder_silent_seconds{gpu="0",uuid=""}'
    async with held_elsewhere(manager, heartbeat={"enabled": False}):
        assert silent not in samples(await render_metrics(manager))
    async with held_elsewhere(manager):
        assert silent in samples(await render_metrics(manager))


async def test_a_name_that_is_no_label_text_is_escaped_and_no_task_name_is_shown(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", 'locked_by_"\\x', ex=60)
    async with manager.lock(0, task_name="secret task"):
        text = await render_metrics(manager)
    redis_cleanup.delete("gpu_lock:7")
    assert b"secret task" not in text
    assert samples(text)['aiogpulock_foreign{gpu="7",uuid=""}'] == 1


async def test_without_redis_the_metrics_say_so(own_server: RealServer) -> None:
    own_server.stop()
    manager = GpuLockManager(own_server.url, redis={"connect_timeout": 0.2})
    assert samples(await render_metrics(manager)) == {"aiogpulock_redis_up": 0}
    await manager.close()
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


async def test_without_prometheus_client_the_error_says_what_to_install(
    manager: GpuLockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiogpulock.metrics.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'aiogpulock\[server\]'"):
        await render_metrics(manager)


async def test_promtool_has_nothing_against_the_metrics(manager: GpuLockManager) -> None:
    assert promtool("check", "metrics", stdin=await busy(manager)) == ""


def test_promtool_accepts_the_alert_rules_and_they_fire_when_they_should() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", MONITORING / "prometheus-alerts.test.yml")


def dashboard_expressions() -> list[str]:
    dashboard: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_promtool_accepts_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    plain = [expr.replace("$__rate_interval", "5m") for expr in dashboard_expressions()]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(plain)]
    assert len(rules) > 10
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_the_dashboard_is_whole() -> None:
    """What Grafana needs to import it: ids, places, and variables that are defined and used."""
    dashboard: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    panels, variables = dashboard["panels"], {each["name"]: each for each in dashboard["templating"]["list"]}
    assert "id" not in dashboard  # it would overwrite somebody else's
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert variables["datasource"]["query"] == "prometheus"
    for part in [*panels, *(target for panel in panels for target in panel["targets"]), *list(variables.values())[1:]]:
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    used = {name for expr in dashboard_expressions() for name in re.findall(r"\$\{?(\w+)", expr)}
    assert used - {"__rate_interval"} == variables.keys() - {"datasource"}


def expressions() -> list[tuple[str, str]]:
    """Each expression of the rules and of the dashboard, with the text that names labels of its result."""
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    dashboard: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    queries = [each["query"]["query"] for each in dashboard["templating"]["list"][1:]]
    values = [re.fullmatch(r"label_values\((.+), (\w+)\)", query) for query in queries]
    return [
        *((rule["expr"], " ".join(rule["annotations"].values())) for rule in rules),
        *((target["expr"], target.get("legendFormat", "")) for target in targets),
        *((found[1], f"{{{{{found[2]}}}}}") for found in values if found),
    ]


async def test_rules_and_dashboard_use_only_metrics_labels_and_values_that_there_are(manager: GpuLockManager) -> None:
    known: dict[str, dict[str, set[str]]] = {}
    for sample in samples(await busy(manager)):
        labels = known.setdefault(re.split(r"[{ ]", sample)[0], {"instance": set()})  # which Prometheus adds
        for label, value in re.findall(r'(\w+)="([^"]*)"', sample):
            labels.setdefault(label, set()).add(value)

    assert len(expressions()) > 25
    for expr, told in expressions():
        of_result: set[str] = set()
        for name, selector in re.findall(r"\b(aiogpulock_\w+)(?:\{([^}]*)\})?", expr):
            of_result |= known[name].keys()
            for label, operator, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', selector):
                assert label in known[name], expr
                if not value.startswith("$"):
                    assert set(value.split("|") if operator == "=~" else [value]) <= known[name][label], expr
        kept = re.findall(r"\bby \(([^)]*)\)", expr)
        for labels in kept:
            assert set(labels.split(", ")) <= of_result, expr
        if kept:
            of_result = set(kept[0].split(", "))
        elif re.match(r"(sum|min|max|avg|absent)\(", expr):
            of_result = set()
        assert set(re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", told)) <= of_result, (expr, told)
