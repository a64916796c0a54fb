"""Deciders of checkpoints: what may be made of them, be pinned, tagged and unpinned, and what may expire.

Pure functions that run inside the log's write lock, as those in `decider` do: a checkpoint that is pinned at the moment
at which it would expire stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sandkeep.events import Event, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.projections import Checkpoint, StateView, TaskState, checkpoints, forks, registry
from sandkeep.sandboxes import decider
from sandkeep.sandboxes.description import MAX_TAGS
from sandkeep.sandboxes.errors import CheckpointGone, CheckpointNeeded, CheckpointNotFound

_SETTING_BACK = ("RestoreRequested", "MergeRequested")


def create(state: StateView, task_id: str, event: ev.TaskCreated, given: Sequence[Event]) -> list[Event]:
    """A task begins; if it is forked, from a checkpoint that is there."""
    for each in given:
        if isinstance(each, ev.TaskForked):
            live(state, each.task, each.checkpoint)
    return decider.create(registry.find(state, task_id), event, given)


def restore(state: StateView, task_id: str, intent: ev.RestoreRequested) -> list[Event]:
    """A task is about to be set back to a checkpoint that is there; from now on all of its checkpoints are."""
    live(state, task_id, intent.checkpoint)
    return decider.restore(registry.find(state, task_id), intent)


def pin(state: StateView, task: str, checkpoint: str) -> list[Event]:
    """A checkpoint is to be kept; nothing to say if it is."""
    return [] if live(state, task, checkpoint).pinned else [ev.CheckpointPinned(checkpoint)]


def unpin(state: StateView, task: str, checkpoint: str) -> list[Event]:
    """A checkpoint is pinned no more; nothing to say if it was not."""
    return [ev.CheckpointUnpinned(checkpoint)] if live(state, task, checkpoint).pinned else []


def tag(state: StateView, task: str, checkpoint: str, asked: ev.TaskTagged) -> list[Event]:
    """A checkpoint is given tags, and loses some; nothing to say of those it has, or lacks, already."""
    found = live(state, task, checkpoint)
    added = tuple(tag for tag in asked.added if tag not in found.tags)
    removed = tuple(tag for tag in asked.removed if tag in found.tags)
    if len(found.tags) + len(added) - len(removed) > MAX_TAGS:
        raise LimitReached(f"checkpoint {checkpoint} would have more than {MAX_TAGS} tags; take some from it first")
    return [ev.CheckpointTagged(checkpoint, added, removed)] if added or removed else []


def needed(state: StateView, task: str) -> dict[str, str]:
    """The ids of the task's checkpoints that have to stay for the sake of something else, and what that is."""
    found = dict.fromkeys(checkpoints.used(state, task), "a task that was forked from it lives")
    found |= {fork.checkpoint: f"the own workspace {fork.task} was made from it" for fork in forks.begun(state, task)}
    known = registry.find(state, task)
    if known is not None and known.system and known.state is not TaskState.CLEANED:
        every = checkpoints.checkpoints(state, task)
        found |= {each.id: "the task's sandbox starts from it" for each in every if each.image == known.system}
    if known is not None and any(each.kind in _SETTING_BACK for each in known.pending):
        found |= {each.id: "its workspace is being set back" for each in checkpoints.checkpoints(state, task)}
    return found


def expire(state: StateView, task: str, wanted: Iterable[ev.CheckpointExpired]) -> list[Event]:
    """Those of the checkpoints that may expire do."""
    return [event for event in wanted if why_not(state, task, event.checkpoint) is None]


def expire_one(state: StateView, task: str, event: ev.CheckpointExpired) -> list[Event]:
    """A checkpoint expires because somebody asks for it. Raises `CheckpointNeeded`."""
    live(state, task, event.checkpoint)
    why = why_not(state, task, event.checkpoint)
    if why is not None:
        raise CheckpointNeeded(f"checkpoint {event.checkpoint} of task {task} may not expire: {why}")
    return [event]


def why_not(state: StateView, task: str, checkpoint: str) -> str | None:
    """What keeps a checkpoint from expiring, if anything does."""
    found = checkpoints.find(state, task, checkpoint)
    if found is None or found.expired_ns:
        return "it has expired"
    if found.pinned:
        return f"it is pinned; 'sandkeep unpin-checkpoint {task} {checkpoint}' changes that"
    if found.tags:
        return f"it has tags; 'sandkeep tag-checkpoint {task} {checkpoint}' takes them from it"
    if checkpoints.newest(state, task) == found:
        return "it is the newest of its task; take another first"
    why = needed(state, task).get(checkpoint)
    return None if why is None else f"{why}; that has to end first"


def live(state: StateView, task: str, checkpoint: str) -> Checkpoint:
    """The checkpoint, if it has not expired. Raises `CheckpointNotFound` and `CheckpointGone`."""
    found = checkpoints.find(state, task, checkpoint)
    if found is None:
        raise CheckpointNotFound(f"task {task} has no checkpoint {checkpoint}; 'sandkeep list-checkpoints {task}'")
    if found.expired_ns:
        raise CheckpointGone(f"checkpoint {checkpoint} of task {task} has expired ({found.expired}); choose another")
    return found
