"""The life of a sandbox beside its commands: none before the first, idle, stopped; and ended tasks that go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandkeep.events import BadInput, StaleFence
from sandkeep.events import catalogue as ev
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import EngineFailed, EngineUnreachable, TaskBusy, TaskRefused

from .support import container_of, containers, eventually, shell, status, types

# ---- without an engine


def test_a_task_is_created_without_an_engine(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    task = keep.create_task("t")
    assert (task.state.state, list(task.workspace.iterdir())) == (TaskState.CREATED, [])
    task.pause()
    assert task.state.state is TaskState.PAUSED
    task.resume()
    task.stop()
    task.fail("no engine")
    task.reopen("there may be one now")
    assert (task.state.state, task.state.reason) == (TaskState.ACTIVE, None)
    task.complete()
    task.clean_up()
    assert not task.folder.exists()
    assert "SandboxStopRequested" not in types(task.history())


@pytest.mark.parametrize("reason", ["two\nlines", "x" * 2001])
def test_a_reason_that_cannot_be_shown_is_refused(keep: Keep, reason: str) -> None:
    task = keep.create_task("t")
    task.complete()
    with pytest.raises(BadInput, match="a reason has"):
        task.reopen(reason)
    assert task.state.state is TaskState.COMPLETED


def test_only_what_has_ended_and_is_all_there_is_reopened(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    task = keep.create_task("t")
    with pytest.raises(TaskRefused, match="its sandbox has not started"):
        task.reopen()
    task.complete()
    with monkeypatch.context() as patch:
        patch.setattr("sandkeep.sandboxes.workspace.remove", lambda folder: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(OSError, match="no"):
            task.clean_up()
    assert types(task.history())[-1] == "CleanupFailed"
    with pytest.raises(TaskRefused, match="the clean-up of task"):
        task.reopen()
    task.clean_up()
    with pytest.raises(TaskRefused, match="has been cleaned up"):
        task.reopen()


# ---- with one


@pytest.mark.engine
def test_a_stopped_sandbox_is_gone_and_the_next_command_starts_another(keep: Keep, task: Task) -> None:
    shell(task, "echo kept >file; echo lost >/tmp/file; (sleep 1000 &)")
    before = container_of(task)
    task.stop()
    assert (task.state.state, task.state.container, containers(keep.id)) == (TaskState.ACTIVE, None, [])
    assert types(task.history())[-3:] == ["SandboxStopRequested", "SandboxMeasured", "SandboxStopped"]
    head = keep.head()
    task.stop()
    assert keep.head() == head
    assert shell(task, "cat file; ls /tmp") == "kept\n"
    assert task.state.container not in (None, before)


@pytest.mark.engine
def test_a_paused_task_can_be_stopped_and_resumed(keep: Keep, task: Task) -> None:
    task.pause()
    task.stop()
    assert (task.state.state, containers(keep.id)) == (TaskState.PAUSED, [])
    task.resume()
    assert shell(task, "echo alive") == "alive\n"


@pytest.mark.engine
def test_neither_stopped_nor_frozen_while_a_command_runs(keep: Keep, task: Task) -> None:
    with ThreadPoolExecutor(1) as pool:
        line = "touch begun; while ! [ -e stop ]; do sleep 0.05; done"
        running = pool.submit(task.execute, ["sh", "-c", line], timeout=60)
        eventually((task.workspace / "begun").exists)
        with pytest.raises(TaskBusy, match="CommandRequested"):
            task.stop()
        assert not task.rest()
        assert status(task) == "running"
        (task.workspace / "stop").touch()
        assert running.result().exit_code == 0


@pytest.mark.engine
def test_a_stop_that_fails_is_recorded_and_can_be_repeated(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Engine, container: str) -> None:
        raise EngineFailed("no")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "remove", failing)
        with pytest.raises(EngineFailed):
            task.stop()
    assert types(task.history())[-1] == "SandboxStopFailed"
    assert (task.state.pending, task.state.container) == ((), containers(keep.id)[0])
    task.stop()
    assert containers(keep.id) == []


@pytest.mark.engine
def test_an_idle_sandbox_is_frozen_until_the_next_command(task: Task) -> None:
    shell(task, "(while :; do date +%s%N >beat; sleep 0.01; done) & echo $! >pid")
    eventually((task.workspace / "beat").exists)
    assert task.rest()
    assert (task.state.state, task.state.idle, status(task)) == (TaskState.ACTIVE, True, "paused")
    assert not task.rest()
    beat = (task.workspace / "beat").read_text()
    assert not threading.Event().wait(0.2)
    assert (task.workspace / "beat").read_text() == beat
    assert shell(task, "kill -0 $(cat pid) && echo it goes on") == "it goes on\n"
    assert not task.state.idle
    found = [record.event for record in task.history() if record.type.startswith("Sandbox")]
    assert isinstance(found[3], ev.SandboxPaused)
    made = found[3].intent
    assert found[2:] == [
        ev.SandboxPauseRequested(made),
        ev.SandboxPaused(made, container_of(task)),
        ev.SandboxResumed(container_of(task)),
    ]


@pytest.mark.engine
def test_an_idle_sandbox_can_be_paused_checkpointed_restored_and_stopped(keep: Keep, task: Task) -> None:
    shell(task, "echo one >file")
    checkpoint = task.checkpoint()
    shell(task, "echo two >file")
    assert task.rest()
    task.restore_checkpoint(checkpoint.id)
    assert (task.workspace / "file").read_text() == "one\n"
    task.pause()
    assert (task.state.state, status(task)) == (TaskState.PAUSED, "paused")
    task.resume()
    assert (task.state.idle, status(task)) == (False, "running")
    assert task.rest()
    task.stop()
    assert (task.state.idle, containers(keep.id)) == (False, [])


@pytest.mark.engine
def test_nobody_waits_to_freeze_a_sandbox(keep: Keep, task: Task) -> None:
    with keep.working(task.id):  # as a restore is, for as long as it takes
        assert not task.rest()
    assert task.rest()


@pytest.mark.engine
def test_a_paused_task_is_not_idle_as_well(task: Task) -> None:
    task.pause()
    assert not task.rest()
    assert types(task.history())[-1] == "TaskPaused"


@pytest.mark.engine
@pytest.mark.parametrize("end", [TaskState.COMPLETED, TaskState.FAILED])
def test_an_ended_task_goes_on_where_it_was(keep: Keep, task: Task, end: TaskState) -> None:
    shell(task, "echo one >file")
    task.complete("done") if end is TaskState.COMPLETED else task.fail("given up")
    task.reopen("not quite")
    assert (task.state.state, task.state.reason, task.state.container) == (TaskState.ACTIVE, None, None)
    assert shell(task, "cat file") == "one\n"
    task.complete()
    task.clean_up()


@pytest.mark.engine
def test_a_stale_token_neither_stops_nor_reopens(keep: Keep, task: Task) -> None:
    held = task.lock()
    old = keep.task(task.id, held.token)
    held.release()
    with task.lock():
        with pytest.raises(StaleFence):
            old.stop()
        with pytest.raises(StaleFence):
            old.start_sandbox()
    task.complete()
    with pytest.raises(StaleFence):
        old.reopen()
    assert task.state.state is TaskState.COMPLETED


@pytest.mark.engine
def test_tasks_start_their_sandboxes_side_by_side(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start waits in the engine until all have come there, so that none can have waited for another."""
    count = 4
    meeting = threading.Barrier(count, timeout=60)
    start: Callable[..., str] = Engine.start

    def together(*arguments: object, **named: object) -> object:
        meeting.wait()
        return start(*arguments, **named)

    monkeypatch.setattr(Engine, "start", together)
    tasks = [keep.create_task(f"t{number}") for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(lambda task: shell(task, "echo alive"), tasks)) == ["alive\n"] * count
    assert len(containers(keep.id)) == count


@pytest.mark.engine
def test_a_sandbox_is_not_started_while_the_engine_is_away(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    task = keep.create_task("t")
    with pytest.raises(EngineUnreachable, match="start it"):
        task.start_sandbox()
    assert (task.state.state, task.state.pending) == (TaskState.CREATED, ())
