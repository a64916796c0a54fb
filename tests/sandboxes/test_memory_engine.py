"""The memory folder as a sandbox sees it."""

from __future__ import annotations

import json
import os

import pytest

from sandkeep.sandboxes import Keep, Task

from .folders import PAGES, contents, folder_of, from_nothing
from .support import shell, text, types

pytestmark = pytest.mark.engine


def test_a_command_reads_what_was_done_before_it(keep: Keep, task: Task) -> None:
    assert set(shell(task, "ls -A /memory").split()) == PAGES
    task.record_decision("Use *LMDB*", reason="readers never wait")
    assert "## 1. Use \\*LMDB\\*\n" in text(task.execute(["cat", "/memory/decisions.md"]))
    state = json.loads(text(task.execute(["cat", "/memory/state.json"])))
    assert (state["title"], state["state"], state["stats"]["executions"]) == ("a test", "active", 2)
    lines = text(task.execute(["cat", "/memory/log.jsonl"])).splitlines()
    assert [json.loads(line)["type"] for line in lines] == types(task.history())[:-2]
    task.checkpoint("seen")
    assert "- [x] a checkpoint is taken\n" in text(task.execute(["cat", "/memory/plan.md"]))
    keep.trailing.wait(task.id)
    assert contents(folder_of(task)) == from_nothing(keep, task)


@pytest.mark.parametrize("attack", ["echo x >/memory/state.json", "rm /memory/log.jsonl", "ln -s / /memory/link"])
def test_a_command_can_change_nothing_of_it(shared_task: Task, attack: str) -> None:
    result = shared_task.execute(["sh", "-c", attack])
    assert result.exit_code != 0
    assert result.stderr.data is not None
    assert b"Read-only file system" in result.stderr.data
    assert shared_task.rebuild_memory().damage == ()


def test_every_step_of_a_task_brings_it_up_to_date(keep: Keep, task: Task) -> None:
    def position() -> int:
        found = json.loads((folder_of(task) / "state.json").read_bytes())["position"]
        assert isinstance(found, int)
        return found

    keep.trailing.wait(task.id)
    assert position() == keep.head().position
    taken = task.checkpoint()
    for step in (
        lambda: task.execute(["false"]),
        lambda: task.restore_checkpoint(taken.id),
        task.pause,
        task.resume,
        task.complete,
    ):
        step()
        keep.trailing.wait(task.id)
        assert position() == keep.head().position
    task.clean_up()
    assert not os.path.lexists(task.folder)
    assert types(task.history())[-1] == "TaskCleaned"
