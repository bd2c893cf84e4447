"""``aiogpulock run``: flock(1) for GPUs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from aiogpulock import GpuLockError
from aiogpulock.cli import keeper
from tests.edges.shell import COMMAND, ROOT, Shell, driver_variables, ended, read_until
from tests.gpu.conftest import driver_folder as driver_folder
from tests.gpu.conftest import sim as sim
from tests.helpers import wait_until
from tests.nvml_sim import GiB, Simulation
from tests.servers import RealServer

HOLD = "echo in; exec sleep 100"
AWAY = {"REDIS_URL": "redis://u:geheim@127.0.0.1:1/0", "AIOGPULOCK_REDIS_CONNECT_TIMEOUT": "0.3"}
NO_DRIVER = {"AIOGPULOCK_GPU_MEMORY_NVML": "required", "LD_LIBRARY_PATH": ""}
SHORT_LEASE = {"AIOGPULOCK_HEARTBEAT_INTERVAL": "0.3", "AIOGPULOCK_HEARTBEAT_TIMEOUT": "3"}

# Holds a kernel lock while it "computes": whoever finds it taken has met another live one.
COMPUTE = """
import fcntl, os, sys, time
register = os.open("register", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(register, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os.write(os.open("overlaps", os.O_WRONLY | os.O_CREAT | os.O_APPEND), b"overlap\\n")
os.write(os.open("stays", os.O_WRONLY | os.O_CREAT | os.O_APPEND), b"%d\\n" % os.getpid())
time.sleep(float(sys.argv[1]))
"""


def test_the_command_gets_its_arguments_its_stdin_and_its_gpu(shell: Shell, redis_cleanup: redis.Redis) -> None:
    words = ("sh", "-c", 'cat; echo "$1 gpu=$AIOGPULOCK_GPU token=$AIOGPULOCK_TOKEN"; exit 7', "x", "--gpu")
    done = shell.run("run", "--gpu", "3", "--", *words, stdin="passed through\n")

    assert done.stderr == ""
    assert re.fullmatch(r"passed through\n--gpu gpu=3 token=\d{16}\n", done.stdout)
    assert done.returncode == 7


def test_eight_shells_never_overlap_though_three_are_killed(
    shell: Shell, redis_cleanup: redis.Redis, tmp_path: Path
) -> None:
    (tmp_path / "compute.py").write_text(COMPUTE)
    stays = tmp_path / "stays"
    # A shell that does not exec: what computes is a grandchild of the runner.
    script = f"{sys.executable} -S compute.py $0; echo done"
    long = [shell.start("run", "--gpu", "0", "--name", "long", "--", "sh", "-c", script, "100") for _ in range(3)]
    short = [shell.start("run", "--gpu", "0", "--", "sh", "-c", script, "0.1") for _ in range(5)]

    alive = {process.pid: process for process in long}
    while alive:
        holder = wait_until(lambda: alive.get(holder_of(redis_cleanup)), description="a long one holds the lock")
        wait_until(lambda holder=holder: below(holder.pid) & noted(stays), description="it computes")
        holder.kill()
        holder.wait()
        del alive[holder.pid]
    assert [ended(process)[:2] for process in short] == [(0, "done\n")] * 5

    assert shell.run("run", "--", "true").returncode == 0  # there may have been nobody to follow the last one killed
    assert not (tmp_path / "overlaps").exists()
    assert len(noted(stays)) == 8
    assert shell.marked() == []
    events = redis_cleanup.xrange("{gpu_lock:0}:events")
    assert sorted(fields["reason"] for _, fields in events) == ["normal"] * 6 + ["process_gone"] * 3


def holder_of(client: redis.Redis) -> int:
    """The pid of the runner that holds GPU 0, 0 if nobody does."""
    process = client.hget("{gpu_lock:0}:holder", "process")
    return int(json.loads(str(process))["processes"][0][0]) if process else 0


def below(pid: int) -> set[int]:
    """The pids of all descendants."""
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def noted(stays: Path) -> set[int]:
    """The pids of those who have computed, and of those who compute."""
    return set(map(int, stays.read_text().split())) if stays.exists() else set()


def test_a_killed_runner_takes_even_a_daemon_with_it(shell: Shell, redis_cleanup: redis.Redis) -> None:
    daemon = "(setsid sh -c 'sleep 1000 & exec sleep 1001' &); echo in; sleep 1002"
    runner = shell.start("run", "--", "sh", "-c", daemon)
    read_until(runner, "in")
    wait_until(lambda: len(shell.marked("sleep 100")) == 3, description="the daemon and its child run")
    runner.kill()
    successor = shell.run("run", "--timeout", "20", "--", "true")

    assert (successor.returncode, successor.stderr) == (0, "")
    assert shell.marked() == []


def test_options_after_the_command_are_the_commands(shell: Shell, redis_cleanup: redis.Redis) -> None:
    assert shell.run("run", "--gpu", "1", "echo", "--gpu", "7", "--help").stdout == "--gpu 7 --help\n"


def test_a_reader_that_leaves_ends_the_command_as_without_run(shell: Shell, redis_cleanup: redis.Redis) -> None:
    runner = shell.start("run", "--", "sh", "-c", "yes; echo $? >&2")
    read_until(runner, "y")
    assert runner.stdout is not None
    runner.stdout.close()
    assert runner.wait(60) == 0
    assert runner.stderr is not None
    assert runner.stderr.read() == "141\n"  # SIGPIPE, and not an error message of yes


@pytest.mark.parametrize("wait", [("--timeout", "20"), ("--nonblock",)])
def test_a_run_inside_a_run_of_the_same_gpu_is_refused(
    shell: Shell, redis_cleanup: redis.Redis, wait: tuple[str, ...]
) -> None:
    nested = shell.run("run", "--name", "outer", "--", *COMMAND, "run", *wait, "--", "true")
    told = "gpu_lock:0 is held by 'outer', which started this program: it would wait for itself. "
    assert (nested.returncode, nested.stderr) == (2, f"aiogpulock: {told}Leave one of the two locks out\n")
    assert not redis_cleanup.exists("{gpu_lock:0}:queue")


def test_also_behind_a_run_of_another_gpu(shell: Shell, redis_cleanup: redis.Redis) -> None:
    def run(gpu: str) -> tuple[str, ...]:
        return "run", "--gpu", gpu, "--timeout", "20", "--"

    assert shell.run(*run("0"), *COMMAND, *run("1"), *COMMAND, *run("2"), "true").returncode == 0
    assert shell.run(*run("0"), *COMMAND, *run("1"), *COMMAND, *run("0"), "true").returncode == 2


def test_a_command_that_locks_its_gpu_itself_is_refused(shell: Shell, redis_cleanup: redis.Redis) -> None:
    train = "import sys; from aiogpulock import sync\nwith sync.gpu_lock(sys.argv[1]): print('trained')"
    command = ("run", "--", sys.executable, "-c", train)
    assert shell.run(*command, "1").stdout == "trained\n"
    refused = shell.run(*command, "0")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(
        "aiogpulock.errors.NestedLockError: gpu_lock:0 is held by 'python"
    )
    assert shell.run("run", "--", *COMMAND, "run", "--gpu", "1", "--", "true").returncode == 0


def test_a_killed_keeper_takes_the_command_with_it(shell: Shell, redis_cleanup: redis.Redis) -> None:
    runner = shell.start("run", "--", "sh", "-c", "setsid sleep 1000 & echo in; wait")
    read_until(runner, "in")
    keeper = next(process for process in shell.marked() if process.ppid() == runner.pid)
    keeper.kill()

    assert ended(runner) == (137, "", "aiogpulock: the keeper of the command was killed, and the command with it\n")
    assert shell.marked() == []


def test_runner_and_keeper_killed_together_take_the_command_with_them(shell: Shell, redis_cleanup: redis.Redis) -> None:
    runner = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(runner, "in")
    keeper = next(process for process in shell.marked() if process.ppid() == runner.pid)
    for process in (runner, keeper):
        process.send_signal(signal.SIGSTOP)  # neither can react to the end of the other
    for process in (runner, keeper):
        process.kill()
    wait_until(lambda: not shell.marked(), description="the kernel has killed the command")
    assert shell.run("run", "--timeout", "20", "--", "true").returncode == 0


def test_the_lock_is_not_free_before_the_command_is_gone(shell: Shell, redis_cleanup: redis.Redis) -> None:
    runner = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(runner, "in")
    keeper = next(process for process in shell.marked() if process.ppid() == runner.pid)
    keeper.suspend()  # a keeper that is slow to end the command
    runner.kill()
    assert shell.run("run", "--timeout", "1", "--", "true").returncode == 75
    keeper.resume()
    assert shell.run("run", "--timeout", "20", "--", "true").returncode == 0


def test_a_runner_killed_while_it_waits_leaves_nothing(shell: Shell, redis_cleanup: redis.Redis) -> None:
    holder = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    waiter = shell.start("run", "--", "true")
    wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, description="it waits")
    waiter.kill()
    wait_until(lambda: len(shell.marked()) == 3, description="its keeper and its gate are gone")
    holder.terminate()
    assert ended(holder)[0] == 128 + signal.SIGTERM
    redis_cleanup.delete("{gpu_lock:0}:queue", "{gpu_lock:0}:waiters")  # the dead waiter's seat expires later


def test_busy_is_75_or_what_the_user_wants(shell: Shell, redis_cleanup: redis.Redis) -> None:
    holder = shell.start("run", "--name", "asr", "--", "sh", "-c", HOLD)
    read_until(holder, "in")

    for options, status in ((("--nonblock",), 75), (("--timeout", "0.2", "-E", "9"), 9)):
        refused = shell.run("run", *options, "--", "true")
        assert refused.returncode == status
        assert re.fullmatch(r"aiogpulock: GPU_LOCK_TIMEOUT: gpu_lock:0 .*'asr'.*\n", refused.stderr)
    holder.terminate()
    assert ended(holder)[0] == 143


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_its_end_too(
    signum: signal.Signals, shell: Shell, redis_cleanup: redis.Redis
) -> None:
    name = signum.name.removeprefix("SIG")
    gentle = shell.start("run", "--", "sh", "-c", f"trap 'echo got; exit 5' {name}; sleep 100 & echo in; wait")
    read_until(gentle, "in")
    gentle.send_signal(signum)
    status, out, err = ended(gentle)

    assert (status, out) == (5, "got\n")
    assert err == "aiogpulock: sh left 1 process running: ended with it\n"

    plain = shell.start("run", "--gpu", "1", "--", "sh", "-c", HOLD)
    read_until(plain, "in")
    plain.send_signal(signum)
    assert ended(plain) == (128 + signum, "", "")


@pytest.mark.parametrize(("command", "ends_with"), [("exit 7", 7), ("exit 0", 1)])
def test_memory_that_is_not_back_hides_no_failure_of_the_command(
    command: str, ends_with: int, shell: Shell, redis_cleanup: redis.Redis, driver_folder: Path, sim: Simulation
) -> None:
    policy = {"AIOGPULOCK_GPU_MEMORY_POLICY": "raise", "AIOGPULOCK_GPU_MEMORY_SETTLE_TIME": "0.2"}
    shell.env |= driver_variables(driver_folder, sim) | policy
    leaky = shell.start("run", "--", "sh", "-c", f"trap '{command}' TERM; echo in; while :; do sleep 0.05; done")
    read_until(leaky, "in")
    sim.use(0, 5 * GiB, pid=shell.marked("sh -c trap")[0].pid)
    leaky.terminate()
    status, _, told = ended(leaky)
    assert status == ends_with
    assert re.fullmatch(r"aiogpulock: .*memory.*\n", told)


def test_a_gpu_of_another_host_is_refused_since_the_command_runs_here(
    shell: Shell, redis_cleanup: redis.Redis, driver_folder: Path, sim: Simulation
) -> None:
    shell.env |= driver_variables(driver_folder, sim)
    elsewhere = "GPU-deadbeef-0000-0000-0000-000000000000"
    refused = shell.run("run", "--gpu", elsewhere, "--", "true")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"aiogpulock: {elsewhere} is no GPU of this host, and the command runs here")
    assert refused.stderr.count("\n") == 1
    blind = {"AIOGPULOCK_GPU_MEMORY_NVML": "off"}
    assert shell.run("run", "--gpu", elsewhere, "--", "true", env=blind).returncode == 0


def test_a_signal_ends_the_wait(shell: Shell, redis_cleanup: redis.Redis) -> None:
    holder = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    for signum in (signal.SIGTERM, signal.SIGINT):
        waiter = shell.start("run", "--", "true")
        wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, description="it waits")
        waiter.send_signal(signum)
        assert ended(waiter) == (128 + signum, "", "")
        assert redis_cleanup.zcard("{gpu_lock:0}:queue") == 0
    holder.terminate()
    ended(holder)


def test_a_lost_lease_ends_the_command_by_force_if_need_be(
    shell: Shell, redis_cleanup: redis.Redis, server: RealServer
) -> None:
    stubborn = "trap 'echo asked' TERM; echo in; while :; do sleep 0.1; done"
    runner = shell.start("run", "--kill-after", "0.5", "--", "sh", "-c", stubborn, env=SHORT_LEASE)
    read_until(runner, "in")
    redis_cleanup.delete("gpu_lock:0", "{gpu_lock:0}:holder")
    redis_cleanup.set("gpu_lock:0", "locked_by_another", px=60_000)
    status, out, err = ended(runner)

    assert (status, out) == (76, "asked\n")
    told = "aiogpulock: the lease on GPU 0 is lost (not_owner): the command is ended"
    assert err.splitlines()[0] == told
    redis_cleanup.delete("gpu_lock:0", "{gpu_lock:0}:heartbeat")


def test_a_stopped_runner_does_not_keep_its_command_running(shell: Shell, redis_cleanup: redis.Redis) -> None:
    """The runner cannot beat any more, so the lock passes on; the keeper sees to it that the command ends before."""
    stubborn = "trap '' TERM; echo in; while :; do sleep 0.1; done"
    runner = shell.start("run", "--kill-after", "0.1", "--", "sh", "-c", stubborn, env=SHORT_LEASE)
    read_until(runner, "in")
    runner.send_signal(signal.SIGSTOP)
    successor = shell.start("run", "--name", "next", "--", "sh", "-c", HOLD)
    read_until(successor, "in")

    assert shell.marked("sh -c trap") == []
    runner.send_signal(signal.SIGCONT)
    assert ended(runner)[0] == 76
    successor.terminate()
    ended(successor)


def test_a_deadline_leaves_no_time_for_a_long_farewell(shell: Shell, own_server: RealServer) -> None:
    """Redis is away: at its own deadline the command is ended, long before --kill-after is over."""
    stubborn = "trap '' TERM; echo in; while :; do sleep 0.1; done"
    variables = SHORT_LEASE | {"REDIS_URL": own_server.url, "AIOGPULOCK_REDIS_CONNECT_TIMEOUT": "0.5"}
    runner = shell.start("run", "--kill-after", "600", "--", "sh", "-c", stubborn, env=variables)
    read_until(runner, "in")
    own_server.kill()
    status, _, err = ended(runner)

    assert status == 76
    assert "the lease on GPU 0 is lost (lease_expired): the command is ended" in err


def test_a_short_stop_changes_nothing(shell: Shell, redis_cleanup: redis.Redis) -> None:
    runner = shell.start("run", "--", "sh", "-c", "echo in; sleep 1; echo out")
    read_until(runner, "in")
    for signum in (signal.SIGSTOP, signal.SIGCONT):
        runner.send_signal(signum)
    assert ended(runner) == (0, "out\n", "")


def test_what_cannot_be_run_is_said_before_any_wait(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    (tmp_path / "bad").write_text("#!/no/such/interpreter\n")
    (tmp_path / "bad").chmod(0o755)
    (tmp_path / "plain").write_text("echo by sh $1\n")
    (tmp_path / "plain").chmod(0o755)

    def outcome(*words: str) -> tuple[int, str, str]:
        done = shell.run("run", "--", *words)
        return done.returncode, done.stdout, done.stderr

    assert outcome("no-such-program") == (127, "", "aiogpulock: no-such-program: command not found\n")
    assert outcome("./data") == (126, "", "aiogpulock: ./data: cannot be executed\n")
    assert outcome("./bad") == (127, "", "aiogpulock: ./bad: No such file or directory\n")
    assert outcome("./plain", "here") == (0, "by sh here\n", "")


@pytest.mark.parametrize(
    ("options", "environment", "status", "line"),
    [
        ((), AWAY, 69, r"Redis at redis://u:\*\*\*@127\.0\.0\.1:1/0 .*"),
        ((), {"AIOGPULOCK_POLL_INTERVAL": "soon"}, 78, r"gpu_lock\.poll_interval: got 'soon', expected seconds .*"),
        (("--config", "odd.yml"), {}, 78, r"gpu_lock\.heartbeat\.interval: .* which is 10\.0 \(file \S+odd\.yml\)"),
        (("--namespace", ""), {}, 78, r"gpu_lock\.redis\.namespace: '' must match .*"),
        (("--config", "missing.yml"), {}, 78, r".*missing\.yml: No such file or directory"),
        (("--gpu", "a b"), AWAY, 2, r"gpu_id 'a b' must match .*"),
        (("--gpu", "-1"), AWAY, 2, "gpu_id -1 is negative: GPU indices start at 0"),
        ((), NO_DRIVER, 78, r"gpu_lock\.gpu_memory\.nvml is 'required': .*"),
    ],
)
def test_each_error_is_one_line(
    options: tuple[str, ...], environment: dict[str, str], status: int, line: str, shell: Shell
) -> None:
    Path("odd.yml").write_text("gpu_lock: {heartbeat: {interval: 60, timeout: 10}}")
    done = shell.run("run", *options, "--", "echo", "never", env=environment)

    assert (done.returncode, done.stdout) == (status, "")
    assert re.fullmatch(rf"aiogpulock: {line}\n", done.stderr)


def test_a_misspelt_variable_is_named_once(shell: Shell) -> None:
    done = shell.run("run", "--", "true", env={"AIOGPULOCK_MAX_WAIT_TIEM": "3"})
    assert done.returncode == 0
    assert done.stderr == (
        "aiogpulock: ignored, not settings of aiogpulock: AIOGPULOCK_MAX_WAIT_TIEM (did you mean "
        "AIOGPULOCK_MAX_WAIT_TIME?)\n"
    )


def test_a_keeper_that_gets_no_process_has_said_why_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_process(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(keeper, "adopt_orphans", no_process)  # in the keeper, just before it forks
    with pytest.raises(GpuLockError, match="the command was not started"):
        keeper.start_keeper(["true"], set())
    assert "aiogpulock: keeper: BlockingIOError: " in capfd.readouterr().err
    monkeypatch.setattr(keeper.os, "fork", no_process)
    with pytest.raises(GpuLockError, match="not started: Resource temporarily unavailable"):
        keeper.start_keeper(["true"], set())


def test_a_call_that_makes_no_sense_is_2(shell: Shell) -> None:
    no_time = [
        ("run", "-w", "nan", "true"),
        ("run", "-k", "nan", "true"),
        ("wait", "-w", "nan"),
        ("top", "--interval", "nan"),
        ("demo", "--seconds", "nan"),
    ]
    for words in (("run",), ("run", "-n", "-w", "3", "true"), ("run", "--frobnicate", "true"), ("nonsense",), *no_time):
        done = shell.run(*words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_a_wait_of_inf_is_for_ever_whatever_the_settings_say(shell: Shell, redis_cleanup: redis.Redis) -> None:
    holder = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    patient = shell.start("run", "-w", "inf", "--", "true", env={"AIOGPULOCK_MAX_WAIT_TIME": "0.2"})
    looking = shell.start("wait", "-w", "inf")
    wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue"), description="it waits")
    time.sleep(1)
    holder.terminate()
    assert ended(patient) == ended(looking) == (0, "", "")
    ended(holder)


def test_cron_gives_it_no_home_and_no_terminal(server: RealServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--", "/bin/sh", "-c", "echo done"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ROOT, "REDIS_URL": server.url, "AIOGPULOCK_GPU_MEMORY_NVML": "off"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_signal_that_was_ignored_stays_ignored(shell: Shell, redis_cleanup: redis.Redis) -> None:
    holder = shell.start("run", "--", "sh", "-c", HOLD)
    read_until(holder, "in")
    script = "echo in; sleep 0.5; echo out"
    nohup = shell.start(
        *("run", "--", "sh", "-c", script), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_until(lambda: redis_cleanup.zcard("{gpu_lock:0}:queue") == 1, description="it waits")
    nohup.send_signal(signal.SIGHUP)
    holder.terminate()
    ended(holder)
    read_until(nohup, "in")
    nohup.send_signal(signal.SIGHUP)
    assert ended(nohup) == (0, "out\n", "")
