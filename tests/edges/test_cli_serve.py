"""``aiogpulock serve``: the verb; what is served has tests of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request

import redis

from tests.edges.shell import ROOT, Shell, ended


def test_it_serves_until_it_is_told_to_end(shell: Shell, redis_cleanup: redis.Redis) -> None:
    server = shell.start("serve", "--port", "0")
    assert server.stderr is not None
    place = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
    with urllib.request.urlopen(f"{place}/livez") as answer:
        assert json.load(answer) == {"status": "alive"}
    server.terminate()
    assert ended(server)[0] in (0, -15, 143)


def test_without_its_extra_it_says_what_to_install() -> None:
    program = """
import sys
sys.modules["starlette"] = None
sys.argv = ["aiogpulock", "serve"]
from aiogpulock.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"aiogpulock: .*pip install 'aiogpulock\[server\]'\n", done.stderr)


def test_wrong_settings_are_78(shell: Shell) -> None:
    done = shell.run("serve", "--redis-url", "nonsense")
    assert done.returncode == 78
    assert done.stderr.startswith("aiogpulock: gpu_lock.redis.url: got 'nonsense'")
