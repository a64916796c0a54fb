"""Forks of a task from its checkpoints, and time travel of whole tasks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.projections import Checkpoint, TaskState
from sandkeep.sandboxes import Keep, Task, expiry, restore
from sandkeep.sandboxes.errors import CheckpointGone, CheckpointNeeded, CheckpointNotFound, PolicyDenied
from sandkeep.sandboxes.limits import LIMITS

from .support import Cli, containers, listing, shell, stopped_at, types

pytestmark = pytest.mark.engine


@pytest.fixture
def travelled(keep: Keep) -> tuple[Task, str]:
    """A task that has gone on after a checkpoint, and the checkpoint's id."""
    task = keep.create_task("Fix the parser", tags=["urgent"])
    (task.workspace / "file").write_text("then\n")
    task.record_decision("use LMDB", reason="it is quick")
    then = task.checkpoint("then").id
    (task.workspace / "file").write_text("now\n")
    (task.workspace / "new").write_text("new\n")
    task.record_decision("use SQLite")
    task.tag(add=["late"], remove=["urgent"])
    return task, then


def test_a_fork_begins_as_the_task_was(keep: Keep, source: Path) -> None:
    task = keep.create_task(
        "Fix the parser", source=source, tags=["urgent"], network="allow", allow=["example.org"], limits={"pids": 99}
    )
    task.record_decision("use LMDB")
    before = listing(task.workspace)
    then = task.checkpoint("then")
    (task.workspace / "README").unlink()
    task.record_decision("use SQLite")
    task.tag(remove=["urgent"])
    fork = keep.fork_task(task.id, then.id[:5], title="Another way")
    assert fork.id != task.id
    assert listing(fork.workspace) == before
    assert fork.checkpoint().digest == then.digest
    assert shell(fork, "git status --porcelain") == ""
    assert (fork.state.title, fork.state.tags, fork.state.image) == ("Another way", ("urgent",), task.state.image)
    assert keep.network(fork.id).policy() == keep.network(task.id).policy()
    assert keep.resources(fork.id).limits == keep.resources(task.id).limits
    assert keep.resources(fork.id).limits.pids == 99
    event = next(fork.history(types=("TaskForked",))).event
    assert isinstance(event, ev.TaskForked)
    assert (event.task, event.checkpoint, event.position, event.decided) == (
        *(task.id, then.id, then.position),
        ("use LMDB",),
    )
    # Neither knows of the other from then on.
    assert shell(fork, "cat README; rm README; echo more >more") == "hello\n"
    assert not (task.workspace / "more").exists()
    plan = shell(fork, "cat /memory/plan.md")
    assert "- use LMDB" in plan
    assert "SQLite" not in plan
    assert f"Forked from task `{task.id}`" in plan
    assert "what had been decided there" in shell(fork, "cat /memory/decisions.md").lower()


def test_a_fork_is_given_what_it_is_asked_to_have(keep: Keep, travelled: tuple[Task, str]) -> None:
    task, then = travelled
    fork = keep.fork_task(
        task.id, then, tags=["x"], owner="ann", limits={"memory": "1GiB"}, network="allow", allow=["b.org"]
    )
    assert (fork.state.title, fork.state.tags, fork.state.owner) == ("Fix the parser", ("x",), "ann")
    assert keep.resources(fork.id).limits.memory_bytes == 1 << 30
    assert keep.resources(fork.id).limits.pids == LIMITS.pids
    assert [each.host for each in keep.network(fork.id).policy().allow] == ["b.org"]
    count = len(keep.tasks(*TaskState))
    with pytest.raises(PolicyDenied):
        keep.fork_task(task.id, then, network="open")
    with pytest.raises(BadInput):
        keep.fork_task(task.id, then, title="")
    with pytest.raises(CheckpointNotFound):
        keep.fork_task(task.id, "0" * 12)
    assert len(keep.tasks(*TaskState)) == count


def test_what_a_fork_was_made_of_stays_until_it_is_cleaned_up(keep: Keep, travelled: tuple[Task, str]) -> None:
    task, then = travelled
    task.checkpoint()
    fork = keep.fork_task(task.id, then)
    mine = keep.checkpoints(task.id)
    with pytest.raises(CheckpointNeeded, match="a task that was forked from it lives"):
        mine.expire(then)
    assert expiry.surplus(keep) == []
    fork.complete()
    fork.clean_up()
    mine.expire(then)
    with pytest.raises(CheckpointGone):
        keep.fork_task(task.id, then)


def test_tasks_that_are_no_more_can_be_forked(keep: Keep, travelled: tuple[Task, str]) -> None:
    task, then = travelled
    task.complete()
    task.clean_up()
    fork = keep.fork_task(task.id, then)
    assert (fork.workspace / "file").read_text() == "then\n"


@pytest.mark.parametrize("step", ["before:restore.fill", "after:restore.fill"])
def test_a_fork_that_was_cut_off_is_cleaned_up(keep: Keep, travelled: tuple[Task, str], step: str) -> None:
    task, then = travelled
    task.checkpoint()
    with stopped_at(step, "fork", keep.path, task.id, then) as process:
        # While it is made, what it is made of stays.
        with pytest.raises(CheckpointNeeded):
            keep.checkpoints(task.id).expire(then)
        process.kill()
        process.wait()
    keep.reconcile(again=True)
    (cut,) = keep.tasks(TaskState.CLEANED)
    assert types(keep.task(cut.id).history())[:2] == ["TaskCreated", "TaskForked"]
    assert not keep.task(cut.id).folder.exists()
    assert containers(keep.id) == []
    keep.checkpoints(task.id).expire(then)
    assert keep.verify().ok
    assert keep.replay().same


def test_what_expires_at_the_last_moment_is_not_gone_back_to(
    keep: Keep, travelled: tuple[Task, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, then = travelled
    found = restore.find

    def expiring(*arguments: Any) -> Checkpoint:
        checkpoint = found(*arguments)
        monkeypatch.setattr(restore, "find", found)
        keep.checkpoints(task.id).expire(checkpoint.id)
        return checkpoint

    second = task.checkpoint().id
    task.checkpoint()
    for act in (partial(keep.fork_task, task.id, then), partial(task.restore_checkpoint, second)):
        monkeypatch.setattr(restore, "find", expiring)
        with pytest.raises(CheckpointGone):
            act()
    assert (task.workspace / "file").read_text() == "now\n"
    assert len(keep.tasks(*TaskState)) == 1
    assert not {"RestoreRequested", "CheckpointRestored"} & set(types(task.history()))
    assert task.state.pending == ()


# ---- time travel


def test_a_task_goes_back_whole_and_nothing_is_erased(keep: Keep, travelled: tuple[Task, str]) -> None:
    task, then = travelled
    before = types(task.history())
    keep.network(task.id).set("allow", allow=["a.org"])
    done = task.restore_checkpoint(then)
    assert {path.name: path.read_text() for path in task.workspace.iterdir()} == {"file": "then\n"}
    assert task.state.tags == ("urgent",)
    assert keep.network(task.id).policy().mode == "allow"  # to go back widens and narrows nothing
    assert [(each.text, each.abandoned) for each in task.decisions()] == [("use LMDB", False), ("use SQLite", True)]
    assert types(task.history())[: len(before)] == before
    third = task.record_decision("use files")
    assert (third.number, third.abandoned) == (3, False)
    task.restore_checkpoint(done.undo)
    assert (task.workspace / "new").read_text() == "new\n"
    assert task.state.tags == ("late",)
    told = [(each.text, each.abandoned) for each in task.decisions()]
    assert told == [("use LMDB", False), ("use SQLite", False), ("use files", True)]
    line = task.line()
    left = [record.type for record in task.history() if record.position not in line]
    assert left == [
        "RestoreRequested",
        "CheckpointRestored",
        "DecisionRecorded",
        "CheckpointCreated",
        "RestoreRequested",
    ]
    assert keep.replay().same
    assert keep.verify().ok


def test_files_alone_go_back_if_that_is_asked_for(keep: Keep, travelled: tuple[Task, str]) -> None:
    task, then = travelled
    task.restore_checkpoint(then, files_only=True)
    assert (task.workspace / "file").read_text() == "then\n"
    assert task.state.tags == ("late",)
    assert not any(each.abandoned for each in task.decisions())


def test_the_pages_tell_the_agent_that_it_went_back(keep: Keep, travelled: tuple[Task, str]) -> None:
    task, then = travelled
    position = task.checkpoints()[0].position
    task.restore_checkpoint(then)
    keep.trailing.wait(task.id)
    pages = {path.name: path.read_text() for path in (task.folder / "memory").iterdir()}
    plan, decisions = pages["plan.md"], pages["decisions.md"]
    assert plan.partition("## Decided")[2].split("\n- ")[1:] == ["use LMDB\n"]
    assert f"The task went back to checkpoint `{then}`, taken at position\n{position}." in plan
    assert decisions.index("use SQLite") < decisions.index(f"## Back to checkpoint {then}")
    assert f"behind position {position} is on a branch that was left" in decisions
    assert keep.verify().ok  # the pages are what the log makes of them
    assert keep.task(task.id).rebuild_memory().damage == ()
    assert {path.name: path.read_text() for path in (task.folder / "memory").iterdir()} == pages


def test_the_verbs_of_time_travel(keep: Keep, travelled: tuple[Task, str], cli: Cli) -> None:
    task, then = travelled
    keep.close()
    assert cli("restore-checkpoint", task.id, then).status == 0
    history = cli("task-history", task.id, "--json").json
    assert [each["type"] for each in history if each["abandoned"]] == [
        *("DecisionRecorded", "TaskTagged", "CheckpointCreated", "RestoreRequested"),
    ]
    marked = [line for line in cli("task-history", task.id).stdout.splitlines() if line[7:8] == b"~"]
    assert len(marked) == 4
    assert b"on a branch that was left" in cli("task-decisions", task.id).stdout
    assert [each["abandoned"] for each in cli("task-decisions", task.id, "--json").json] == [False, True]
    fork = cli("fork-task", task.id, then, "--title", "Another way", "--tag", "x", "--json").json
    assert (fork["title"], fork["tags"]) == ("Another way", ["x"])
    shown = cli("show-task", fork["id"], "--json").json
    assert shown["forked_from"] == {"task": task.id, "checkpoint": then}
    assert f"{task.id}, checkpoint {then}".encode() in cli("show-task", fork["id"]).stdout
    assert cli("show-task", task.id, "--json").json["forked_from"] is None
