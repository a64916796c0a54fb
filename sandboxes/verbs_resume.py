"""What the verb does by which an agent goes on with a task that others began. It holds no logic."""

from __future__ import annotations

from sandkeep.projections import TaskState
from sandkeep.sandboxes import briefing
from sandkeep.sandboxes.documents_agents import Briefing
from sandkeep.sandboxes.door import Door


def resume_task(door: Door, *, task: str, token: int | None = None) -> Briefing:
    """Let a task go on if it is paused, and say what whoever goes on must know; see `briefing`."""
    found = door.keep.task(task, token)
    if found.state.state is TaskState.PAUSED:
        found.resume()
    return briefing.briefing(door.keep, found)
