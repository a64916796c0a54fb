"""What the tests of memory folders share: tasks that stand in the log and have a folder, without a sandbox."""

from __future__ import annotations

import shutil
from pathlib import Path

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, memory

PAGES = {"state.json", "log.jsonl", "decisions.md", "plan.md"}


def add(keep: Keep, task: str, *events: Event) -> None:
    """Store events of a task, past all deciders, and leave its folder as it is."""
    for event in events:
        keep.log.append(f"task/{task}", [event], actor="tester")


def described(keep: Keep, task: str = "0123456789ab", title: str = "a title") -> Task:
    """A task that only stands in the log and has a memory folder, which is empty."""
    add(keep, task, ev.TaskCreated("i1", title, None, "image"), ev.WorkspacePrepared("i1", None))
    (keep.path / "tasks" / task / "memory").mkdir(parents=True)
    return keep.task(task)


def folder_of(task: Task) -> Path:
    return task.folder / "memory"


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def from_nothing(keep: Keep, task: Task) -> dict[str, bytes]:
    """What the folder holds when it is made from the log alone; it is then as it was."""
    aside = task.folder.with_name(f"{task.id}-aside")
    task.folder.rename(aside)
    folder_of(task).mkdir(parents=True)
    done = memory.refresh(keep, task.id)
    assert done is not None
    assert done.damage == ()
    made = contents(folder_of(task))
    shutil.rmtree(task.folder)
    aside.rename(task.folder)
    return made
