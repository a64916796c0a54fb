"""Memory folders that are written beside the work: nobody who must see them misses anything, and nobody else waits."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from sandkeep.sandboxes import Keep, Task, memory
from sandkeep.sandboxes.trailing import Trailing

from .folders import add, described, folder_of
from .test_memory import DECISION

PATIENCE = 60


def written(task: Task) -> int:
    """How far a folder has come."""
    found = json.loads((folder_of(task) / "state.json").read_bytes())["position"]
    assert isinstance(found, int)
    return found


def test_who_waits_sees_all_that_was_asked_for_before(keep: Keep) -> None:
    task, other = described(keep), described(keep, "ba9876543210")
    for _ in range(20):
        add(keep, task.id, DECISION)
        keep.trailing.soon(task.id)
        keep.trailing.soon(other.id)
        keep.trailing.wait(task.id)
        assert written(task) == keep.head().position
    keep.trailing.wait("no such task")


def test_closing_a_keep_leaves_nothing_behind(tmp_path: Path) -> None:
    with Keep.init(tmp_path / "keep", actor="tester") as keep:
        tasks = [described(keep, f"{number:012x}") for number in range(10)]
        last = {}
        for task in tasks:
            add(keep, task.id, DECISION)
            last[task.id] = keep.head().position
            keep.trailing.soon(task.id)
    assert {task.id: written(task) for task in tasks} == last
    keep.close()


def test_nobody_waits_who_only_asks_and_what_comes_meanwhile_is_one(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, done = threading.Event(), threading.Event(), list[str]()

    def slow(where: Keep, task: str) -> None:
        begun.set()
        assert go.wait(PATIENCE)
        done.append(task)

    monkeypatch.setattr(memory, "trail", slow)
    trailing = Trailing(keep)
    trailing.soon("a")
    assert begun.wait(PATIENCE)
    for _ in range(5):  # the one that is written may have read the log already
        trailing.soon("a")
        trailing.soon("b")
    assert done == []
    go.set()
    trailing.wait("a")
    assert done[:2] == ["a", "a"]
    trailing.close()
    assert done == ["a", "a", "b"]
    trailing.close()
