"""``aiogpulock config``: show, check, migrate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from aiogpulock.cli.migration import migrate_file
from aiogpulock.config import load_settings
from aiogpulock.errors import ConfigError
from tests.edges.shell import ROOT, Shell

ORIGINAL = """\
# the application
redis:
  host: redis
  lock_db: 2
core: !custom
  workers: 4   # ours
gpu_lock:
  # how often
  poll_interval: 0.5        # seconds
  max_wait_time: 1800       # half an hour
  lock_timeout: 5400
  legacy:
    a: 1

  fallback_timeout: 30
gpu_lock_monitor:
  timeout_levels: {warning: 1800, soft_timeout: 3600, hard_timeout: 7200}
"""
MIGRATED = """\
# the application
redis:
  host: redis
  lock_db: 2
core: !custom
  workers: 4   # ours
gpu_lock:
  # how often
  redis:
    url: redis://redis:6379/2
  poll_interval: 0.5        # seconds
  max_wait_time: 300       # half an hour
  lock_timeout: 5400
#   legacy:
#     a: 1

  fallback_timeout: 30
gpu_lock_monitor:
  timeout_levels: {warning: 300, soft_timeout: 600, hard_timeout: 900}
"""


def test_a_file_of_the_original_becomes_ours(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(ORIGINAL)
    file.chmod(0o640)
    assert shell.run("config", "check").returncode == 78

    dry = shell.run("config", "migrate", "config.yml", "--dry-run")
    assert (dry.returncode, file.read_text()) == (0, ORIGINAL)
    done = shell.run("config", "migrate", "config.yml")
    assert done.stdout == dry.stdout
    assert done.stdout.splitlines()[:2] == [
        "gpu_lock.max_wait_time: 1800 → 300 (the original's default, now ours)",
        "gpu_lock.legacy: unknown here, commented out",
    ]
    assert file.read_text() == MIGRATED
    assert (tmp_path / "config.yml.backup").read_text() == ORIGINAL
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.glob("*")) == ["config.yml", "config.yml.backup"]

    good = shell.run("config", "check", env={"REDIS_URL": ""})
    assert good.returncode == 0
    assert good.stdout.startswith(f"{file}: good, ")
    again = shell.run("config", "migrate", "config.yml")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "config.yml: nothing to change\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gpu_lock: {poll_interval: 1", "not valid YAML"),
        ("gpu_lock: {nonsense: 1}", "gpu_lock.nonsense is unknown: remove it, then migrate"),
        ("gpu_lock: {max_wait_time: 1800, poll_interval: often}", "gpu_lock.poll_interval: got 'often'"),
        ("other: 1", "there is no section gpu_lock or gpu_lock_monitor in it"),
        ("- a list", "the top level must be a mapping"),
        ("gpu_lock: {max_wait_time: 1800}\nother: \x01", "not valid YAML"),
        ("base: &b\n  lock_timeout: 3600\ngpu_lock:\n  <<: *b\n", r":4: gpu_lock.<< is an alias"),
        ("base: &b {lock_timeout: 3600}\ngpu_lock: *b\n", ":2: gpu_lock is an alias"),
        ("half: &t 1800\ngpu_lock:\n  max_wait_time: *t\n", ":3: gpu_lock.max_wait_time is an alias"),
        ("gpu_lock: &x {max_wait_time: 1800}\nother: {mine: *x}", ":2: other has an alias of what must change"),
        ("gpu_lock: {max_wait_time: &x 1800}\nother: *x", "found undefined alias"),
    ],
)
def test_what_cannot_be_migrated_stays_as_it_is(text: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "old.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as refused:
        migrate_file(file)
    assert str(file) in str(refused.value)
    assert file.read_text() == text
    assert list(tmp_path.glob("*")) == [file]


def test_a_backup_is_never_overwritten(tmp_path: Path) -> None:
    file, backup = tmp_path / "old.yml", tmp_path / "old.yml.backup"
    file.write_text("gpu_lock: {max_wait_time: 1800}")
    backup.write_text("precious")
    with pytest.raises(ConfigError, match="is there already"):
        migrate_file(file)
    assert (file.read_text(), backup.read_text()) == ("gpu_lock: {max_wait_time: 1800}", "precious")


def test_what_somebody_chose_stays(tmp_path: Path) -> None:
    file = tmp_path / "old.yml"
    file.write_text("gpu_lock:\n  max_wait_time: 900\n  lock_timeout: 3600\n", newline="\r\n")
    assert len(migrate_file(file).changes) == 1
    assert file.read_bytes() == b"gpu_lock:\r\n  max_wait_time: 900\r\n  lock_timeout: 600\r\n"
    assert load_settings(file, environ={}).gpu_lock.max_wait_time == 900


@pytest.mark.parametrize(
    "value", ["|\n    some text\n    more", ">-\n    some text", "|+\n    some text\n\n", "a\n    b"]
)
@pytest.mark.parametrize(
    "rest", ["  lock_timeout: 900\n", "app_name: yivideo\n", "gpu_lock_monitor: {enabled: false}\n"]
)
def test_an_unknown_text_of_many_lines_takes_nothing_else_with_it(value: str, rest: str, tmp_path: Path) -> None:
    file = tmp_path / "old.yml"
    file.write_text(f"gpu_lock:\n  max_wait_time: 900\n  notes: {value}\n{rest}")
    assert migrate_file(file).changes == ["gpu_lock.notes: unknown here, commented out"]
    assert file.read_text().endswith(f"\n{rest}")
    assert "some text" not in str(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    "ours",
    [
        "gpu_lock: {max_wait_time: 900}",
        "gpu_lock: &x {}",
        "gpu_lock:",
        "gpu_lock:  # later",
        "gpu_lock: ~",
        "gpu_lock:\n  legacy: 1",
        "gpu_lock_monitor:\n  enabled: false",
    ],
)
@pytest.mark.parametrize(("tls", "scheme"), [("true", "rediss"), ("off", "redis")])
def test_the_redis_of_the_application_is_taken_however_our_section_is_written(
    ours: str, tls: str, scheme: str, tmp_path: Path
) -> None:
    file = tmp_path / "old.yml"
    file.write_text(f"{ours}\nredis:\n  host: r\n  lock_db: 2\n  ssl: {tls}\n")
    url = f"{scheme}://r:6379/2"
    changes, names_redis = migrate_file(file)
    assert (changes[-1], names_redis) == (f"gpu_lock.redis.url: {url} (from the section redis)", True)
    assert load_settings(file, environ={}).gpu_lock.redis.url == url
    assert migrate_file(file).changes == []


@pytest.mark.parametrize(
    "text",
    [
        "gpu_lock:\n  poll_interval: 1\n",
        "gpu_lock:\n  poll_interval: 1\nredis:\n  host: ${REDIS_HOST}\n",
        "gpu_lock:\n  poll_interval: 1\nredis: {host: r, port: '${REDIS_PORT}'}\n",
        "gpu_lock_monitor:\nredis: redis://r\n",
    ],
)
def test_where_no_redis_can_be_taken_it_is_said(text: str, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "old.yml").write_text(text)
    done = shell.run("config", "migrate", "old.yml")
    assert (done.returncode, done.stdout) == (0, "")
    assert "old.yml: names no Redis: set gpu_lock.redis.url, or REDIS_URL for every program\n" in done.stderr


def test_show_is_a_config_that_tells_where_it_comes_from(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("gpu_lock: {poll_interval: 1}\ngpu_lock_alerts: {urls: ['slack://a/b/c']}")
    environment = {"REDIS_URL": "redis://u:geheim@h/1", "AIOGPULOCK_MAX_WAIT_TIME": "null"}
    shown = shell.run("config", "show", env=environment)

    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert f"poll_interval: 1 # file {tmp_path}/config.yml" in lines
    assert "max_wait_time: null # environment variable AIOGPULOCK_MAX_WAIT_TIME" in lines
    assert "url: redis://u:***@h/1 # environment variable REDIS_URL" in lines
    assert "geheim" not in shown.stdout
    assert "b/c" not in shown.stdout
    (tmp_path / "shown.yml").write_text(shown.stdout.replace("u:***@", ""))
    assert load_settings(tmp_path / "shown.yml", environ={}).gpu_lock.poll_interval == 1

    seen = json.loads(shell.run("config", "show", "--json", env=environment).stdout)
    assert seen["settings"]["gpu_lock"]["redis"]["url"] == "redis://u:***@h/1"
    assert seen["origins"]["gpu_lock.max_wait_time"] == "environment variable AIOGPULOCK_MAX_WAIT_TIME"


def test_show_without_any_source_is_the_shipped_example(tmp_path: Path) -> None:
    from aiogpulock.cli.settings_text import as_yaml

    shown = tmp_path / "shown.yml"
    shown.write_text(as_yaml(load_settings(environ={}), {}))
    assert load_settings(shown, environ={}) == load_settings(Path(ROOT) / "config.yml", environ={})
