"""The pytest plugin, as suites use it: each test here writes a suite and runs pytest on it in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from aiogpulock import sync
from tests.gpu.conftest import driver_folder as driver_folder
from tests.gpu.conftest import sim as sim
from tests.helpers import wait_until
from tests.nvml_sim import Simulation
from tests.register import RegisterProcess

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[2]
LOCKS, QUEUES = "gpu_lock:*", "{gpu_lock:*}:queue"
"""Patterns of keys: a lock that is held, a queue where somebody waits."""
Run = Callable[..., pytest.RunResult]
since_pytest_9 = pytest.mark.skipif(
    pytest.version_tuple < (9,),
    reason="pytest 8 has no such ini key, and meets two equal options too late for a plugin",
)


@pytest.fixture(autouse=True)
def client(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, redis_cleanup: redis.Redis, driver_folder: Path, sim: Simulation
) -> Iterator[redis.Redis]:
    """A host with a driver, two GPUs and a Redis; afterwards nothing may be left in it."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("AIOGPULOCK_RESTART_GRACE", "0")
    monkeypatch.setenv("AIOGPULOCK_GPU_MEMORY_NVML", "auto")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver_folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    yield redis_cleanup
    sync.close()


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run pytest on one module with this text."""
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\naddopts = -p no:cacheprovider\n"
    )

    def run(suite: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_suite=textwrap.dedent(suite))
        return pytester.runpytest_subprocess("-ra", "--strict-markers", *options, timeout=90)

    return run


def outcomes(result: pytest.RunResult, **expected: int) -> None:
    found = {name: count for name, count in result.parseoutcomes().items() if name != "warnings"}
    assert found == expected, result.stdout.str() + result.stderr.str()


# taking turns

SHARED = """
    import asyncio, os, time, pytest
    from tests.register import RegisterClient

    pytestmark = pytest.mark.gpu_lock(0)

    @pytest.fixture
    def inside(gpu_lock):
        client = RegisterClient(os.environ["REGISTER"])
        assert client.enter(gpu_lock.holder_id, gpu_lock.fencing_token)
        yield
        client.exit(gpu_lock.holder_id)
        client.close()

    @pytest.mark.parametrize("n", range(10))
    def test_plain(n, inside):
        time.sleep(0.005)

    @pytest.mark.parametrize("n", range(10))
    @pytest.mark.asyncio(loop_scope="module")
    async def test_in_the_loop_of_the_module(n, inside):
        await asyncio.sleep(0.005)

    @pytest.mark.parametrize("n", range(10))
    async def test_in_a_loop_of_its_own(n, inside):
        time.sleep(0.005)

    class TestAnyio:
        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def anyio_backend(self):
            return "asyncio"

        @pytest.mark.parametrize("n", range(10))
        async def test_anyio(self, n, inside):
            await asyncio.sleep(0.005)
"""


def test_40_marked_tests_of_4_workers_never_overlap(
    run: Run, monkeypatch: pytest.MonkeyPatch, register: RegisterProcess, client: redis.Redis
) -> None:
    monkeypatch.setenv("REGISTER", register.path)
    outcomes(run(SHARED.replace("anyio,", ""), "-n", "4"), passed=40)
    report = register.report()
    assert report["overlaps"] == []
    assert len(report["tokens"]) == len(set(report["tokens"])) == 40
    assert not client.keys(LOCKS)


def test_the_test_is_shown_as_the_holder_and_has_the_gpu_before_its_fixtures_and_after_them(run: Run) -> None:
    result = run(
        """
        import os, pytest, redis

        def holder():
            with redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True) as client:
                return "".join(client.get(key) for key in client.keys("gpu_lock:*"))

        @pytest.fixture
        def model():
            assert holder().startswith("locked_by_test_suite.py::test_it:")
            yield
            assert holder().startswith("locked_by_test_suite.py::test_it:")

        @pytest.mark.gpu_lock(0)
        def test_it(model):
            assert holder().startswith("locked_by_test_suite.py::test_it:")

        def test_another():
            assert holder() == ""

        def test_by_fixture(gpu_lock):
            assert holder() == f"locked_by_test_suite.py::test_by_fixture:{gpu_lock.holder_id}"
            gpu_lock.check()
        """
    )
    outcomes(result, passed=3)


def test_a_test_that_blocks_longer_than_its_lease_keeps_it(run: Run) -> None:
    result = run(
        """
        import time, pytest
        pytestmark = pytest.mark.gpu_lock(0, heartbeat={"interval": 0.2, "timeout": 1.0})

        def test_plain(gpu_lock):
            time.sleep(1.5)
            gpu_lock.check()

        async def test_async(gpu_lock):
            time.sleep(1.5)
            gpu_lock.check()
        """
    )
    outcomes(result, passed=2)


def test_marked_tests_join_the_lease_of_a_wider_fixture(run: Run) -> None:
    result = run(
        """
        import pytest
        tokens = set()

        @pytest.fixture(scope="module")
        def model(gpu_lock_factory):
            with gpu_lock_factory(0) as lease:
                yield lease.fencing_token
                lease.check()

        @pytest.fixture(scope="module", autouse=True)
        def end():
            yield
            assert len(tokens) == 2

        def test_first(gpu_lock, model):
            tokens.add(gpu_lock.fencing_token)

        @pytest.mark.parametrize("gpu", [pytest.param(id, marks=pytest.mark.gpu_lock(id)) for id in (0, 0, "cuda:0")])
        def test_more(gpu, model, gpu_lock):
            assert gpu_lock.fencing_token == model
            tokens.add(gpu_lock.fencing_token)

        @pytest.mark.gpu_lock(1)
        def test_another_gpu(gpu_lock, model):
            tokens.add(gpu_lock.fencing_token)
        """
    )
    outcomes(result, passed=5)


def test_without_a_redis_the_embedded_server_holds_the_locks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL")
    outcomes(
        run(
            """
            import pytest

            @pytest.mark.gpu_lock(0)
            def test_it(gpu_lock):
                gpu_lock.check()
            """
        ),
        passed=1,
    )


# no GPU

THREE = """
    import pytest

    @pytest.mark.gpu_lock(7)
    def test_a_gpu_that_is_not_here(): ...

    @pytest.mark.gpu_lock
    def test_the_default_gpu(): ...

    def test_no_gpu(): ...
"""


def test_a_gpu_that_does_not_exist_skips_its_tests_and_says_why(run: Run) -> None:
    result = run(THREE)
    outcomes(result, passed=2, skipped=1)
    result.stdout.fnmatch_lines("SKIPPED * there is no GPU 7 on this host: NVML has 0 and 1")


def test_without_a_driver_marked_tests_are_skipped_and_say_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")
    result = run(THREE)
    outcomes(result, passed=1, skipped=2)
    result.stdout.fnmatch_lines("SKIPPED * no GPU here: *no NVIDIA driver on this host*")


def test_gpu_required_fails_what_would_be_skipped(run: Run) -> None:
    result = run(THREE, "--gpu-required")
    outcomes(result, passed=2, errors=1)
    result.stdout.fnmatch_lines("there is no GPU 7 on this host: NVML has 0 and 1")
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize("way", ["the option", "the driver is not to be asked"])
def test_names_can_be_locked_where_there_is_no_gpu(run: Run, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")
    if way == "the option":
        outcomes(run(THREE, "--gpu-lock-without-gpu=run"), passed=3)
    else:
        monkeypatch.setenv("AIOGPULOCK_GPU_MEMORY_NVML", "off")
        outcomes(run(THREE), passed=3)


# bad input


def test_a_bad_mark_is_an_error_of_one_line_for_its_test(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")  # found also where the test would be skipped
    result = run(
        """
        import pytest
        lock = pytest.mark.gpu_lock

        @lock(-1)
        def test_negative(): ...
        @lock(0, 1)
        def test_two(): ...
        @lock(0, max_wait_tim=3)
        def test_keyword(): ...
        @lock(max_wait_time="long")
        def test_value(): ...
        @lock(gpu_id=None)
        def test_none(): ...
        @lock(0, manager=None)
        def test_manager(): ...
        @lock(0)
        @lock(1)
        def test_twice(): ...
        """
    )
    outcomes(result, errors=7)
    blocks = result.stdout.str().partition("= ERRORS =")[2].partition("short test summary")[0]
    lines = [line for line in blocks.splitlines() if line.strip("=_ ") and not line.startswith("_")]
    assert lines == [
        "@pytest.mark.gpu_lock(-1): gpu_id -1 is negative: GPU indices start at 0",
        "@pytest.mark.gpu_lock(0, 1): a test locks one GPU",
        "gpu_lock(max_wait_tim=…): unknown key; did you mean 'max_wait_time'? (keyword of gpu_lock())",
        "gpu_lock(max_wait_time=…): got 'long', expected seconds (a number from 0 to 1e9) or null "
        "(keyword of gpu_lock())",
        "@pytest.mark.gpu_lock(gpu_id=None): gpu_id None is a NoneType: pass an index or a name: gpu_lock(0), "
        "@gpu_lock('cuda:0')",
        "@pytest.mark.gpu_lock(0, manager=None): the plugin has its own manager; --gpu-lock-redis-url names its server",
        "test_twice has several gpu_lock marks, and a test locks one GPU",
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--gpu-lock-max-wait=soon"], "--gpu-lock-max-wait: got 'soon', expected seconds *"),
        (["-o", "gpu_lock_max_wait=-1"], "ini key gpu_lock_max_wait: got '-1', expected seconds *"),
        (["--gpu-lock-gpu=no spaces"], "--gpu-lock-gpu: gpu_id 'no spaces' must match *"),
        (["--gpu-lock-redis-url=host:1"], "--gpu-lock-redis-url: got 'host:1', expected redis://*"),
        (["--gpu-lock-leaks=maybe"], "--gpu-lock-leaks: got 'maybe', expected one of error, warn, ignore"),
        (["--gpu-lock-without-gpu=maybe"], "--gpu-lock-without-gpu: got 'maybe', expected one of skip, fail, run"),
        (["-o", "gpu_lock_leaks=maybe"], "ini key gpu_lock_leaks: got 'maybe', expected one of error, warn, ignore"),
        (
            ["--gpu-required", "--gpu-lock-without-gpu=run"],
            "--gpu-required and --gpu-lock-without-gpu=run are at odds*",
        ),
        (["--gpu-lock-max-wait=0", "-n2"], "--gpu-lock-max-wait=0 and the workers of pytest-xdist are at odds: *"),
        pytest.param(
            [*("-o", "faulthandler_timeout=5", "-o", "faulthandler_exit_on_timeout=true"), "--gpu-lock-max-wait=60"],
            "faulthandler_exit_on_timeout ends the run after 5 s, and --gpu-lock-max-wait lets a test wait for 60 s: *",
            marks=since_pytest_9,
        ),
    ],
)
def test_options_at_odds_or_out_of_range_end_the_run_with_one_line(
    pytester: pytest.Pytester, options: list[str], line: str
) -> None:
    result = pytester.runpytest_inprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str().strip()
    result.stderr.fnmatch_lines(f"ERROR: {line}")
    assert len(text.splitlines()) == 1, text


def test_a_wait_goes_without_the_plugin_whose_limit_it_is_compared_with(pytester: pytest.Pytester) -> None:
    """pytest 8 does not know the ini key either."""
    pytester.makepyfile("def test_plain(): pass")
    outcomes(pytester.runpytest_subprocess("-p", "no:faulthandler", "--gpu-lock-max-wait=5"), passed=1)


@since_pytest_9
def test_another_plugin_with_the_same_option_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(other="def pytest_addoption(parser): parser.addoption('--gpu-required', action='store_true')")
    pytester.syspathinsert()
    result = pytester.runpytest_inprocess("-p", "other")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: aiogpulock and another plugin define the same option: *--gpu-required*")


def test_a_redis_that_is_away_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIOGPULOCK_REDIS_CONNECT_TIMEOUT", "0.2")
    monkeypatch.setenv("AIOGPULOCK_EMBEDDED_DIR", str(tmp_path / "none"))  # that of the test before may still run
    result = run(THREE, "--gpu-lock-redis-url=redis://127.0.0.1:1/0", "-k", "default")
    outcomes(result, errors=1, deselected=2)
    result.stdout.fnmatch_lines(
        ["_* ERROR at setup of test_the_default_gpu _*", "*127.0.0.1:1*", "=*"], consecutive=True
    )


def test_a_suite_that_was_started_under_the_lock_is_told_that_it_would_wait_for_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sync.gpu_lock(0, task_name="ci") as lease:
        for name, value in lease.env().items():
            monkeypatch.setenv(name, value)
        with sync.gpu_lock(1):  # set late, it is for children only
            pass
        result = run(THREE, "-k", "default", "--gpu-lock-max-wait=30")
    outcomes(result, errors=1, deselected=2)
    result.stdout.fnmatch_lines(
        ["_* ERROR at setup of test_the_default_gpu _*", "gpu_lock:* is held by 'ci', which started this program: *"],
        consecutive=True,
    )


# nothing left


def test_an_unused_plugin_imports_nothing_but_itself(run: Run) -> None:
    suite = """
        import sys
        def test_it():
            print("MODULES", *sorted(sys.modules))
    """
    others = ("anyio", "asyncio", "xdist", "timeout", "hypothesispytest", "valkey")  # some import it for us
    bare = ["-s", "-c", "/dev/null", *(word for name in others for word in ("-p", f"no:{name}"))]

    def modules(*options: str) -> set[str]:
        result = run(suite, *bare, *options)
        outcomes(result, passed=1)
        [line] = [line for line in result.outlines if "MODULES" in line]
        return set(line.partition("MODULES ")[2].split())

    loaded = modules()
    ours = {name for name in loaded if name.partition(".")[0] == "aiogpulock"}
    assert "aiogpulock.pytest_plugin" in ours
    assert ours <= {"aiogpulock", "aiogpulock.errors", *(name for name in ours if ".pytest_plugin" in name)}
    assert loaded - modules("-p", "no:aiogpulock") == ours
    assert not loaded & {"redis", "asyncio", "anyio", "msgspec", "pynvml", "yaml"}


@pytest.mark.parametrize("moment", ["waits", "holds"])
def test_ctrl_c_leaves_nothing(run: Run, pytester: pytest.Pytester, client: redis.Redis, moment: str) -> None:
    # In short sleeps: a signal that comes just before a sleep begins is not heard until that ends.
    body = "while True: time.sleep(0.05)"
    pytester.makepyfile(test_suite=f"import pytest, time\n@pytest.mark.gpu_lock(0)\ndef test_it():\n    {body}\n")
    lease = sync.gpu_lock(0).acquire() if moment == "waits" else None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    suite = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen = QUEUES if moment == "waits" else LOCKS
    wait_until(lambda: client.keys(seen), description=f"the suite {moment}")
    suite.send_signal(signal.SIGINT)
    output, _ = suite.communicate(timeout=60)
    assert suite.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "KeyboardInterrupt" in output
    assert not client.keys(seen)
    if lease is not None:
        lease.release()


def test_a_lost_lease_is_an_error_of_the_test_that_lost_it(run: Run) -> None:
    result = run(
        """
        import os, pytest, redis, time

        @pytest.mark.gpu_lock(0, heartbeat={"interval": 0.1, "timeout": 5})
        def test_it(gpu_lock):
            with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
                client.set(gpu_lock.key, "locked_by_another:program", px=60_000)
                while not gpu_lock.lost.is_set():
                    time.sleep(0.01)
                client.delete(gpu_lock.key)
        """
    )
    outcomes(result, passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["_* ERROR at teardown of test_it _*", "the lease on * of 'test_suite.py::test_it' is lost *"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_no_test_joins_a_lease_that_is_lost_and_the_one_that_lost_it_is_named(run: Run) -> None:
    result = run(
        """
        import os, pytest, redis, time

        marked = pytest.mark.gpu_lock(0, heartbeat={"interval": 0.1, "timeout": 5})

        @pytest.fixture(scope="module")
        def model(gpu_lock_factory):
            with gpu_lock_factory(0):
                yield

        @marked
        def test_before(model): ...

        @marked
        def test_that_loses_it(model, gpu_lock):
            with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
                client.set(gpu_lock.key, "locked_by_another:program", px=60_000)
                while not gpu_lock.lost.is_set():
                    time.sleep(0.01)
                client.delete(gpu_lock.key)

        @marked
        def test_after_it(model): ...
        """
    )
    outcomes(result, passed=2, errors=2)
    result.stdout.fnmatch_lines(
        [
            "_* ERROR at teardown of test_that_loses_it _*",
            "the lease on * of 'test_suite.py::test_before' is lost *",
            "_* ERROR at setup of test_after_it _*",
            "the lease on * of 'test_suite.py::test_before' is lost *",
        ]
    )


# memory

LEAKY = """
    import os, pytest
    from pathlib import Path
    from tests.nvml_sim import MiB, Simulation

    pytestmark = pytest.mark.gpu_lock(0, gpu_memory={"settle_time": 0.2})

    @pytest.fixture
    def gpu():
        simulation = Simulation(Path(os.environ["NVML_SIM_STATE"]))
        yield simulation
        simulation.close()

    def test_clean(gpu):
        gpu.use(0, 2000 * MiB)
        gpu.use(0, 300 * MiB)  # a context stays

    def test_leaky(gpu):
        gpu.use(0, 1800 * MiB)

    def test_after_it(gpu):
        gpu.use(0, 2500 * MiB)
        gpu.use(0, 1800 * MiB)

    def test_failing(gpu):
        gpu.use(0, 3000 * MiB)
        pytest.fail("its own")
"""
LEAK = "GPU 0 was not given back whole by test_suite.py::test_leaky: the process keeps 1500 MiB more than before"


def test_a_leak_is_an_error_of_the_test_that_leaks_and_of_no_other(run: Run) -> None:
    result = run(LEAKY)
    outcomes(result, passed=3, failed=1, errors=2)
    result.stdout.fnmatch_lines(["_* ERROR at teardown of test_leaky _*", LEAK])
    result.stdout.fnmatch_lines(
        ["_* ERROR at teardown of test_failing _*", "GPU 0 * by test_suite.py::test_failing: *"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_leak_can_be_a_warning_or_nobodys_business(run: Run) -> None:
    result = run(LEAKY, "--gpu-lock-leaks=warn", "-k", "not failing")
    outcomes(result, passed=3, deselected=1)
    result.stdout.fnmatch_lines(f"*PytestWarning: {LEAK}")
    outcomes(run(LEAKY, "--gpu-lock-leaks=ignore", "-k", "not failing"), passed=3, deselected=1)


def test_a_leak_within_a_wider_fixture_is_no_word_against_its_first_test(run: Run) -> None:
    result = run(
        LEAKY.partition("    def test_clean")[0]
        + """
    @pytest.fixture(scope="module")
    def model(gpu_lock_factory):
        with gpu_lock_factory(0):
            yield

    def test_clean(model): ...

    def test_leaky(model, gpu):
        gpu.use(0, 1800 * MiB)

    def test_after_it(model): ...
    """
    )
    outcomes(result, passed=3, errors=1)
    leak = "GPU 0 was not given back whole by one of the tests from test_suite.py::test_clean to "
    result.stdout.fnmatch_lines(["_* ERROR at teardown of test_after_it _*", f"{leak}test_suite.py::test_after_it: *"])


# pytest-timeout

WAITING = {
    "mark": """
        @pytest.mark.gpu_lock(0)
        def test_that_waits(): ...
    """,
    "fixture": """
        def test_that_waits(gpu_lock): ...
    """,
    "factory": """
        @pytest.fixture(scope="session")
        def model(gpu_lock_factory):
            with gpu_lock_factory(0):
                yield

        def test_that_waits(model): ...
    """,
}


@pytest.mark.parametrize("way", WAITING)
def test_the_clock_of_pytest_timeout_stands_still_in_a_wait(run: Run, client: redis.Redis, way: str) -> None:
    lease = sync.gpu_lock(0).acquire()

    def let_go() -> None:
        wait_until(lambda: client.keys(QUEUES), description="the suite to wait")
        time.sleep(2)
        lease.release()

    with ThreadPoolExecutor(1) as thread:
        released = thread.submit(let_go)
        result = run(
            """
        import time, pytest
        pytestmark = pytest.mark.timeout(1.5)
        """
            + WAITING[way]
            + """
        def test_that_takes_too_long(gpu_lock):
            time.sleep(30)
        """
        )
        released.result()
    outcomes(result, passed=1, failed=1)
    result.stdout.fnmatch_lines("FAILED *test_that_takes_too_long - Failed: Timeout*")


def test_each_lease_in_a_test_s_body_leaves_pytest_timeout_what_is_left(run: Run) -> None:
    result = run(
        """
        import time, pytest

        @pytest.mark.timeout(2)
        def test_that_hangs(gpu_lock_factory):
            end = time.monotonic() + 20
            while time.monotonic() < end:
                with gpu_lock_factory(0):
                    time.sleep(0.1)
        """
    )
    outcomes(result, failed=1)
    result.stdout.fnmatch_lines("FAILED *test_that_hangs - Failed: Timeout*")
