from __future__ import annotations

import dataclasses
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import yaml

from aiogpulock.config.settings import (
    SCHEMA,
    GpuMemorySettings,
    HeartbeatSettings,
    LockSettings,
    Settings,
    parse_size,
    redact_url,
)
from aiogpulock.config.sources import VARIABLES, SettingsSource, load_settings
from aiogpulock.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "config.yml"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the repository's own config.yml and from the developer's environment."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in [name for name in os.environ if name.startswith("AIOGPULOCK_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yml"


def lock_of(file: Path, text: str) -> LockSettings:
    file.write_text(text)
    return load_settings(file, environ={}).gpu_lock


def refused(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ={})
    return str(caught.value)


def refused_for(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=environ)
    return str(caught.value)


def refused_keyword(**keywords: object) -> str:
    with pytest.raises(ConfigError) as caught:
        LockSettings().override(**keywords)
    return str(caught.value)


def test_a_file_changes_what_it_names_and_leaves_the_rest(file: Path) -> None:
    lock = lock_of(file, "gpu_lock:\n  max_wait_time: 10\n  heartbeat: {max_stall: 0}\n")
    assert lock.max_wait_time == 10.0
    assert lock.heartbeat == HeartbeatSettings(max_stall=0)
    assert lock.poll_interval == 2.0


# --- the example ---


def test_the_example_equals_the_defaults() -> None:
    assert load_settings(EXAMPLE, environ={}) == Settings() == load_settings(environ={})


def test_the_example_names_every_key_and_its_default() -> None:
    parsed = yaml.safe_load(EXAMPLE.read_text())
    assert list(parsed) == list(SCHEMA.sections)
    assert set(SCHEMA.flatten(parsed, "example")) == set(SCHEMA.types)
    expected = msgspec.json.decode(msgspec.json.encode(Settings()))
    del expected["redis_url_source"]
    assert parsed == expected


# --- strictness ---


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("gpu_lock: {heartbeat: {interval: ten}}", ["gpu_lock.heartbeat.interval: got 'ten', expected seconds"]),
        ("gpu_lock: {poll_interval: true}", ["gpu_lock.poll_interval: got True, expected seconds"]),
        ("gpu_lock: {poll_interval: null}", ["gpu_lock.poll_interval: got None"]),
        ("gpu_lock: {poll_interval: 0}", ["gpu_lock.poll_interval: got 0,", "above 0"]),
        ("gpu_lock: {max_wait_time: -1}", ["gpu_lock.max_wait_time: got -1,", "from 0", "or null"]),
        ("gpu_lock: {max_wait_time: .nan}", ["gpu_lock.max_wait_time: got nan,"]),
        ("gpu_lock: {max_wait_time: .inf}", ["gpu_lock.max_wait_time: got inf,"]),
        ("gpu_lock: {claim_window: 0}", ["gpu_lock.claim_window: got 0,"]),
        ("gpu_lock: {restart_grace: -5}", ["gpu_lock.restart_grace: got -5,"]),
        ("gpu_lock: {lock_timeout: 0}", ["gpu_lock.lock_timeout: got 0,"]),
        ("gpu_lock: {max_waiters: -1}", ["gpu_lock.max_waiters: got -1, expected a whole number"]),
        ("gpu_lock: {max_waiters: 1.5}", ["gpu_lock.max_waiters: got 1.5, expected a whole number"]),
        ("gpu_lock: {max_waiters: true}", ["gpu_lock.max_waiters: got True,"]),
        ("gpu_lock: {use_event_driven: 1}", ["gpu_lock.use_event_driven: got 1, expected true or false"]),
        ("gpu_lock: {identity: serial}", ["gpu_lock.identity: got 'serial', expected one of auto, uuid, logical"]),
        ("gpu_lock: {critical_failure_log: 5}", ["gpu_lock.critical_failure_log: got 5, expected text or null"]),
        ("gpu_lock: {redis: {embedded: no}}", ["gpu_lock.redis.embedded: got False, expected one of auto, require"]),
        ("gpu_lock: {redis: {namespace: 'a b'}}", ["gpu_lock.redis.namespace: 'a b' must match"]),
        ("gpu_lock: {redis: {connect_timeout: 0}}", ["gpu_lock.redis.connect_timeout: got 0,"]),
        ("gpu_lock: {gpu_memory: {tolerance: 256}, heartbeat: 5}", ["gpu_lock.heartbeat: got 5, expected a mapping"]),
        (
            "gpu_lock: {gpu_memory: {context: much}}",
            ["gpu_lock.gpu_memory.context: got 'much', expected a size"],
        ),
        (
            "gpu_lock: {gpu_memory: {tolerance: plenty}}",
            ["gpu_lock.gpu_memory.tolerance: got 'plenty', expected a size"],
        ),
        ("gpu_lock: {gpu_memory: {settle_time: -1}}", ["gpu_lock.gpu_memory.settle_time: got -1,"]),
        ("gpu_lock: [1]", ["gpu_lock: got a list, expected a mapping"]),
        ("gpu_lock_monitor: {cleanup: {max_retry: -1}}", ["gpu_lock_monitor.cleanup.max_retry: got -1,"]),
        ("gpu_lock_monitor: {hard_timeout_action: kill}", ["gpu_lock_monitor.hard_timeout_action: got 'kill'"]),
        ("gpu_lock_alerts: {min_samples: 0}", ["gpu_lock_alerts.min_samples: got 0, expected a whole number from 1"]),
        (
            "gpu_lock_alerts: {urls: 'https://a.example'}",
            ["gpu_lock_alerts.urls: got 'https://a.example', expected a list"],
        ),
        ("gpu_lock_alerts: {urls: [nowhere]}", ["gpu_lock_alerts.urls: got '***', expected URLs"]),
    ],
)
def test_an_unusable_value_is_refused_with_its_key_the_value_and_the_file(
    file: Path, text: str, parts: list[str]
) -> None:
    error = refused(file, text)
    assert error.endswith(f"(file {file})")
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("text", "key", "limit"),
    [
        ("gpu_lock: {poll_interval: 11}", "gpu_lock.poll_interval: got 11.0", "at most gpu_lock.max_poll_interval"),
        (
            "gpu_lock: {heartbeat: {interval: 60}}",
            "gpu_lock.heartbeat.interval: got 60.0",
            "gpu_lock.heartbeat.timeout",
        ),
        (
            "gpu_lock: {heartbeat: {interval: 70, enabled: false}}",
            "gpu_lock.heartbeat.interval: got 70.0",
            "less than gpu_lock.heartbeat.timeout, which is 60.0 (default)",
        ),
        ("gpu_lock: {lock_timeout: 9, heartbeat: {interval: 10}}", "heartbeat.interval: got 10.0", "lock_timeout"),
        ("gpu_lock: {heartbeat: {interval: 55}}", "heartbeat.interval: got 55.0", "less than 54"),
        (
            "gpu_lock_monitor: {heartbeat: {timeout: 10}}",
            "gpu_lock_monitor.heartbeat.interval: got 10.0",
            "less than gpu_lock_monitor.heartbeat.timeout",
        ),
        ("gpu_lock_monitor: {timeout_levels: {warning: 600}}", "levels.warning: got 600.0", "levels.soft_timeout"),
        ("gpu_lock_monitor: {timeout_levels: {hard_timeout: 600}}", "levels.soft_timeout: got 600.0", "hard_timeout"),
    ],
)
def test_an_impossible_order_is_refused_with_both_keys(file: Path, text: str, key: str, limit: str) -> None:
    error = refused(file, text)
    assert key in error
    assert limit in error
    assert str(file) in error


def test_equal_poll_intervals_are_a_steady_poll(file: Path) -> None:
    assert lock_of(file, "gpu_lock: {poll_interval: 10}").poll_interval == 10


def test_waiting_for_ever_and_not_at_all_can_be_said(file: Path) -> None:
    assert lock_of(file, "gpu_lock: {max_wait_time: null}").max_wait_time is None
    assert lock_of(file, "gpu_lock: {max_wait_time: 0}").max_wait_time == 0


def test_a_bare_off_means_off_and_not_false(file: Path) -> None:
    memory = lock_of(file, "gpu_lock: {gpu_memory: {policy: off, nvml: off}}").gpu_memory
    assert (memory.policy, memory.nvml) == ("off", "off")
    assert load_settings(environ={"AIOGPULOCK_GPU_MEMORY_POLICY": "off"}).gpu_lock.gpu_memory.policy == "off"
    assert "got False" in refused_keyword(gpu_memory={"policy": False})


def test_a_long_value_is_cut_in_the_error(file: Path) -> None:
    assert len(refused(file, f"gpu_lock: {{poll_interval: {'x' * 5000}}}")) < 200 + len(str(file))


def test_an_unknown_key_is_refused_with_the_nearest_known_one(file: Path) -> None:
    error = refused(file, "gpu_lock: {heartbeat: {intervall: 5}}")
    assert error == f"gpu_lock.heartbeat.intervall: unknown key; did you mean 'interval'? (file {file})"
    assert "known are enabled, interval" in refused(file, "gpu_lock: {heartbeat: {zzz: 5}}")
    assert "gpu_lock.1: unknown key" in refused(file, "gpu_lock: {1: 5}")
    assert "gpu_lock.heartbeat.interval: unknown key" in refused(file, "gpu_lock: {heartbeat.interval: 5}")


# --- YAML ---


def test_an_empty_file_gives_the_defaults(file: Path) -> None:
    assert lock_of(file, "") == LockSettings()
    assert lock_of(file, "# nothing yet\n") == LockSettings()


def test_a_section_whose_keys_are_all_commented_out_gives_the_defaults(file: Path) -> None:
    assert lock_of(file, "gpu_lock:\n  heartbeat:\n    # interval: 5\n  redis:\ngpu_lock_alerts:\n") == LockSettings()


def test_a_syntax_error_names_file_and_line(file: Path) -> None:
    assert refused(file, "gpu_lock:\n  poll_interval: [1\n").startswith(f"{file}:3: not valid YAML: ")
    assert "not valid YAML" in refused(file, "gpu_lock: \x07")
    assert "not valid YAML" in refused(file, "gpu_lock: " + "[" * 5000)


def test_a_duplicate_key_is_refused_with_its_line(file: Path) -> None:
    text = "gpu_lock:\n  heartbeat:\n    interval: 5\n    interval: 6\n"
    assert refused(file, text) == f"{file}:4: duplicate key 'interval'"
    assert refused(file, "gpu_lock: {}\ngpu_lock: {}\n") == f"{file}:2: duplicate key 'gpu_lock'"


def test_a_top_level_that_is_no_mapping_is_refused(file: Path) -> None:
    assert refused(file, "- 1\n") == f"{file}:1: the top level must be a mapping of sections"


def test_anchors_and_merges_work_and_a_cycle_does_not_hang(file: Path) -> None:
    lock = lock_of(file, "beat: &beat {interval: 5, timeout: 30}\ngpu_lock: {heartbeat: {<<: *beat, timeout: 40}}\n")
    assert (lock.heartbeat.interval, lock.heartbeat.timeout) == (5, 40)
    assert "gpu_lock.heartbeat.heartbeat: unknown key" in refused(file, "gpu_lock: &a {heartbeat: *a}\n")


def test_other_sections_belong_to_the_application(file: Path) -> None:
    text = "model: !load {a: 1, a: 2}\nredis: 5\ngpu_lock: {poll_interval: 3}\n"
    assert lock_of(file, text).poll_interval == 3
    assert load_settings(file, environ={}).gpu_lock.redis.url is None


# --- finding the file ---


def test_a_config_yml_of_another_program_is_ignored() -> None:
    Path("config.yml").write_text("- not: [ours\n")
    assert load_settings(environ={}) == Settings()


def test_a_config_yml_in_the_working_directory_is_found() -> None:
    Path("config.yml").write_text("gpu_lock: {poll_interval: 3}")
    assert load_settings(environ={}).gpu_lock.poll_interval == 3


def test_the_argument_wins_over_the_variable_and_the_variable_over_the_found_file(tmp_path: Path) -> None:
    for number, path in enumerate([tmp_path / "argument.yml", tmp_path / "variable.yml", Path("config.yml")], start=3):
        path.write_text(f"gpu_lock: {{poll_interval: {number}}}")
    environ = {"AIOGPULOCK_CONFIG": str(tmp_path / "variable.yml")}
    assert load_settings(str(tmp_path / "argument.yml"), environ=environ).gpu_lock.poll_interval == 3
    assert load_settings(environ=environ).gpu_lock.poll_interval == 4
    assert load_settings(environ={"AIOGPULOCK_CONFIG": ""}).gpu_lock.poll_interval == 5


def test_a_named_file_must_exist_but_need_not_have_our_sections(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"settings\.yml: No such file"):
        load_settings(file, environ={})
    assert "absent.yml: No such file" in refused_for(AIOGPULOCK_CONFIG="absent.yml")
    assert lock_of(file, "model: {}\n") == LockSettings()


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_settings(tmp_path, environ={})


# --- environment and precedence ---


def test_keyword_wins_over_environment_over_file_over_default(file: Path) -> None:
    file.write_text("gpu_lock: {poll_interval: 3, claim_window: 3, fallback_timeout: 3}")
    environ = {"AIOGPULOCK_POLL_INTERVAL": "4", "AIOGPULOCK_CLAIM_WINDOW": "4"}
    lock = load_settings(file, environ=environ, overrides={"gpu_lock": {"poll_interval": 5}}).gpu_lock
    assert (lock.poll_interval, lock.claim_window, lock.fallback_timeout, lock.restart_grace) == (5, 4, 3, 5)


def test_the_process_environment_is_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOGPULOCK_POLL_INTERVAL", "4")
    assert load_settings().gpu_lock.poll_interval == 4


def test_every_setting_has_a_variable_of_its_own() -> None:
    assert sorted(VARIABLES.values()) == sorted(set(SCHEMA.types) - {"gpu_lock.redis.url"})
    names = {
        "POLL_INTERVAL",
        "HEARTBEAT_TIMEOUT",
        "REDIS_NAMESPACE",
        "GPU_MEMORY_POLICY",
        "MONITOR_AUDIT_LOG",
        "ALERTS_URLS",
    }
    assert {f"AIOGPULOCK_{name}" for name in names} <= VARIABLES.keys()


def test_variables_are_read_as_yaml_scalars_and_flow_lists() -> None:
    environ = {
        "AIOGPULOCK_MAX_WAIT_TIME": "null",
        "AIOGPULOCK_HEARTBEAT_ENABLED": "false",
        "AIOGPULOCK_GPU_MEMORY_TOLERANCE": "1GiB",
        "AIOGPULOCK_MONITOR_TIMEOUT_LEVELS_WARNING": "1.5",
        "AIOGPULOCK_ALERTS_URLS": "[https://a.example/x, https://b.example/y]",
    }
    settings = load_settings(environ=environ)
    assert settings.gpu_lock.max_wait_time is None
    assert settings.gpu_lock.heartbeat.enabled is False
    assert settings.gpu_lock.gpu_memory.tolerance_bytes == 2**30
    assert settings.gpu_lock_monitor.timeout_levels.warning == 1.5
    assert settings.gpu_lock_alerts.urls == ("https://a.example/x", "https://b.example/y")


def test_an_empty_variable_counts_as_unset() -> None:
    environ = {"AIOGPULOCK_MAX_WAIT_TIME": " ", "AIOGPULOCK_REDIS_URL": "", "REDIS_URL": ""}
    assert load_settings(environ=environ) == Settings()


def test_an_unusable_variable_is_named() -> None:
    error = refused_for(AIOGPULOCK_HEARTBEAT_TIMEOUT="soon")
    assert error.startswith("gpu_lock.heartbeat.timeout: got 'soon', expected seconds")
    assert error.endswith("(environment variable AIOGPULOCK_HEARTBEAT_TIMEOUT)")
    assert "cannot be read as YAML (environment variable AIOGPULOCK_CLAIM_WINDOW)" in refused_for(
        AIOGPULOCK_CLAIM_WINDOW="[1"
    )


def test_an_order_error_tells_both_sources(file: Path) -> None:
    file.write_text("gpu_lock: {poll_interval: 9}")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ={"AIOGPULOCK_MAX_POLL_INTERVAL": "5"})
    assert f"(file {file})" in str(caught.value)
    assert "which is 5.0 (environment variable AIOGPULOCK_MAX_POLL_INTERVAL)" in str(caught.value)


def test_unknown_variables_give_one_warning_and_reserved_ones_none(caplog: pytest.LogCaptureFixture) -> None:
    told_by_a_holder = {"AIOGPULOCK_GPU": "0", "AIOGPULOCK_TOKEN": "7", "AIOGPULOCK_WITHIN": "a b"}
    reserved = told_by_a_holder | {"AIOGPULOCK_CONFIG": "", "AIOGPULOCK_REDIS_URL": ""}
    load_settings(environ=reserved | {"PATH": "/bin"})
    assert caplog.messages == []
    load_settings(environ=reserved | {"AIOGPULOCK_POLL_INTERVALL": "1", "AIOGPULOCK_XYZZY": "1"})
    assert caplog.messages == [
        "ignored, not settings of aiogpulock: AIOGPULOCK_POLL_INTERVALL (did you mean AIOGPULOCK_POLL_INTERVAL?), "
        "AIOGPULOCK_XYZZY"
    ]


def test_overrides_are_as_strict_as_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^poll_interval: unknown key; known are gpu_lock, .*\(keyword\)$"):
        load_settings(environ={}, overrides={"poll_interval": 3})
    with pytest.raises(ConfigError, match=r"^redis_url_source: unknown key"):
        load_settings(environ={}, overrides={"redis_url_source": "me"})
    with pytest.raises(ConfigError, match=r"^gpu_lock\.poll_interval: got '3', .*\(keyword\)$"):
        load_settings(environ={}, overrides={"gpu_lock": {"poll_interval": "3"}})


# --- the Redis URL ---


def test_the_redis_url_comes_from_the_strongest_source_that_names_one(file: Path) -> None:
    file.write_text("gpu_lock: {redis: {url: redis://file}}")
    environ = {"AIOGPULOCK_REDIS_URL": "redis://ours", "REDIS_URL": "redis://common"}

    def named(**sources: object) -> tuple[str | None, str | None]:
        settings = load_settings(**sources)  # type: ignore[arg-type]
        return settings.gpu_lock.redis.url, settings.redis_url_source

    assert named(path=file, redis_url="redis://arg", environ=environ) == ("redis://arg", "argument redis_url")
    assert named(path=file, environ=environ) == ("redis://ours", "environment variable AIOGPULOCK_REDIS_URL")
    del environ["AIOGPULOCK_REDIS_URL"]
    assert named(path=file, environ=environ) == ("redis://common", "environment variable REDIS_URL")
    assert named(path=file, environ={}) == ("redis://file", f"file {file}")
    assert named(environ={}) == (None, None)
    keyword: Mapping[str, object] = {"gpu_lock": {"redis": {"url": "redis://key"}}}
    assert named(path=file, environ=environ, overrides=keyword) == ("redis://key", "keyword")
    nothing: Mapping[str, object] = {"gpu_lock": {"redis": {"url": None}}}
    assert named(path=file, environ={}, overrides=nothing) == ("redis://file", f"file {file}")


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:p%2Fw@host:6379/3",
        "rediss://[::1]:6380/0?ssl_cert_reqs=none",
        "redis:///2",
        "unix:///run/redis.sock?db=1",
        "unix://user:pw@/run/redis.sock",
    ],
)
def test_a_redis_url_is_taken_as_it_is(url: str) -> None:
    assert load_settings(redis_url=url, environ={}).gpu_lock.redis.url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://:hunter2@host",
        "valkey://:hunter2@host",
        "redis:host",
        "redis://:hunter2/tail@host/0",
        "redis://:hunter2#tail@host/0",
        "redis://:hunter2?tail@host/0",
        "redis://:123#hunter2@host",
        "redis://:123/hunter2@host",
        "redis://:123?hunter2@host",
        "redis://host/0#tail",
        "redis://host:65536",
        "redis://host/zero?password=hunter2",
        "redis://host:6379/0\n",
        "redis://:hunter2@[::1",
        "unix://",
    ],
)
def test_a_url_that_would_be_misread_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^gpu_lock\.redis\.url: got '.*(argument redis_url)") as caught:
        load_settings(redis_url=url, environ={})
    assert "hunter2" not in str(caught.value)
    assert "redis://host:port/db" in str(caught.value)


def test_a_bad_url_in_the_environment_is_refused_and_never_replaced_by_the_embedded_server() -> None:
    assert refused_for(REDIS_URL="amqp://host").endswith("(environment variable REDIS_URL)")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:hunter2@host/0", "redis://user:***@host/0"),
        ("redis://:hunter2@host", "redis://:***@host"),
        ("redis://hunter2@host", "redis://***@host"),
        ("redis://:hun@ter2@host", "redis://:***@host"),
        ("redis://:p://x@host", "redis://:***@host"),
        ("redis://host/0?password=hunter2&db=1", "redis://host/0?password=***&db=1"),
        ("unix://:hunter2@/run/r.sock", "unix://:***@/run/r.sock"),
        (":hunter2@host:6379", ":***@host:6379"),
        ("https://hooks.example/T0/hunter2", "https://hooks.example/***"),
        ("mailtos://me:hunter2@mail.example?to=a", "mailtos://me:***@mail.example/***"),
        ("ten", "ten"),
    ],
)
def test_a_redacted_url_keeps_the_place_and_drops_the_secret(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_no_repr_shows_a_password(file: Path) -> None:
    file.write_text("gpu_lock_alerts: {urls: ['https://hooks.example/hunter2']}")
    settings = load_settings(file, redis_url="redis://me:hunter2@host/1", environ={})
    assert "redis://me:***@host/1" in repr(settings)
    assert "https://hooks.example/***" in repr(settings)
    assert "hunter2" not in repr(settings)
    rich = pytest.importorskip("rich.console")
    console = rich.Console(file=io.StringIO(), width=200)
    console.print(settings)
    assert "hunter2" not in console.file.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "gpu_lock: {redis: 'redis://:hunter2@host'}",
        "gpu_lock: {redis: {namespace: ':hunter2@host'}}",
        "gpu_lock: {redis: {url: [':hunter2@host']}}",
        "gpu_lock: {redis: {'redis://:hunter2@host': null}}",
        "gpu_lock: {redis: {'redis://:hunter2@host': 1, 'redis://:hunter2@host': 2}}",
        "gpu_lock: {redis: {url: 'redis://:hunter2@host'\n",
        "gpu_lock: {redis: {embedded: 'redis://:hunter2@host'}}",
        "gpu_lock_alerts: {urls: ['//:hunter2@host']}",
    ],
)
def test_no_error_shows_a_password(file: Path, text: str) -> None:
    assert "hunter2" not in refused(file, text)


# --- sizes ---


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 256 * 2**20),
        ("20 GiB", 20 * 2**30),
        ("1.5kib", 1536),
        ("1TB", 10**12),
        ("5kB", 5000),
        ("3MB", 3 * 10**6),
        ("7B", 7),
        (0, 0),
        (12, 12),
    ],
)
def test_a_size_is_parsed(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "20", "20G", "GiB", "-1MiB", "1e3MiB", "1MiB free", "٣MiB", -1, True, 1.5, None])
def test_a_size_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match=r"^here: got .*, expected a size such as '256MiB'"):
        parse_size(text, "here")  # type: ignore[arg-type]


def test_a_size_stays_as_written_and_is_offered_in_bytes(file: Path) -> None:
    memory = lock_of(file, "gpu_lock: {gpu_memory: {tolerance: 1GiB}}").gpu_memory
    assert (memory.tolerance, memory.tolerance_bytes, memory.require_free_bytes) == ("1GiB", 2**30, None)
    assert GpuMemorySettings(require_free="20GiB").require_free_bytes == 20 * 2**30
    assert GpuMemorySettings(context="1GiB").context_bytes == 2**30


# --- the lease ---


def test_the_lease_is_the_smaller_time_and_lock_timeout_without_a_heartbeat() -> None:
    assert LockSettings().lease == 60
    assert LockSettings(lock_timeout=30).lease == 30
    assert LockSettings(heartbeat=HeartbeatSettings(enabled=False)).lease == 600


def test_the_margin_is_a_second_or_a_tenth_but_at_most_a_third_of_the_lease() -> None:
    assert [LockSettings(lock_timeout=lease).margin for lease in (60, 5, 1.5)] == [6, 1, 0.5]


def test_a_short_lock_timeout_alone_scales_the_heartbeat_down(file: Path) -> None:
    lock = lock_of(file, "gpu_lock: {lock_timeout: 6, heartbeat: {max_stall: 5}}")
    assert lock.heartbeat == HeartbeatSettings(interval=1, timeout=6, max_stall=5)
    assert lock_of(file, "gpu_lock: {lock_timeout: 6000}").heartbeat == HeartbeatSettings()


def test_a_heartbeat_time_from_any_source_is_not_scaled(file: Path) -> None:
    file.write_text("gpu_lock: {heartbeat: {interval: 8}}")
    lock = load_settings(file, environ={"AIOGPULOCK_LOCK_TIMEOUT": "30"}).gpu_lock
    assert (lock.heartbeat.interval, lock.heartbeat.timeout, lock.lease) == (8, 60, 30)


def test_a_beat_may_be_rare_while_the_heartbeat_is_off() -> None:
    lock = LockSettings().override(lock_timeout=5, heartbeat={"enabled": False, "interval": 10})
    assert lock.lease == 5


# --- keywords of one lock ---


def test_a_lock_takes_keywords_of_its_own() -> None:
    base = LockSettings(poll_interval=3)
    lock = base.override(max_wait_time=None, heartbeat={"interval": 5}, restart_grace=1, critical_failure_log="x")
    assert (lock.max_wait_time, lock.poll_interval, lock.restart_grace, lock.critical_failure_log) == (None, 3, 1, "x")
    assert lock.heartbeat == HeartbeatSettings(interval=5)
    assert base == LockSettings(poll_interval=3)
    assert base.override() is base


def test_keywords_take_whole_records_and_check_them_too() -> None:
    lock = LockSettings().override(gpu_memory=GpuMemorySettings(policy="off"), heartbeat=HeartbeatSettings(timeout=20))
    assert (lock.gpu_memory.policy, lock.heartbeat.timeout) == ("off", 20)
    assert refused_keyword(heartbeat=HeartbeatSettings(interval=-1)).startswith(
        "gpu_lock(heartbeat.interval=…): got -1"
    )
    assert "expected a mapping" in refused_keyword(heartbeat=GpuMemorySettings())


def test_refused_keywords_are_named_as_the_caller_wrote_them() -> None:
    assert refused_keyword(max_wait_time=-1).startswith("gpu_lock(max_wait_time=…): got -1, expected seconds")
    assert refused_keyword(max_wait_tim=1).startswith(
        "gpu_lock(max_wait_tim=…): unknown key; did you mean 'max_wait_time'?"
    )
    assert refused_keyword(heartbeat={"timeout": True}).startswith("gpu_lock(heartbeat.timeout=…): got True")
    assert refused_keyword(heartbeat=None).startswith("gpu_lock(heartbeat=…): got None, expected a mapping")
    assert "which is 10.0 (current setting)" in refused_keyword(poll_interval=20)
    assert refused_keyword(gpu_memory={"tolerance": "x"}).startswith("gpu_lock(gpu_memory.tolerance=…): got 'x'")


def test_a_word_of_the_original_is_answered_with_ours() -> None:
    assert refused_keyword(lock_key="gpu_lock:0") == (
        "gpu_lock(lock_key=…): name the GPU instead of its key, as in gpu_lock(0)"
    )
    assert refused_keyword(timeout=3600).startswith("gpu_lock(timeout=…): max_wait_time is how long to wait")


def test_a_single_lock_cannot_choose_its_server() -> None:
    assert "use GpuLockManager(redis_url=…)" in refused_keyword(redis={"url": "redis://host"})


def test_a_lock_timeout_keyword_alone_scales_whatever_heartbeat_was_set() -> None:
    base = LockSettings(heartbeat=HeartbeatSettings(interval=20, timeout=60))
    assert base.override(lock_timeout=6).heartbeat == HeartbeatSettings(interval=2, timeout=6)
    assert base.override(lock_timeout=30, heartbeat={"interval": 9}).heartbeat.timeout == 60


# --- a file that changes ---


@dataclasses.dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def poll_interval(file: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> _Watched:
    file.write_text("gpu_lock: {poll_interval: 3}")
    caplog.set_level(logging.WARNING)
    return _Watched(SettingsSource(file, environ={}, clock=clock), clock)


@dataclasses.dataclass
class _Watched:
    source: SettingsSource
    clock: Clock

    def __call__(self, *, later: float = 1.0) -> float:
        self.clock.now += later
        return self.source.current().gpu_lock.poll_interval


def test_a_changed_file_is_read_at_the_next_look_and_not_before(poll_interval: _Watched, file: Path) -> None:
    file.write_text("gpu_lock: {poll_interval: 4.5}")
    assert poll_interval(later=0.9) == 3
    assert poll_interval(later=0.1) == 4.5
    file.write_text("gpu_lock: {poll_interval: 6}")
    assert poll_interval(later=0.9) == 4.5


def test_the_time_between_looks_can_be_chosen(file: Path, clock: Clock) -> None:
    file.write_text("gpu_lock: {poll_interval: 3}")
    watched = _Watched(SettingsSource(file, environ={}, look_every=0.0, clock=clock), clock)
    file.write_text("gpu_lock: {poll_interval: 4.5}")
    assert watched(later=0) == 4.5


def test_an_unchanged_file_gives_the_same_object(poll_interval: _Watched, clock: Clock) -> None:
    before = poll_interval.source.current()
    clock.now += 5
    assert poll_interval.source.current() is before


def test_a_file_of_the_same_size_is_noticed_by_its_time(poll_interval: _Watched, file: Path) -> None:
    file.write_text("gpu_lock: {poll_interval: 4}")
    os.utime(file, ns=(1, 1))
    assert poll_interval() == 4


def test_a_file_of_the_same_size_in_another_inode_is_noticed(poll_interval: _Watched, file: Path) -> None:
    times = file.stat()
    new = file.with_suffix(".new")
    new.write_text("gpu_lock: {poll_interval: 4}")
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.rename(file)
    assert poll_interval() == 4


def test_a_file_that_breaks_leaves_the_last_good_settings_and_one_log_line(
    poll_interval: _Watched, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("gpu_lock: {poll_interval: -4}")
    assert [poll_interval() for _ in range(3)] == [3, 3, 3]
    os.utime(file, ns=(1, 1))
    assert poll_interval() == 3
    (line,) = caplog.messages
    assert line.startswith("settings stay as they were: gpu_lock.poll_interval: got -4")
    file.write_text("gpu_lock: {poll_interval: 4}")
    assert poll_interval() == 4
    file.write_text("gpu_lock: {poll_interval: -4}\n")
    assert poll_interval() == 4
    assert len(caplog.messages) == 2


def test_a_file_that_vanishes_leaves_the_last_good_settings_and_one_log_line(
    poll_interval: _Watched, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.rename(file.with_suffix(".away"))
    assert [poll_interval(), poll_interval()] == [3, 3]
    assert caplog.messages == [f"settings stay as they were: {file}: the file is gone"]
    file.with_suffix(".away").write_text("gpu_lock: {poll_interval: 4}")
    file.with_suffix(".away").rename(file)
    assert poll_interval() == 4


def test_a_config_yml_that_appears_later_is_picked_up_also_after_a_change_of_directory(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = _Watched(SettingsSource(environ={}, clock=clock), clock)
    assert watched() == 2
    Path("config.yml").write_text("gpu_lock: {poll_interval: 4}")
    monkeypatch.chdir(tmp_path)
    assert watched() == 4


def test_keywords_environment_and_url_outlive_a_change_of_the_file(file: Path, clock: Clock) -> None:
    file.write_text("")
    environ = {"AIOGPULOCK_CLAIM_WINDOW": "4"}
    source = SettingsSource(file, "redis://arg", environ, {"gpu_lock": {"fallback_timeout": 9}}, clock=clock)
    environ.clear()
    file.write_text("gpu_lock: {poll_interval: 4, redis: {url: redis://file}}")
    clock.now += 1
    lock = source.current().gpu_lock
    assert (lock.poll_interval, lock.claim_window, lock.fallback_timeout, lock.redis.url) == (4, 4, 9, "redis://arg")


def test_errors_at_construction_are_raised(file: Path) -> None:
    with pytest.raises(ConfigError):
        SettingsSource(file, environ={})
    file.write_text("gpu_lock: 5")
    with pytest.raises(ConfigError):
        SettingsSource(file, environ={})
