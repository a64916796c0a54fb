"""Two processes on one keep: they see each other's work, share one sandbox, and agree in the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task

pytestmark = pytest.mark.engine

SCRIPT = Path(sys.executable).parent / "sandkeep"

RUN = """
import sys
from sandkeep.sandboxes import Keep
with Keep.open(sys.argv[1], actor=sys.argv[3]) as keep:
    print("ready", flush=True)
    sys.stdin.readline()
    task = keep.task(sys.argv[2])
    for number in range(int(sys.argv[4])):
        result = task.execute(["sh", "-c", 'echo "$0" >>ran; echo "$0"', f"{sys.argv[3]}-{number}"])
        print(result.stdout.data.decode().strip(), flush=True)
"""

CREATE = """
import sys
from sandkeep.sandboxes import Keep
with Keep.open(sys.argv[1]) as keep:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(3):
        task = keep.create_task(f"{sys.argv[2]} {number}")
        assert task.execute(["echo", "hello"]).exit_code == 0
        print(task.id, flush=True)
"""


def processes(script: str, *arguments: list[str]) -> list[list[str]]:
    """What processes print that all begin at the same moment, each of which must go well."""
    running = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", script, *each], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for each in arguments
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=120)[0].splitlines() for process in running]
        assert [process.returncode for process in running] == [0] * len(running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return printed


def test_two_processes_run_commands_in_one_sandbox(keep: Keep, task: Task) -> None:
    container = task.state.container
    count = 5
    one, two = processes(RUN, *([str(keep.path), task.id, name, str(count)] for name in ("one", "two")))
    assert one == [f"one-{number}" for number in range(count)]
    assert two == [f"two-{number}" for number in range(count)]
    assert sorted((task.workspace / "ran").read_text().split()) == sorted(one + two)
    state = task.state
    assert (state.executions, state.failures, state.pending, state.container) == (2 * count, 0, (), container)
    assert [found.container for found in keep.engine.containers(keep.id)] == [container]
    assert {record.actor for record in task.history() if record.type == "CommandExecuted"} == {"one", "two"}
    assert keep.verify().ok
    assert keep.replay().same


def test_two_processes_that_find_the_sandbox_gone_start_one(keep: Keep, task: Task) -> None:
    assert task.state.container is not None
    keep.engine.remove(task.state.container)
    processes(RUN, *([str(keep.path), task.id, name, "2"] for name in ("one", "two")))
    started = [record for record in task.history() if record.type == "SandboxStarted"]
    assert len(started) == 2
    assert [found.container for found in keep.engine.containers(keep.id)] == [task.state.container]
    assert (task.state.executions, task.state.failures) == (4, 0)


def test_two_processes_make_tasks_at_once(keep: Keep) -> None:
    one, two = processes(CREATE, [str(keep.path), "one"], [str(keep.path), "two"])
    assert sorted(task.id for task in keep.tasks(TaskState.ACTIVE)) == sorted(one + two)
    believed = {task.container for task in keep.tasks(TaskState.ACTIVE)}
    assert {found.container for found in keep.engine.containers(keep.id)} == believed
    assert len(believed) == 6
    positions = [record.position for record in keep.events()]
    assert positions == list(range(1, len(positions) + 1))


def test_the_command_line_and_a_library_see_each_others_work(keep: Keep, task: Task) -> None:
    def cli(*arguments: str) -> object:
        done = subprocess.run([SCRIPT, *arguments], capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    place = ("--json", "--keep", str(keep.path))
    task.execute(["sh", "-c", "echo library >file"])
    ran = cli("execute", *place, task.id, "--", "cat", "file")
    assert isinstance(ran, dict)
    assert ran["stdout"] == "library\n"
    taken = cli("checkpoint", task.id, *place)
    assert isinstance(taken, dict)
    task.execute(["rm", "file"])
    assert task.restore_checkpoint(taken["id"]).digest == taken["digest"]
    ended = cli("complete-task", task.id, *place)
    assert isinstance(ended, dict)
    assert ended["state"] == task.state.state == "completed"
    assert keep.engine.containers(keep.id) == []
