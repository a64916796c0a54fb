"""The events of what becomes of checkpoints: kept on purpose, expired, or made another task of."""

from __future__ import annotations

from sandkeep.events.schema import Event, event


@event(version=1)
class CheckpointPinned(Event, frozen=True):
    """The checkpoint is to be kept until it is unpinned."""

    checkpoint: str


@event(version=1)
class CheckpointUnpinned(Event, frozen=True):
    """The checkpoint is pinned no more."""

    checkpoint: str


@event(version=1)
class CheckpointTagged(Event, frozen=True):
    """The checkpoint was given the tags `added`, and those in `removed` were taken from it. As long as it has any it is
    kept."""

    checkpoint: str
    added: tuple[str, ...]
    removed: tuple[str, ...]


@event(version=1)
class CheckpointExpired(Event, frozen=True):
    """The checkpoint cannot be restored any more: what only it holds may be removed, for a `reason`."""

    checkpoint: str
    reason: str


@event(version=1)
class TaskForked(Event, frozen=True):
    """This task began as the task with the id `task` was at its `checkpoint`, taken at `position` of the log; `decided`
    is what had been decided there last. Its sandbox starts from `image`, if there is one."""

    task: str
    checkpoint: str
    position: int
    decided: tuple[str, ...] = ()
    image: str = ""


@event(version=1)
class RootGranted(Event, frozen=True):
    """Commands of the task may write outside its workspace, into the container, as far as its image lets them."""
