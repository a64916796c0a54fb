"""Processes that are killed while they make an own workspace or merge one: nothing is lost, doubled or left over."""

from __future__ import annotations

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Rule
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Held, Keep, Task

from .agents import lines
from .support import containers, shell, status, stopped_at

pytestmark = pytest.mark.engine

SAME = "1\n"


def killed_at(step: str, action: str, keep: Keep, *arguments: str) -> None:
    """Let another process do `action` with the keep, and kill it without warning when it has come to `step`."""
    with stopped_at(step, action, keep.path, *arguments) as process:
        process.kill()
        process.wait()


def assert_nothing_is_left(keep: Keep) -> None:
    tasks = keep.tasks(*TaskState)
    assert [each.pending for each in tasks if each.pending] == []
    assert sorted(containers(keep.id)) == sorted(each.container for each in tasks if each.container)
    for each in tasks:
        assert keep.task(each.id).folder.exists() == (each.state is not TaskState.CLEANED)
        assert each.parent is None or each.state is TaskState.CLEANED
    assert keep.reconcile(again=True) == []
    assert keep.verify().ok
    assert keep.replay().same


@pytest.fixture
def held(keep: Keep, task: Task) -> Held:
    """Ann, attached to a task in which each has a workspace of their own."""
    for path, content in (("file", lines()), ("same", SAME), ("gone", "x"), ("mode", "m")):
        shell(task, f"cat >{path} <<'end'\n{content}end" if content.endswith("\n") else f"printf {content} >{path}")
    keep.conflicts(task.id).set_rules([Rule("*", "own-workspace")])
    return task.lock("collaborative", agent="ann", session="ann")


FORK = (
    "after:own._fork",
    "after:task.create",
    "before:workspace.prepare",
    "before:restore.fill",
    "after:restore.fill",
    "before:engine.start",
    "after:engine.start",
    "before:command.carry_out",
    "after:command.carry_out",
)


@pytest.mark.parametrize("step", FORK)
def test_a_fork_cut_off_is_made_good_by_the_next_use(keep: Keep, task: Task, held: Held, step: str) -> None:
    killed_at(step, "execute-own", keep, task.id, str(held.token), "touch", "first")
    assert shell(held.task, "cat file; touch second") == lines()
    keep.reconcile(again=True)
    done = held.release()
    assert done is not None
    assert (task.workspace / "second").exists()
    assert not done.conflicts
    assert keep.own_workspaces(task.id).list() == []
    assert_nothing_is_left(keep)
    task.complete()


@pytest.mark.parametrize("step", ["after:own._fork", "after:restore.fill"])
def test_a_fork_cut_off_whose_agent_is_gone_holds_nothing_up(keep: Keep, task: Task, held: Held, step: str) -> None:
    killed_at(step, "execute-own", keep, task.id, str(held.token), "touch", "first")
    keep.locking.take_away(task.id, "gone")
    keep.reconcile(again=True)
    assert keep.own_workspaces(task.id).list() == []
    task.complete()
    assert_nothing_is_left(keep)


MERGE = (
    "after:engine.pause",
    "after:engine.pause#2",
    "after:merging._plan",
    "after:merging._decide",
    "after:look.detect",
    "after:place.put",
    "after:place.put#3",
    "after:merging.write",
    "after:look.look#2",
    "after:look._put",
    "after:look.settle",
    "before:merging._complete",
    "before:merging._clean_up",
    "before:workspace.remove",
    "before:locks._decide#2",
)


@pytest.mark.parametrize("step", MERGE)
@pytest.mark.parametrize("look_between", [False, True])
def test_a_merge_cut_off_is_completed_by_the_next(
    keep: Keep, task: Task, held: Held, step: str, look_between: bool
) -> None:
    shell(held.task, "sed -i 's/line 2/ann/' file; echo ann >same; rm gone; chmod 600 mode; mkdir d; echo n >d/new")
    keep.actor = "bob"
    shell(task, "sed -i 's/line 8/bob/' file; echo bob >same; echo b >bobs")
    killed_at(step, "detach", keep, task.id, str(held.token))
    if look_between:
        keep.actor = "eve"
        shell(task, "cat bobs", timeout=60)
    keep.reconcile(again=True)
    if MERGE.index(step) > MERGE.index("after:merging._plan"):
        assert status(task) == "running"
    if any(lock.holding for lock in keep.locks()):
        held.release()
    assert not any(lock.holding for lock in keep.locks())
    here = {str(path.relative_to(task.workspace)) for path in task.workspace.rglob("*")}
    assert here == {"file", "same", "mode", "d", "d/new", "bobs"}
    assert (task.workspace / "file").read_text() == lines(l2="ann", l8="bob")
    assert (task.workspace / "same").read_text() == "ann\n"
    assert (task.workspace / "mode").stat().st_mode & 0o777 == 0o600
    found = keep.conflicts(task.id).list(settled=True)
    assert [(each.path, each.kind, each.taken, each.agents, each.others) for each in found] == [
        ("file", "same-file", "merged", ("ann",), ("bob",)),
        ("same", "same-region", "", ("ann",), ("bob",)),
    ]
    sides = [keep.blobs.get(side.digest) for side in (found[1].base, found[1].ours, found[1].theirs) if side]
    assert sides == [SAME.encode(), b"ann\n", b"bob\n"]
    authors = {
        change.path: event.agents
        for event in (record.event for record in task.history())
        if isinstance(event, ev.PathsChanged)
        for change in event.changes
        if change.path not in ("bobs", "file", "same")
    }
    assert authors == dict.fromkeys(("gone", "mode", "d/new"), ("ann",))
    assert [record.type for record in task.history(types=["WorkspaceMerged"])] == ["WorkspaceMerged"]
    assert shell(task, "echo alive", timeout=60) == "alive\n"
    assert_nothing_is_left(keep)
    task.complete()


def test_what_the_host_changed_collides_though_the_merge_was_cut_off(keep: Keep, task: Task, held: Held) -> None:
    shell(held.task, "echo ann >same")
    (task.workspace / "same").write_text("host")
    killed_at("after:merging.write", "detach", keep, task.id, str(held.token))
    held.release()
    (found,) = keep.conflicts(task.id).list()
    assert (found.path, found.others, found.theirs is not None) == ("same", (), True)
    assert keep.own_workspaces(task.id).list() == []


def test_what_somebody_did_between_a_merge_cut_off_and_the_next_is_not_lost(keep: Keep, task: Task, held: Held) -> None:
    shell(held.task, "sed -i 's/line 2/ann/' file")
    keep.actor = "bob"
    shell(task, "sed -i 's/line 8/bob/' file")
    killed_at("after:merging.write", "detach", keep, task.id, str(held.token))
    keep.actor = "eve"
    shell(task, "sed -i 's/line 5/eve/' file", timeout=60)
    held.release()
    assert (task.workspace / "file").read_text() == lines(l2="ann", l8="bob")
    first, second = keep.conflicts(task.id).list(settled=True)
    assert (first.taken, first.others) == ("merged", ("bob",))
    assert (second.taken, second.others) == ("", ("bob", "eve"))
    assert second.theirs is not None
    assert keep.blobs.get(second.theirs.digest).decode() == lines(l2="ann", l5="eve")
    assert_nothing_is_left(keep)
