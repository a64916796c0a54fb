"""Checkpoints of tasks: the sandbox stands still meanwhile, everything can be undone, and what cannot is said."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from sandkeep.events import BadInput, BlobMissing
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, restore
from sandkeep.sandboxes.errors import (
    BadId,
    CheckpointNotFound,
    RestoreIncomplete,
)
from sandkeep.sandboxes.snapshot_walk import Names

from ..packed import lose
from .support import eventually, listing, shell, status, types

pytestmark = pytest.mark.engine


def test_a_destroyed_workspace_comes_back(keep: Keep, source: Path) -> None:
    task = keep.create_task("t", source=source)
    shell(task, "mkfifo pipe; ln -s /etc/passwd link; mkdir -p a/b; chmod 500 a; printf '\\377' >\"$(printf '\\376')\"")
    before = listing(task.workspace)
    checkpoint = task.checkpoint("before the fall")
    shell(task, "chmod 700 a; rm -rf /workspace/* /workspace/.git /workspace/.[!.]*; echo gone >new")
    restored = task.restore_checkpoint(checkpoint.id[:4])
    assert listing(task.workspace) == before
    assert (restored.checkpoint, restored.digest) == (checkpoint.id, checkpoint.digest)
    assert shell(task, "git status --porcelain -uno") == ""
    task.restore_checkpoint(restored.undo)
    assert shell(task, "ls -A") == "new\n"
    assert task.checkpoints()[0].label == "before the fall"
    assert types(task.history()).count("CheckpointRestored") == 2


def test_the_sandbox_stands_still_while_it_is_restored(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = task.checkpoint()
    shell(task, "touch new")
    seen: list[str] = []
    apply = restore.apply

    def looking(*arguments: Any, **options: Any) -> Names:
        seen.append(status(task))
        return apply(*arguments, **options)

    monkeypatch.setattr(restore, "apply", looking)
    task.restore_checkpoint(checkpoint.id)
    assert (seen, status(task)) == (["paused"], "running")


def test_a_command_waits_until_a_restore_is_done(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = task.checkpoint()
    shell(task, "touch new")
    apply = restore.apply
    with ThreadPoolExecutor(1) as pool:
        running: list[Future[str]] = []

        def meanwhile(*arguments: Any, **options: Any) -> Names:
            running.append(pool.submit(shell, task, "ls -A"))
            assert wait(running, timeout=0.5).done == set()
            assert types(task.history())[-1] == "RestoreRequested"
            assert status(task) == "paused"
            return apply(*arguments, **options)

        monkeypatch.setattr(restore, "apply", meanwhile)
        task.restore_checkpoint(checkpoint.id)
        assert running[0].result() == ""
    assert types(task.history())[-3:] == ["CheckpointRestored", "CommandRequested", "CommandExecuted"]


def test_what_is_written_until_the_restore_begins_can_be_had_back(task: Task) -> None:
    checkpoint = task.checkpoint()
    shell(task, "python3 -c \"\nf = open('log', 'a')\nwhile True: print('x', file=f, flush=True)\" &")
    eventually((task.workspace / "log").exists)
    restored = task.restore_checkpoint(checkpoint.id)
    assert not (task.workspace / "log").exists()
    assert [each.torn for each in task.checkpoints() if each.id == restored.undo] == [()]
    task.restore_checkpoint(restored.undo)
    assert (task.workspace / "log").read_text().startswith("x\n")


def test_a_restore_that_cannot_be_completed_says_how_to_go_back(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell(task, "echo one >file")
    checkpoint = task.checkpoint()
    shell(task, "echo two >file")

    def failing(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(restore, "apply", failing)
        with pytest.raises(RestoreIncomplete, match="No space left") as refused:
            task.restore_checkpoint(checkpoint.id)
    assert status(task) == "running"
    assert types(task.history())[-1] == "RestoreFailed"
    undo = task.checkpoints()[-1].id
    assert f"or {undo} to have" in str(refused.value)
    task.restore_checkpoint(undo)
    assert shell(task, "cat file") == "two\n"


def test_a_checkpoint_whose_blobs_are_gone_is_refused_before_anything_is_touched(keep: Keep, task: Task) -> None:
    shell(task, "echo one >file")
    checkpoint = task.checkpoint()
    shell(task, "rm file")
    lose(keep.path / "blobs", checkpoint.digest)
    before = types(task.history())
    with pytest.raises(BlobMissing):
        task.restore_checkpoint(checkpoint.id)
    assert types(task.history()) == before


def test_checkpoints_are_named_by_ids_and_have_plain_labels(shared_task: Task) -> None:
    for bad in ("", "x", "../..", "0" * 13):
        with pytest.raises(BadId):
            shared_task.restore_checkpoint(bad)
    with pytest.raises(CheckpointNotFound, match="no checkpoints of task"):
        shared_task.restore_checkpoint("0" * 12)
    for label in ("x" * 201, "a\nb", "\x1b"):
        with pytest.raises(BadInput, match="a label has"):
            shared_task.checkpoint(label)
    assert shared_task.checkpoints() == []


# Writes a number to one file, then to one that is found last, for ever; each is whole at any time.
PAIRS = """
import os
number = 0
while True:
    number += 1
    for name in ("a", "z/b"):
        with open("new", "w") as file:
            file.write(str(number))
        os.rename("new", name)
"""
HOG = "import shutil; shutil.rmtree('/workspace/folder'); open('/workspace/a', 'w'); x = b'x' * (1 << 30)"


def test_a_moment_of_a_running_task_comes_back_after_a_command_ran_out_of_memory(keep: Keep) -> None:
    task = keep.create_task("t", limits={"memory": "64MiB"})
    shell(task, "mkdir -p folder z; seq 10000 >folder/numbers; cd folder; seq 3000 | xargs touch")
    writing = task.start(["python3", "-c", PAIRS])
    eventually((task.workspace / "z" / "b").exists)
    moments = [task.checkpoint() for _ in range(5)]
    writing.stop()
    assert [each.torn for each in moments] == [()] * 5
    events = [record.event for record in task.history() if isinstance(record.event, ev.CheckpointCreated)]
    assert [(event.commands, event.frozen_ns > 0) for event in events] == [(1, True)] * 5
    assert task.execute(["python3", "-c", HOG]).oom_killed
    for moment in moments:
        restored = task.restore_checkpoint(moment.id)
        assert restored.digest == moment.digest
        one, other = (int(shell(task, f"cat {name}")) for name in ("a", "z/b"))
        assert one - other in (0, 1)
        assert shell(task, "tail -1 folder/numbers") == "10000\n"
