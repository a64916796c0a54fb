"""What a task leaves in the keep's `run/` beside its sandbox: the lock of who works on it, what was measured of it, the
bells of those who waited for it. It goes with the task; what a crash leaves, or who looks for a task that is no more,
is found by the steward.

A lock file may only be removed by who holds it, and as the last thing that is done under it; see `intent.exclusive`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sandkeep.projections import TaskState, registry
from sandkeep.sandboxes import intent, slot, workspace

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_FOLDERS = ("tasks", "disk", "extensions", "locks")
_NAME = re.compile(r"\.?([0-9a-f]{12})(?:-[0-9]+)?")
"""A task's id; with a number behind it, a lock of one of its own workspaces, or, behind a dot, half of a file."""


def remove(keep: Keep, task_id: str) -> None:
    """Remove all that is left of a task that is cleaned up, or never came to be. The caller is `working` on it, and
    does nothing more there."""
    run = keep.path / "run"
    workspace.remove(run / "locks" / task_id)
    for path in (run / "disk" / task_id, *(run / "disk").glob(f".{task_id}-*")):
        path.unlink(missing_ok=True)
    for path in (run / "extensions" / task_id, *(run / "tasks").glob(f"{task_id}-*")):
        if path.exists():
            _drop(path)
    (run / "tasks" / task_id).unlink(missing_ok=True)


def sweep(keep: Keep) -> list[str]:
    """Remove what is left of tasks that are no more, unless somebody works on one; tells how many they were."""
    run, found = keep.path / "run", set()
    for folder in _FOLDERS:
        if (run / folder).is_dir():
            found |= {name[1] for path in (run / folder).iterdir() if (name := _NAME.fullmatch(path.name))}
    swept = 0
    for task_id in sorted(found):
        if not _is_over(keep, task_id):
            continue
        with keep.attempting(task_id) as mine:
            # Only who works on a task makes it, or a slot of that name.
            if mine and _is_over(keep, task_id):
                remove(keep, task_id)
                swept += 1
    return [f"removed what was left of {swept} tasks"] if swept else []


def _is_over(keep: Keep, task_id: str) -> bool:
    with keep.projections.reading() as state:
        task = registry.find(state, task_id)
    return slot.find(keep, task_id) is None and (task is None or task.state is TaskState.CLEANED)


def _drop(path: Path) -> None:
    """Remove a lock file, unless somebody holds it."""
    with intent.attempted(path) as mine:
        if mine:
            path.unlink(missing_ok=True)
