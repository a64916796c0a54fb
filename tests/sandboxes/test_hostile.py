"""Attacks on the agent from inside: by what a command leaves running, uses up, or has the agent do at a bad moment."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from sandkeep.events import BlobStore, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, agent, command
from sandkeep.sandboxes.errors import SandboxGone
from sandkeep.sandboxes.execution import TIMED_OUT
from sandkeep.sandboxes.guest.wire import DATA
from sandkeep.sandboxes.limits import LIMITS
from sandkeep.sandboxes.outcome import settle
from sandkeep.sandboxes.spool import Ended

from .support import container_of, engine, eventually, left, shell, text, types

pytestmark = pytest.mark.engine

PYTHON = ["python3", "-c"]
FILES = "import os\nprint(*sorted(os.listdir('/proc/self/fd'), key=int))"


def ours(task: Task, columns: str = "ppid") -> list[list[str]]:
    """The agent and what it consists of: these columns of each process."""
    with engine() as client:
        found = client.api.top(container_of(task), ps_args=f"-eo pid,{columns},args")["Processes"]
    return [line[:-1] for line in found if "/run/sandkeep/agent" in line[-1]]


def connected(task: Task) -> agent.Connection:
    """A connection to the task's agent."""
    found = agent.greet(task.sandbox.spool, container_of(task), 30)
    assert found is not None
    return found


# ---- what a command is given


def test_a_command_that_had_to_wait_for_a_process_inherits_nothing(keep: Keep, task: Task) -> None:
    container = container_of(task)

    def allow(processes: int) -> None:
        keep.engine.limit(container, msgspec.structs.replace(keep.engine.fit(LIMITS), pids=processes))

    eventually(lambda: len(ours(task)) == 5)  # the agent, and two supervisors with the process of a command each
    allow(6)
    started = [task.start(["sleep", "1000"]) for _ in range(2)]
    eventually(lambda: len(ours(task)) == 4)  # one of them has no such process, and there is none to be had
    beside = connected(task)
    with beside:
        beside.run("ab12", agent.Spec((*PYTHON, FILES), "/workspace", {}, 10, 1000))
        assert beside.next(0.2) is None
        allow(100)
        assert isinstance(beside.next(30), agent.Message)
        ended = beside.next(30)
    assert isinstance(ended, Ended)
    assert ended.exit == 0
    # The last is the folder that it reads. One more was the caller's connection, on which it could speak as the agent.
    assert (task.sandbox.spool / "ab12.out").read_text() == "0 1 2 3\n"
    task.sandbox.forget("ab12")
    for each in started:
        each.stop()
    assert left(task) == []


# ---- what a command leaves running

KILLER = """
import os, time
if os.fork() == 0:
    os.setsid()
    while not os.path.exists('go'):
        time.sleep(0.01)
    while True:
        try:
            os.kill(-1, 19)
        except OSError:
            pass
"""


def test_what_stops_all_that_begins_gives_way_and_outlasts_no_timeout(task: Task) -> None:
    container = container_of(task)
    shell(task, "touch /tmp/kept")
    assert task.execute([*PYTHON, KILLER]).exit_code == 0
    (task.workspace / "go").touch()
    # It takes long to find its program, and is stopped meanwhile.
    result = task.execute(["true"], env={"PATH": "/a:" * 8000 + "/bin"}, timeout=5)
    assert result.exit_code in (0, TIMED_OUT)
    assert result.duration_s < 10
    assert shell(task, "ls /tmp; echo alive") == "kept\nalive\n"  # nothing was restarted
    assert container_of(task) == container
    assert left(task) == []


def test_an_agent_waits_for_no_supervisor_that_does_not_listen(task: Task) -> None:
    started = task.start(["sleep", "1000"])
    supervisor = parent_of(task, "sleep 1000")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        for _ in range(600):
            with connected(task) as asking:
                asking.attach(started.id)
        assert shell(task, "echo alive") == "alive\n"
        with ThreadPoolExecutor(1) as stopping:
            stopped = stopping.submit(started.stop)  # the agent cannot tell the supervisor yet
            with pytest.raises(TimeoutError):
                stopped.result(timeout=1)
            os.kill(supervisor, signal.SIGCONT)
            assert stopped.result().exit_code == 137
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGCONT)


def parent_of(task: Task, wanted: str) -> int:
    """The parent of the process with this command line, as the host numbers it."""
    with engine() as client:
        found = client.api.top(container_of(task), ps_args="-eo pid,ppid,args")["Processes"]
    (parent,) = (int(parent) for _, parent, line in found if line == wanted)
    return parent


# ---- input


def test_a_caller_that_leaves_while_nobody_reads_its_input_costs_nothing(task: Task) -> None:
    with connected(task) as giving:
        giving.run("ab12", agent.Spec(("sleep", "1000"), "/workspace", {}, 60, 1000, stdin=True))
        assert isinstance(giving.next(30), agent.Message)
        giving.send(bytes(1 << 19), DATA)
        giving.send(bytes(1 << 19), DATA)
        assert giving.next(0.5) is None
        supervisor = parent_of(task, "sleep 1000")
    before = ticks(supervisor)
    time.sleep(1)
    assert ticks(supervisor) - before < 20
    with connected(task) as ending:
        ending.end("ab12", "stopped")
        assert isinstance(ending.next(30), Ended)
    task.sandbox.forget("ab12")


def ticks(process: int) -> int:
    """The hundredths of a second that a process of the host has run."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_caller_that_leaves_before_it_said_what_to_run_has_run_nothing(task: Task) -> None:
    with connected(task) as leaving:
        leaving.say(version=1, op="run", id="ab12", sandbox=container_of(task))

    def said() -> object:
        with connected(task) as asking:
            asking.attach("ab12")
            try:
                return asking.next(30)
            except agent.Broken:  # who was to run it was just about to end
                return None

    assert eventually(said) == agent.Message("unknown")
    assert left(task) == []


# ---- memory that ends with no process


def test_files_in_memory_leave_room_for_the_next_command(keep: Keep) -> None:
    task = keep.create_task("fills its memory", limits={"memory": "128MiB"})
    fill = "cat /dev/zero >/tmp/x; cat /dev/zero >/dev/shm/x; df --output=used /tmp /dev/shm"
    used = text(task.execute(["sh", "-c", fill], timeout=60)).split()
    assert used == ["Used", str(64 << 10), str(16 << 10)]
    container = container_of(task)
    assert shell(task, "echo alive") == "alive\n"
    assert container_of(task) == container


SEGMENTS = """
import ctypes
c = ctypes.CDLL(None)
c.shmat.restype = ctypes.c_void_p
while True:
    address = c.shmat(c.shmget(0, 1 << 20, 0o1666), None, 0)
    ctypes.memset(ctypes.c_void_p(address), 1, 1 << 20)
    c.shmdt(ctypes.c_void_p(address))
"""


def test_a_sandbox_in_which_nothing_can_begin_for_want_of_memory_is_followed_by_another(keep: Keep) -> None:
    task = keep.create_task("fills its memory", limits={"memory": "128MiB"})

    def begins(*argv: str) -> bool:
        try:
            task.execute(argv, timeout=60)
        except LimitReached as error:
            assert "memory is full" in str(error)  # noqa: PT017 - it need not be raised
            return False
        return True

    began = [begins(*PYTHON, SEGMENTS) for _ in range(3)] + [begins("true") for _ in range(2)]
    assert (False, False) not in itertools.pairwise(began)
    assert (began[0], began[-1]) == (True, True)
    lost = [record.event.reason for record in task.history() if isinstance(record.event, ev.SandboxLost)]
    assert len(lost) >= began.count(False)
    assert task.state.pending == ()


DEAR = """
import os, time
for _ in range(80):
    if os.fork() == 0:
        open('/proc/self/oom_score_adj', 'w').write('0')
        x = bytearray(6 << 20)
        x[::4096] = b'x' * len(x[::4096])
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""


def test_what_has_the_kernel_end_the_agent_for_want_of_memory_costs_no_more_than_its_sandbox(keep: Keep) -> None:
    task = keep.create_task("as dear as the agent, and smaller", limits={"memory": "128MiB"})
    with contextlib.suppress(SandboxGone):
        result = task.execute([*PYTHON, DEAR], timeout=5)
        assert result.oom_killed or result.timed_out
    executed, failed = (types(task.history()).count(name) for name in ("CommandExecuted", "CommandFailed"))
    assert (executed + failed, task.state.pending) == (1, ())
    ended: list[int | None] = []
    for _ in range(5):  # the kernel may still be at it
        with contextlib.suppress(SandboxGone, LimitReached):
            ended.append(task.execute(["true"]).exit_code)
    assert ended[-1] == 0
    assert task.state.pending == ()


# ---- a full disk


def test_output_that_finds_no_room_is_lost_and_the_outcome_is_not(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[list[str]] = []

    def full(self: BlobStore, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def settling(keep: Keep, task_id: str, outcome: ev.Outcome) -> None:
        held.append(left(task))
        settle(keep, task_id, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "put_stream", full)
        patch.setattr(command, "settle", settling)
        result = task.execute(["sh", "-c", "head -c 1000000 /dev/zero; echo small >&2; exit 3"])
    lost = ev.Output(size=0, data=b"", truncated=True)
    assert (result.exit_code, result.stdout, result.stderr.data) == (3, lost, b"small\n")
    assert "could not be stored" in caplog.text
    # A full disk has room for the outcome only once the output is gone from it.
    assert held == [[f"{result.command}.end", f"{result.command}.err"]]
    assert left(task) == []
    assert shell(task, "echo alive") == "alive\n"
