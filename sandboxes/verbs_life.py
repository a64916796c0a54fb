"""What the verbs for the life of a task do, from a fork to its end: calls of the library, and documents of what it
gave. They hold no logic.

They are apart from the questions about tasks, which are answered without what these load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from sandkeep.projections import TaskState
from sandkeep.sandboxes import briefing, documents, documents_agents
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.task import Task

if TYPE_CHECKING:
    from sandkeep.sandboxes.fork_task import Asked


def fork_task(
    door: Door,
    *,
    task: str,
    checkpoint: str,
    title: str | None = None,
    owner: str | None = None,
    tag: Sequence[str] = (),
    image: str | None = None,
    network: str | None = None,
    allow: Sequence[str] = (),
    private: Sequence[str] = (),
    services: Sequence[str] = (),
) -> documents.MadeTask:
    """Create a task that begins as another was at a checkpoint; see `Keep.fork_task`."""
    named = {"title": title, "owner": owner, "tags": tag or None, "image": image, "network": network}
    more = {"allow": allow or None, "private": private or None, "services": services or None}
    asked = cast("Asked", {name: value for name, value in (named | more).items() if value is not None})
    asked["progress"] = door.progress
    made = door.keep.fork_task(task, checkpoint, **asked)
    return documents.made_task(made.state, str(made.workspace))


def pause_task(door: Door, *, task: str, token: int | None = None) -> documents.Task:
    """Freeze a task's sandbox; see `Task.pause`."""
    return _after(door, task, token, Task.pause)


def resume_task(door: Door, *, task: str, token: int | None = None) -> documents_agents.Resumed:
    """Let a task go on if it is paused; see `Task.resume`. What whoever goes on must know; see `briefing`."""
    found = door.keep.task(task, token)
    if found.state.state not in (TaskState.CREATED, TaskState.ACTIVE):
        found.resume()  # refused if it has ended
    return documents_agents.resumed(found.state, briefing.briefing(door.keep, found))


def stop_task(door: Door, *, task: str, token: int | None = None) -> documents.Task:
    """Remove a task's sandbox; see `Task.stop`."""
    return _after(door, task, token, Task.stop)


def reopen_task(door: Door, *, task: str, reason: str = "", token: int | None = None) -> documents.Task:
    """Let an ended task go on; see `Task.reopen`."""
    return _after(door, task, token, lambda found: found.reopen(reason))


def complete_task(
    door: Door, *, task: str, summary: str = "", failed: bool = False, token: int | None = None
) -> documents.Task:
    """End a task; see `Task.complete` and `Task.fail`."""
    return _after(door, task, token, lambda found: found.fail(summary) if failed else found.complete(summary))


def cleanup_task(door: Door, *, task: str, token: int | None = None) -> documents.Task:
    """Remove what an ended task has; see `Task.clean_up`."""
    return _after(door, task, token, Task.clean_up)


def _after(door: Door, task: str, token: int | None, act: Callable[[Task], None]) -> documents.Task:
    found = door.keep.task(task, token)
    act(found)
    return documents.task(found.state)
