"""Whatever is killed, at whichever step, and whatever happens behind the keep's back: all of it is settled."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from sandkeep.events import catalogue as ev
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task, steward
from sandkeep.sandboxes.container import INTENT, KEEP, TASK
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import SandboxGone, TaskBusy

from .support import SCRIPT, container_of, containers, engine, eventually, left, listing, shell, stopped_at, types

pytestmark = pytest.mark.engine


def killed_at(step: str, action: str, keep: Keep, *arguments: str) -> None:
    """Let another process do `action` with the keep, and kill it without warning when it has come to `step`."""
    with stopped_at(step, action, keep.path, *arguments) as process:
        process.kill()
        process.wait()


def later(keep: Keep) -> list[str]:
    """What a later process that opens the keep does to settle things."""
    return keep.reconcile(again=True)  # this process has it open already, and may open it only once


def assert_agreement(keep: Keep) -> None:
    """Log, engine and disk agree, and nothing is under way."""
    tasks = keep.tasks(*TaskState)
    assert [task.pending for task in tasks if task.pending] == []
    assert sorted(containers(keep.id)) == sorted(task.container for task in tasks if task.container)
    for task in tasks:
        found = keep.task(task.id)
        assert found.folder.exists() == (task.state is not TaskState.CLEANED)
        assert (keep.path / "run" / "spool" / task.id).exists() == (task.state is not TaskState.CLEANED)
    assert later(keep) == []
    assert keep.verify().ok


# ---- behind the keep's back


def test_a_container_that_was_removed_is_lost_and_the_next_command_has_another(keep: Keep, task: Task) -> None:
    shell(task, "echo kept >file")
    before = str(task.state.container)
    keep.engine.remove(before)
    assert shell(task, "cat file") == "kept\n"
    assert task.state.container not in (None, before)
    lost = [record.event for record in task.history() if isinstance(record.event, ev.SandboxLost)]
    assert lost == [ev.SandboxLost(before, "it was found removed")]
    assert_agreement(keep)


def test_a_container_that_was_killed_is_lost_and_the_next_command_has_another(keep: Keep, task: Task) -> None:
    before = str(task.state.container)
    with engine() as client:
        client.api.kill(before)
        eventually(lambda: client.containers.get(before).status == "exited")
    assert shell(task, "echo alive") == "alive\n"
    lost = [record.event for record in task.history() if isinstance(record.event, ev.SandboxLost)]
    assert lost == [ev.SandboxLost(before, "it was found exited")]
    assert_agreement(keep)


@pytest.mark.parametrize("how", ["kill", "remove"])
def test_a_command_whose_container_ends_is_told_so(keep: Keep, task: Task, how: str) -> None:
    container = str(task.state.container)

    def end(name: str, data: bytes) -> None:
        with engine() as client:
            client.api.kill(container) if how == "kill" else client.api.remove_container(container, force=True)

    with pytest.raises(SandboxGone):
        task.execute(["sh", "-c", "echo begun; sleep 1000"], timeout=60, on_output=end)
    assert types(task.history())[-1] == "CommandFailed"
    assert not task.state.pending
    assert shell(task, "echo alive") == "alive\n"
    assert_agreement(keep)


def test_a_container_that_was_frozen_is_thawed(keep: Keep, task: Task) -> None:
    keep.engine.pause(str(task.state.container))
    assert shell(task, "echo alive", timeout=60) == "alive\n"


def test_a_lost_container_is_noticed_without_a_command(keep: Keep, task: Task) -> None:
    keep.engine.remove(str(task.state.container))
    (said,) = later(keep)
    assert said.startswith(f"task {task.id}: its sandbox ")
    assert task.state.container is None
    assert_agreement(keep)


def an_orphan(client: docker.DockerClient, image: str, keep: str, task: str) -> str:
    made = secrets.token_hex(8)
    labels, name = {KEEP: keep, TASK: task, INTENT: made}, f"sandkeep-{task}-{made}"
    command = ["sleep", "1000"]
    return str(client.containers.run(image, command, detach=True, network_mode="none", labels=labels, name=name).id)


def test_only_this_keeps_orphans_are_removed(keep: Keep, task: Task, tmp_path: Path) -> None:
    with engine() as client:
        mine = an_orphan(client, task.state.image, keep.id, task.id)
        unknown = an_orphan(client, task.state.image, keep.id, "f" * 12)
        others = an_orphan(client, task.state.image, "1" * 16, task.id)
        try:
            said = later(keep)
            assert len(said) == 2
            assert all("removed the orphaned sandbox" in line for line in said)
            assert containers(keep.id) == [task.state.container]
            assert keep.engine.status(others) == "running"
        finally:
            for each in (mine, unknown, others):
                keep.engine.remove(each)
    assert shell(task, "echo alive") == "alive\n"


def test_the_container_of_an_ended_task_is_removed(keep: Keep, task: Task) -> None:
    killed_at("after:task._act", "complete", keep, task.id)
    assert (task.state.state, len(containers(keep.id))) == (TaskState.COMPLETED, 1)
    later(keep)
    assert containers(keep.id) == []
    assert_agreement(keep)
    task.clean_up()


# ---- killed at every step

CREATE = (
    "after:locks.act_on",
    "before:workspace.prepare",
    "after:workspace.prepare",
    "before:task._settle",
    "after:task._settle",
)


@pytest.mark.parametrize("step", CREATE)
def test_a_creation_cut_off_leaves_no_half_made_task(keep: Keep, source: Path, step: str) -> None:
    killed_at(step, "create", keep, str(source))
    later(keep)
    (task,) = keep.tasks(*TaskState)
    if CREATE.index(step) <= CREATE.index("before:task._settle"):
        assert task.state is TaskState.CLEANED
    else:
        assert shell(keep.task(task.id), "./run") == "ran\n"
    assert_agreement(keep)


def test_a_creation_cut_off_is_left_alone_while_its_git_still_writes(
    keep: Keep, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    slow = "case \"$*\" in *' clone '*) touch begun; while ! [ -e go ]; do sleep 0.02; done;; esac"
    (tmp_path / "bin" / "git").write_text(f'#!/bin/sh\ncd {tmp_path}; {slow}\nexec {shutil.which("git")} "$@"\n')
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with subprocess.Popen([SCRIPT, "create-task", "--keep", keep.path, "--source", source, "t"]) as process:
        eventually((tmp_path / "begun").exists)
        process.kill()
    try:
        assert later(keep) == []
    finally:
        (tmp_path / "go").touch()
    eventually(lambda: later(keep))
    (task,) = keep.tasks(*TaskState)
    assert task.state is TaskState.CLEANED
    assert_agreement(keep)


FIRST_START = ("after:resources.allot", "before:engine.start", "after:engine.start", "after:keep.decide")


@pytest.mark.parametrize("step", FIRST_START)
def test_a_first_start_cut_off_is_settled(keep: Keep, step: str) -> None:
    task = keep.create_task("t")
    killed_at(step, "execute", keep, task.id, "true")
    later(keep)
    last = "SandboxStarted" if step == FIRST_START[-1] else "SandboxFailed"
    assert types(task.history())[-1] == last
    assert_agreement(keep)
    assert shell(task, "echo alive") == "alive\n"
    assert_agreement(keep)


STOP = ("after:locks.act", "before:engine.remove", "after:engine.remove", "after:task._settle")


@pytest.mark.parametrize("step", STOP)
def test_a_stop_cut_off_is_settled(keep: Keep, task: Task, step: str) -> None:
    shell(task, "echo kept >file")
    killed_at(step, "stop", keep, task.id)
    assert [pending.kind for pending in task.state.pending] == ([] if step == STOP[-1] else ["SandboxStopRequested"])
    later(keep)
    assert_agreement(keep)
    assert shell(task, "cat file") == "kept\n"
    assert_agreement(keep)


REST = ("after:task._idle", "before:engine.pause", "after:engine.pause", "after:task._settle")


@pytest.mark.parametrize("step", REST)
def test_an_idle_pause_cut_off_is_settled(keep: Keep, task: Task, step: str) -> None:
    killed_at(step, "rest", keep, task.id)
    later(keep)
    assert task.state.idle is (step == REST[-1])
    assert keep.engine.status(container_of(task)) == ("paused" if step == REST[-1] else "running")
    assert_agreement(keep)
    assert shell(task, "echo alive", timeout=60) == "alive\n"


EXECUTE = (
    "after:locks.act",
    "before:agent.run",
    "after:agent.run",
    "before:command.collected",
    "before:command.settle",
    "after:command.settle",
    "after:sandbox.forget",
)


@pytest.mark.parametrize("step", EXECUTE)
def test_a_command_cut_off_is_run_once_and_its_outcome_found(keep: Keep, task: Task, step: str) -> None:
    killed_at(step, "execute", keep, task.id, "sh", "-c", "echo said; echo x >>file; exit 3")
    settled = EXECUTE.index(step) >= EXECUTE.index("after:command.settle")
    assert [pending.kind for pending in task.state.pending] == ([] if settled else ["CommandRequested"])
    ran = EXECUTE.index(step) >= EXECUTE.index("after:agent.run")
    if ran:
        eventually(lambda: (task.workspace / "file").exists())
    later(keep)
    assert task.state.executions == 1
    *_, last = task.history()
    if ran:
        assert isinstance(last.event, ev.CommandExecuted)
        assert (task.workspace / "file").read_text() == "x\n"
        if step != "after:agent.run":  # there it may have been ended before it could
            assert (last.event.exit_code, last.event.stdout.data, last.event.reason) == (3, b"said\n", "")
    else:
        assert isinstance(last.event, ev.CommandFailed)
        assert not (task.workspace / "file").exists()
    assert_agreement(keep)
    assert shell(task, "echo alive") == "alive\n"
    assert left(task) == []


def test_a_command_that_outlives_its_process_is_ended(keep: Keep, task: Task) -> None:
    killed = killing_meanwhile(keep, task, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert [pending.kind for pending in task.state.pending] == ["CommandRequested"]
    later(keep)
    with engine() as client:
        running = client.api.top(container_of(task), ps_args="-eo pid,args")["Processes"]
    assert [args for _, args in running if "sleep 1000" in args] == []
    *_, ended = task.history()
    assert isinstance(ended.event, ev.CommandExecuted)
    assert (ended.event.exit_code, ended.event.reason) == (137, "abandoned")
    assert ended.event.stdout.data == b"begun\n"
    assert_agreement(keep)


def killing_meanwhile(keep: Keep, task: Task, number: signal.Signals) -> subprocess.Popen[str]:
    """Send a signal to a process while its command runs."""
    line = "echo begun; touch begun; setsid sleep 1000"
    process = subprocess.Popen([SCRIPT, "execute", "--keep", keep.path, task.id, "--", "sh", "-c", line], text=True)
    eventually((task.workspace / "begun").exists)
    process.send_signal(number)
    process.wait(30)
    return process


def test_the_output_of_a_command_whose_secrets_died_is_not_stored(keep: Keep, task: Task) -> None:
    line = "echo $TOKEN; echo $TOKEN >&2; touch begun; sleep 1000"
    command: list[str | Path] = [SCRIPT, "execute", "--keep", keep.path, "--secret", "TOKEN", task.id, "--"]
    with subprocess.Popen([*command, "sh", "-c", line], env=os.environ | {"TOKEN": "sesame"}) as process:
        eventually((task.workspace / "begun").exists)
        process.kill()
    later(keep)
    *_, ended = task.history()
    assert isinstance(ended.event, ev.CommandExecuted)
    assert ended.event.stdout == ended.event.stderr == ev.Output(size=0, data=b"", truncated=True)
    assert "sesame" not in str([record.event for record in task.history()])
    assert left(task) == []
    assert_agreement(keep)


CHECKPOINT = ("before:snapshot.take_since", "after:snapshot.take_since", "before:keep.decide", "after:keep.decide")


@pytest.mark.parametrize("step", CHECKPOINT)
def test_a_checkpoint_cut_off_is_there_or_not(keep: Keep, task: Task, step: str) -> None:
    shell(task, "echo one >file")
    killed_at(step, "checkpoint", keep, task.id)
    assert later(keep) == []
    made = task.checkpoints()
    assert len(made) == (step == CHECKPOINT[-1])
    checkpoint = made[0] if made else task.checkpoint()
    shell(task, "echo two >file")
    task.restore_checkpoint(checkpoint.id)
    assert shell(task, "cat file") == "one\n"
    assert_agreement(keep)


RESTORE = (
    "after:task._checkpoint",
    "after:locks.act_on",
    "before:engine.pause",
    "after:engine.pause",
    "before:restore.apply",
    "after:restore.apply",
    "before:restore.check",
    "after:engine.unpause",
    "after:task._settle",
)


@pytest.mark.parametrize("step", RESTORE)
def test_a_restore_cut_off_is_settled_and_can_be_completed(keep: Keep, task: Task, step: str) -> None:
    shell(task, "mkdir -p a/b; for i in 1 2 3; do echo $i >a/$i; done; ln -s a link")
    before, checkpoint = listing(task.workspace), task.checkpoint()
    shell(task, "rm -rf a link; mkdir link; for i in x y z; do echo $i >$i; done")
    changed = listing(task.workspace)
    killed_at(step, "restore", keep, task.id, checkpoint.id)
    later(keep)
    assert_agreement(keep)
    assert shell(task, "echo alive", timeout=60) == "alive\n"
    undo = task.checkpoints()[1].id if len(task.checkpoints()) > 1 else None
    task.restore_checkpoint(checkpoint.id)
    assert listing(task.workspace) == before
    if undo is not None:
        task.restore_checkpoint(undo)
        assert listing(task.workspace) == changed


CLEANUP = ("after:locks.act", "before:workspace.remove", "after:workspace.remove", "before:task._settle")


@pytest.mark.parametrize("step", CLEANUP)
def test_a_cleanup_cut_off_is_completed(keep: Keep, task: Task, step: str) -> None:
    task.complete()
    killed_at(step, "clean_up", keep, task.id)
    assert [pending.kind for pending in task.state.pending] == ["CleanupRequested"]
    later(keep)
    assert task.state.state is TaskState.CLEANED
    assert_agreement(keep)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_pause_or_its_end_cut_off_is_taken_back(keep: Keep, task: Task, verb: str, when: str) -> None:
    if verb == "resume":
        task.pause()
    state, running = task.state.state, keep.engine.status(str(task.state.container))
    killed_at(f"{when}:engine.{'pause' if verb == 'pause' else 'unpause'}", verb, keep, task.id)
    later(keep)
    assert task.state.state is state
    assert keep.engine.status(str(task.state.container)) == running
    assert_agreement(keep)


# ---- what is not to be touched


def test_what_a_living_process_does_is_left_alone(keep: Keep, task: Task) -> None:
    with stopped_at("before:command.settle", "execute", keep.path, task.id, "true"):
        assert later(keep) == []
        assert [pending.kind for pending in task.state.pending] == ["CommandRequested"]
        with pytest.raises(TaskBusy):
            task.complete()
    other = keep.create_task("another")
    with stopped_at("after:engine.start", "execute", keep.path, other.id, "true"):
        later(keep)
        assert len(containers(keep.id)) == 2
    later(keep)
    assert_agreement(keep)


def test_what_was_done_while_somebody_looked_is_not_taken_for_abandoned(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause, seen = Engine.pause, []

    def looked_at(self: Engine, container: str) -> None:
        seen.extend(steward.busy(keep))
        pause(self, container)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "pause", looked_at)
        task.pause()
    assert [pending.kind for pending in seen[0].pending] == ["PauseRequested"]
    monkeypatch.setattr(steward, "busy", lambda keep: seen)
    assert later(keep) == []
    assert (task.state.state, keep.engine.status(container_of(task))) == (TaskState.PAUSED, "paused")


# As a process leaves it that is killed in `mdb_txn_commit`: the last commit is there, and readers are not told of it.
CUT_OFF = """
import lmdb, mmap, os, struct, sys
env = lmdb.open(sys.argv[1], create=False, max_dbs=16)
held = env.begin(write=True)
with open(sys.argv[1] + "/lock.mdb", "r+b") as file:
    shared = mmap.mmap(file.fileno(), 0)
    (last,) = struct.unpack_from("=Q", shared, 48)
    struct.pack_into("=Q", shared, 48, last - 1)
os.kill(os.getpid(), 9)
"""


def test_what_a_process_was_killed_in_the_midst_of_committing_is_seen(keep: Keep) -> None:
    task = keep.create_task("t")
    task.tag(add=["last"])
    subprocess.run([sys.executable, "-P", "-c", CUT_OFF, keep.path / "log"], check=False)
    assert types(task.history())[-1] == "WorkspacePrepared"
    later(keep)
    assert types(task.history())[-1] == "TaskTagged"


def test_a_dead_command_does_not_wait_for_a_living_one_beside_it(keep: Keep, task: Task) -> None:
    with stopped_at("before:agent.run", "execute", keep.path, task.id, "true"):
        killed_at("before:agent.run", "execute", keep, task.id, "true")
        assert len(task.state.pending) == 2
        assert len(later(keep)) == 1
        assert len(task.state.pending) == 1
    later(keep)
    assert not task.state.pending


def test_one_process_at_a_time_settles(keep: Keep, task: Task) -> None:
    killed_at("before:command.settle", "execute", keep, task.id, "true")
    with open(keep.path / "run" / "reconcile.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert steward.reconcile(keep) == []
        assert len(task.state.pending) == 1
    assert len(steward.reconcile(keep)) == 1
    assert not task.state.pending


# ---- everything a user may do next finds the task settled


@pytest.mark.parametrize("verb", ["complete", "fail", "pause", "restore", "clean_up"])
def test_a_crash_stands_in_nobodys_way(keep: Keep, task: Task, verb: str) -> None:
    checkpoint = task.checkpoint()
    if verb == "clean_up":
        task.complete()
        killed_at("after:locks.act", "clean_up", keep, task.id)
    else:
        killed_at("before:agent.run", "execute", keep, task.id, "true")
    verbs: dict[str, Callable[[], object]] = {
        "complete": task.complete,
        "fail": lambda: task.fail("why"),
        "pause": task.pause,
        "restore": lambda: task.restore_checkpoint(checkpoint.id),
        "clean_up": task.clean_up,
    }
    verbs[verb]()
    assert not task.state.pending
