"""Deciders: pure functions from the state of a task, and a command, to the events that follow.

They run inside the log's write lock, against the registry at exactly the head, so what they check still holds when the
events are stored. Each raises a typed refusal, and then nothing is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from sandkeep.events import Event, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.projections import TaskState
from sandkeep.projections.registry import Task
from sandkeep.sandboxes.description import MAX_TAGS
from sandkeep.sandboxes.errors import TaskBusy, TaskNotFound, TaskRefused

LIVE = (TaskState.CREATED, TaskState.ACTIVE, TaskState.PAUSED)
"""The states of a task that has not ended."""

_MAX_PENDING = 64

_NEXT = {
    TaskState.CREATED: "its sandbox has not started; run a command in it to start one",
    TaskState.ACTIVE: "it is active; complete it first",
    TaskState.PAUSED: "it is paused; resume it first",
    TaskState.COMPLETED: "it is completed; reopen it, or create a new task",
    TaskState.FAILED: "it has failed; reopen it, or create a new task",
    TaskState.CLEANED: "it has been cleaned up; create a new task",
}


def create(task: Task | None, event: ev.TaskCreated, given: Sequence[Event] = ()) -> list[Event]:
    """A task begins, with what it is `given`: what its sandbox may reach, and which caches it sees."""
    if task is not None:
        raise TaskRefused(f"there is a task {task.id} already; try again, ids are random")
    return [event, *given]


def set_network(task: Task | None, events: Sequence[Event]) -> list[Event]:
    """What a task's sandbox may reach, or offers, is set, while it has one or may get one."""
    return [*_allowed(task, *LIVE), *events]


def begin(task: Task | None, intent: ev.Intent) -> list[Event]:
    """Something is about to be done for a live, unpaused task: start its sandbox, run a command."""
    return [*_allowed(task, TaskState.CREATED, TaskState.ACTIVE), intent]


def limit(task: Task | None, intent: ev.LimitsRequested) -> list[Event]:
    """What a task's sandbox may use is about to change."""
    return [*_allowed(task, *LIVE), intent]


def pause(task: Task | None, intent: ev.PauseRequested) -> list[Event]:
    """A task is about to be paused, while nothing goes on in it."""
    return [*_allowed(task, TaskState.CREATED, TaskState.ACTIVE, idle=True), intent]


def resume(task: Task | None, intent: ev.ResumeRequested) -> list[Event]:
    """A paused task is about to go on."""
    return [*_allowed(task, TaskState.PAUSED), intent]


def stop(task: Task | None, intent: ev.SandboxStopRequested) -> list[Event]:
    """The sandbox of a live task is about to be removed, while nothing goes on in it."""
    return [*_allowed(task, *LIVE, idle=True), intent]


def idle(task: Task | None, intent: ev.SandboxPauseRequested) -> list[Event]:
    """A sandbox that nothing goes on in is about to be frozen until the next command; nothing to do if it is."""
    task = _existing(task)
    if task.state is not TaskState.ACTIVE or task.container is None or task.idle or task.pending:
        return []
    return [intent]


def wake(task: Task | None, event: ev.SandboxResumed) -> list[Event]:
    """The sandbox that was frozen because it was idle goes on."""
    return [event] if task is not None and task.idle and task.container == event.container else []


def restore(task: Task | None, intent: ev.RestoreRequested) -> list[Event]:
    """The workspace is about to be set back, while nothing else goes on in the task."""
    return [
        *_allowed(task, *(state for state in TaskState if state is not TaskState.CLEANED), idle=True),
        intent,
    ]


def still(task: Task | None) -> None:
    """Refuse unless a task has a workspace and nothing goes on in it."""
    _allowed(task, *(state for state in TaskState if state is not TaskState.CLEANED), idle=True)


def going_on(task: Task | None) -> None:
    """Refuse unless a task is live and not paused."""
    _allowed(task, TaskState.CREATED, TaskState.ACTIVE)


def merge(task: Task | None, intent: ev.MergeRequested) -> list[Event]:
    """An own workspace is about to be merged into a live task, while nothing goes on in it."""
    return [*_allowed(task, *LIVE, idle=True), intent]


def drop(task: Task | None, event: Event) -> list[Event]:
    """An own workspace of a live task is not to be merged."""
    return [*_allowed(task, *LIVE), event]


def record_checkpoint(task: Task | None, event: ev.CheckpointCreated, pin: bool, tags: tuple[str, ...]) -> list[Event]:
    """A checkpoint is put on record, and with it what it is to be kept for."""
    events = record(task, event)
    events += [ev.CheckpointPinned(event.checkpoint)] if pin else []
    events += [ev.CheckpointTagged(event.checkpoint, tags, ())] if tags else []
    return events


def record(
    task: Task | None,
    event: ev.CheckpointCreated | ev.DecisionRecorded | ev.MemoryRepaired | ev.CommitsPublished,
) -> list[Event]:
    """Something of a task is put on record. Once it has been cleaned up it has no workspace, and nothing to decide."""
    return [*_allowed(task, *(state for state in TaskState if state is not TaskState.CLEANED)), event]


def tag(task: Task | None, event: ev.TaskTagged) -> list[Event]:
    """A task is given tags, and loses some; nothing to say of those it has, or lacks, already."""
    task = _existing(task)
    added = tuple(tag for tag in event.added if tag not in task.tags)
    removed = tuple(tag for tag in event.removed if tag in task.tags)
    if len(task.tags) + len(added) - len(removed) > MAX_TAGS:
        raise LimitReached(f"task {task.id} would have more than {MAX_TAGS} tags; take some from it first")
    return [ev.TaskTagged(added, removed)] if added or removed else []


def settle(task: Task | None, outcome: ev.Outcome) -> list[Event]:
    """What came of an intent. Refused when it has been settled already, as interrupted."""
    task = _existing(task)
    if all(pending.intent != outcome.intent for pending in task.pending):
        raise TaskRefused(
            f"{type(outcome).__name__} for task {task.id} comes too late: that was settled as interrupted"
        )
    return [outcome]


def complete(task: Task | None, summary: str) -> list[Event]:
    """The work is done."""
    return [*_allowed(task, *LIVE, idle=True), ev.TaskCompleted(summary)]


def fail(task: Task | None, reason: str) -> list[Event]:
    """The work is given up."""
    return [*_allowed(task, *LIVE, idle=True), ev.TaskFailed(reason)]


def reopen(task: Task | None, event: ev.TaskReopened) -> list[Event]:
    """An ended task goes on, unless its clean-up has begun."""
    return [*_allowed(task, TaskState.COMPLETED, TaskState.FAILED, idle=True), event]


def give_up(task: Task | None, reason: str) -> list[Event]:
    """A task fails before it could begin; nothing to do if it has not come to exist or has ended already."""
    return [ev.TaskFailed(reason)] if task is not None and task.state in LIVE else []


def clean_up(task: Task | None, intent: ev.CleanupRequested) -> list[Event]:
    """All that is left of an ended task is about to be removed."""
    return [*_allowed(task, TaskState.COMPLETED, TaskState.FAILED, idle=True), intent]


def lose(task: Task | None, event: ev.SandboxLost | ev.SandboxRemoved) -> list[Event]:
    """The container is gone; nothing to say when the log has another one by now, or none."""
    return [event] if task is not None and task.container == event.container else []


def _existing(task: Task | None) -> Task:
    if task is None:
        raise TaskNotFound("there is no such task; 'sandkeep list-tasks' shows those there are")
    return task


def _allowed(task: Task | None, *states: TaskState, idle: bool = False) -> tuple[()]:
    """Refuse unless the task is in one of `states` (and, if `idle`, nothing is under way in it)."""
    task = _existing(task)
    if task.state not in states:
        raise TaskRefused(f"task {task.id} does not allow that: {_NEXT[task.state]}")
    if idle and task.pending:
        kinds = ", ".join(pending.kind for pending in task.pending)
        raise TaskBusy(f"task {task.id} is busy ({kinds}); wait until that has ended, then try again")
    if len(task.pending) >= _MAX_PENDING:
        raise LimitReached(f"task {task.id} has {_MAX_PENDING} things under way, the most there may be; wait for one")
    return ()
