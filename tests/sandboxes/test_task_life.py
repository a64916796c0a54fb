"""The life of a task: created, paused, resumed, restored, ended, cleaned up, and what each of these refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import (
    BadId,
    CheckpointRefused,
    EngineFailed,
    NotARepository,
    TaskBusy,
    TaskNotFound,
    TaskRefused,
)

from .support import containers, eventually, shell, status, types

pytestmark = pytest.mark.engine


@pytest.fixture
def busy(task: Task) -> object:
    """`task`, while a command runs in it, which ends after the test."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(task.execute, ["sh", "-c", "touch begun; while ! [ -e stop ]; do sleep 0.05; done"])
        eventually((task.workspace / "begun").exists)
        yield task
        (task.workspace / "stop").touch()
        assert running.result().exit_code == 0


# ---- creation


def test_a_task_begins_with_a_clone_and_its_first_command_starts_its_sandbox(keep: Keep, source: Path) -> None:
    said: list[str] = []
    task = keep.create_task("  a title ", source=source, progress=said.append)
    state = task.state
    assert (state.title, state.state, state.source, state.pending) == ("a title", TaskState.CREATED, str(source), ())
    assert (state.container, containers(keep.id)) == (None, [])
    line = "git rev-parse HEAD; git status --porcelain; ./run"
    assert shell(task, line, progress=said.append).split() == [state.commit, "ran"]
    assert task.state.state is TaskState.ACTIVE
    assert containers(keep.id) == [task.state.container]
    shell(task, "git -c user.name=a -c user.email=b commit --quiet --allow-empty --message=second")
    assert shell(task, "git rev-list --count HEAD") == "2\n"
    expected = ["TaskCreated", "WorkspacePrepared", "SandboxRequested", "SandboxStarted", "CommandRequested"]
    assert types(task.history())[:5] == expected
    assert said == ["preparing the workspace", "starting the sandbox"]


def test_a_source_that_cannot_be_cloned_leaves_no_half_made_task(keep: Keep, source: Path) -> None:
    for path in (source / ".git" / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(NotARepository, match="cannot be cloned"):
        keep.create_task("t", source=source)
    assert_nothing_is_left(keep)
    (task,) = keep.tasks(TaskState.CLEANED)
    assert task.reason is not None
    assert "cannot be cloned" in task.reason


def test_a_sandbox_that_does_not_start_is_recorded_and_tried_again(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    task = keep.create_task("t")

    def failing(self: Engine, *arguments: object, **named: object) -> str:
        raise EngineFailed("no")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "start", failing)
        with pytest.raises(EngineFailed, match="no"):
            task.execute(["true"])
    assert types(task.history())[-2:] == ["SandboxRequested", "SandboxFailed"]
    assert (task.state.state, task.state.pending) == (TaskState.CREATED, ())
    assert shell(task, "echo alive") == "alive\n"


def assert_nothing_is_left(keep: Keep) -> None:
    (task,) = keep.tasks(*TaskState)
    assert (task.state, task.pending) == (TaskState.CLEANED, ())
    assert containers(keep.id) == []
    assert list((keep.path / "tasks").iterdir()) == []
    assert list((keep.path / "run" / "spool").iterdir()) == []


@pytest.mark.parametrize("title", ["", "  ", "a\nb", "\x1b[31m", "x" * 201, "\udcff"])
def test_a_title_that_cannot_be_shown_is_refused(shared_keep: Keep, title: str) -> None:
    head = shared_keep.head()
    with pytest.raises(BadInput, match="a title has"):
        shared_keep.create_task(title)
    assert shared_keep.head() == head


# ---- pausing


def test_a_paused_task_stands_still_until_it_is_resumed(task: Task) -> None:
    shell(task, "(while :; do date +%s%N >beat; sleep 0.01; done) &")
    eventually((task.workspace / "beat").exists)
    task.pause()
    assert (task.state.state, status(task)) == (TaskState.PAUSED, "paused")
    with pytest.raises(TaskRefused, match="resume it first"):
        task.execute(["true"])
    with pytest.raises(TaskRefused):
        task.pause()
    beat = (task.workspace / "beat").read_text()
    assert not threading.Event().wait(0.2)
    assert (task.workspace / "beat").read_text() == beat
    task.resume()
    assert (task.state.state, status(task)) == (TaskState.ACTIVE, "running")
    eventually(lambda: (task.workspace / "beat").read_text() != beat)
    with pytest.raises(TaskRefused):
        task.resume()


def test_a_paused_task_can_be_checkpointed_restored_and_completed(keep: Keep, task: Task) -> None:
    shell(task, "echo one >file")
    checkpoint = task.checkpoint()
    shell(task, "echo two >file")
    task.pause()
    task.restore_checkpoint(checkpoint.id)
    assert status(task) == "paused"
    assert (task.workspace / "file").read_text() == "one\n"
    task.complete()
    assert containers(keep.id) == []


def test_a_pause_that_fails_is_recorded(keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    keep.engine.pause(str(task.state.container))
    with pytest.raises(EngineFailed, match="already paused"):
        task.pause()
    assert types(task.history())[-1] == "PauseFailed"
    assert (task.state.state, task.state.pending) == (TaskState.ACTIVE, ())
    assert shell(task, "echo alive") == "alive\n"


# ---- refusals while something runs


@pytest.mark.parametrize("verb", ["pause", "complete", "fail", "restore"])
def test_what_must_be_alone_is_refused_while_a_command_runs(busy: Task, verb: str) -> None:
    checkpoint = busy.checkpoint()
    before = types(busy.history())
    verbs: dict[str, Callable[[], object]] = {
        "pause": busy.pause,
        "complete": busy.complete,
        "fail": lambda: busy.fail("no"),
        "restore": lambda: busy.restore_checkpoint(checkpoint.id),
    }
    with pytest.raises(TaskBusy, match="CommandRequested"):
        verbs[verb]()
    assert status(busy) == "running"
    assert types(busy.history()) == before


# ---- the end


@pytest.mark.parametrize("end", [TaskState.COMPLETED, TaskState.FAILED])
def test_an_ended_task_keeps_its_workspace_until_it_is_cleaned_up(keep: Keep, task: Task, end: TaskState) -> None:
    shell(task, "echo one >file")
    checkpoint = task.checkpoint()
    task.complete("done") if end is TaskState.COMPLETED else task.fail("given up")
    assert (task.state.state, task.state.container, containers(keep.id)) == (end, None, [])
    for verb in (lambda: task.execute(["true"]), task.pause, task.resume, task.complete, lambda: task.fail("")):
        with pytest.raises(TaskRefused):
            verb()
    (task.workspace / "file").unlink()
    task.restore_checkpoint(checkpoint.id)
    assert (task.workspace / "file").read_text() == "one\n"
    task.clean_up()
    assert task.state.state is TaskState.CLEANED
    assert not task.folder.exists()
    assert task.checkpoints()[0].id == checkpoint.id
    with pytest.raises(CheckpointRefused, match="has no workspace"):
        task.checkpoint()
    with pytest.raises(TaskRefused):
        task.clean_up()
    assert task.id not in [each.id for each in keep.tasks()]


def test_a_live_task_is_not_cleaned_up(shared_task: Task) -> None:
    with pytest.raises(TaskRefused, match="complete it first"):
        shared_task.clean_up()
    assert shared_task.workspace.is_dir()


def test_whatever_a_command_left_is_cleaned_up(keep: Keep, task: Task) -> None:
    code = "import os\nfor _ in range(5010):\n    os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)"
    assert task.execute(["python3", "-c", code]).exit_code == 0
    shell(task, "touch /run/sandkeep/left; mkdir -p locked/in; chmod 000 locked; ln -s / root")
    with pytest.raises(CheckpointRefused, match="folders deep"):
        task.checkpoint()
    task.complete()
    task.clean_up()
    assert not task.folder.exists()
    assert list((keep.path / "run" / "spool").iterdir()) == []


def test_a_cleanup_that_fails_is_recorded_and_can_be_repeated(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.complete()
    container = Engine.containers

    def failing(self: Engine, keep: str) -> object:
        raise EngineFailed("no")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "containers", failing)
        with pytest.raises(EngineFailed):
            task.clean_up()
    assert Engine.containers is container
    assert types(task.history())[-1] == "CleanupFailed"
    assert (task.state.state, task.state.pending) == (TaskState.COMPLETED, ())
    task.clean_up()
    assert task.state.state is TaskState.CLEANED


# ---- finding tasks


def test_a_task_is_found_by_the_beginning_of_its_id(shared_keep: Keep, shared_task: Task) -> None:
    assert shared_keep.task(shared_task.id[:4]).id == shared_task.id
    for missing in (shared_task.id[:3], "0" * 12):
        with pytest.raises(TaskNotFound):
            shared_keep.task(missing)
    for bad in ("", "xyz", shared_task.id.upper() + "G", shared_task.id + "0", "../x", "a\n"):
        with pytest.raises(BadId):
            shared_keep.task(bad)
    with pytest.raises(TaskNotFound):
        _ = Task(shared_keep, "0" * 12).state


def test_the_actor_and_the_history_of_a_task_are_its_own(shared_keep: Keep, shared_task: Task) -> None:
    records = list(shared_task.history())
    assert {record.stream for record in records} == {f"task/{shared_task.id}"}
    assert {record.actor for record in records} == {"tester"}
    assert isinstance(records[0].event, ev.TaskCreated)
    assert next(shared_task.history(after=2)).revision == 3
