"""The events of the workspaces that agents have of their own, and of how these are merged into their task's."""

from __future__ import annotations

from sandkeep.events.catalogue.common import Failure, Intent, Outcome
from sandkeep.events.schema import Event, event


@event(version=1)
class WorkspaceForked(Event, frozen=True):
    """The task with the id `task` is to be made from `checkpoint`: the own workspace of `agent`, who holds this task's
    lock by `token`."""

    task: str
    agent: str
    token: int
    checkpoint: str


@event(version=1)
class MergeRequested(Intent, frozen=True):
    """What was changed in the own workspace `task`, up to its `checkpoint`, is about to be written into this task's
    workspace; `undo` is the checkpoint of what that was before."""

    task: str
    checkpoint: str
    undo: str


@event(version=1)
class WorkspaceMerged(Outcome, frozen=True):
    """All that was changed in the own workspace `task` is in this task's workspace, or on record as a conflict."""

    task: str
    checkpoint: str


@event(version=1)
class MergeFailed(Failure, frozen=True):
    """The own workspace was not, or only in part, merged."""


@event(version=1)
class WorkspaceDiscarded(Event, frozen=True):
    """The own workspace `task` is not to be merged; `checkpoint` is the last of it."""

    task: str
    checkpoint: str
