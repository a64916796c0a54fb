"""The task registry: which tasks there are, and the state of each.

    created -> active <-> paused -> completed | failed -> cleaned

`evolve` is the pure fold of one task; the registry keeps one `Task` for each, and an index by state in order of
creation.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import final

import msgspec

from sandkeep.events import Event, Record
from sandkeep.events import catalogue as ev
from sandkeep.projections.projection import State, StateView

STREAM = "task/"


class TaskState(enum.StrEnum):
    """Where a task is in its life."""

    CREATED = "created"
    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CLEANED = "cleaned"


class Pending(msgspec.Struct, frozen=True):
    """An intent without an outcome: under way, or left behind by a crash."""

    intent: str
    kind: str
    position: int
    time_ns: int


class Task(msgspec.Struct, frozen=True):
    """What is true of a task now. `container` is the one the log believes to run."""

    id: str
    title: str
    state: TaskState
    source: str | None
    image: str
    created_ns: int
    created_at: int
    updated_ns: int
    updated_at: int
    commit: str | None = None
    container: str | None = None
    reason: str | None = None
    executions: int = 0
    failures: int = 0
    checkpoints: int = 0
    pending: tuple[Pending, ...] = ()


def evolve(task: Task | None, record: Record, event: Event) -> Task | None:
    """The task after `event`; None while it has not been created.

    Total over every history: it is the deciders' part to keep impossible ones out of the log.
    """
    if isinstance(event, ev.TaskCreated) and task is None:
        task = Task(
            id=record.stream.removeprefix(STREAM),
            title=event.title,
            state=TaskState.CREATED,
            source=event.source,
            image=event.image,
            created_ns=record.time_ns,
            created_at=record.position,
            updated_ns=record.time_ns,
            updated_at=record.position,
        )
    if task is None:
        return None
    pending = task.pending
    if isinstance(event, ev.Intent):
        pending = (*pending, Pending(event.intent, record.type, record.position, record.time_ns))
    elif isinstance(event, ev.Outcome):
        pending = tuple(waiting for waiting in pending if waiting.intent != event.intent)
    task = msgspec.structs.replace(task, pending=pending, updated_ns=record.time_ns, updated_at=record.position)
    change = _change(task, event)
    return msgspec.structs.replace(task, **change) if change else task


def _change(task: Task, event: Event) -> dict[str, object]:
    """The fields of `task` that `event` sets."""
    match event:
        case ev.WorkspacePrepared(commit=commit):
            return {"commit": commit}
        case ev.SandboxStarted(container=container):
            return {"container": container, "state": TaskState.ACTIVE}
        case ev.SandboxLost() | ev.SandboxRemoved():
            return {"container": None}
        case ev.TaskPaused():
            return {"state": TaskState.PAUSED}
        case ev.TaskResumed():
            return {"state": TaskState.ACTIVE}
        case ev.TaskCompleted():
            return {"state": TaskState.COMPLETED}
        case ev.TaskFailed(reason=reason):
            return {"state": TaskState.FAILED, "reason": reason}
        case ev.TaskCleaned():
            return {"state": TaskState.CLEANED, "container": None}
        case ev.CommandExecuted(exit_code=exit_code):
            return {"executions": task.executions + 1, "failures": task.failures + (exit_code != 0)}
        case ev.CommandFailed():
            return {"executions": task.executions + 1, "failures": task.failures + 1}
        case ev.CheckpointCreated():
            return {"checkpoints": task.checkpoints + 1}
    return {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Task).decode


@final
class Registry:
    """The projection of all tasks.

    Keys: `registry/task/<id>` holds the task, `registry/state/<state>/<position of creation>` its id, and
    `registry/pending/<id>` is there while something is under way in it.
    """

    name = "registry"
    version = 1

    def apply(self, state: State, record: Record) -> None:
        if not record.stream.startswith(STREAM):
            return
        before = find(state, record.stream.removeprefix(STREAM))
        after = evolve(before, record, record.event)
        if after is None:
            return
        state.put(_task_key(after.id), _encode(after))
        if before is None or before.state != after.state:
            if before is not None:
                state.delete(_state_key(before))
            state.put(_state_key(after), after.id.encode())
        if after.pending:
            state.put(_pending_key(after.id), b"")
        elif before is not None and before.pending:
            state.delete(_pending_key(after.id))


def find(state: StateView, task_id: str) -> Task | None:
    """The task with this id, if there is one."""
    value = state.get(_task_key(task_id))
    return None if value is None else _decode(value)


def matching(state: StateView, prefix: str) -> list[str]:
    """The ids of the tasks whose id begins with `prefix`, in order."""
    return [key.rsplit(b"/", 1)[1].decode() for key, _ in state.scan(_task_key(prefix))]


def tasks(state: StateView, *states: TaskState) -> Iterator[Task]:
    """The tasks in any of `states` (all, when none is named), each state's in order of creation."""
    for wanted in states or tuple(TaskState):
        for _, task_id in state.scan(f"registry/state/{wanted}/".encode()):
            task = find(state, task_id.decode())
            if task is not None:
                yield task


def busy(state: StateView) -> Iterator[Task]:
    """The tasks that something is under way in, or was when a process died."""
    for key, _ in state.scan(_pending_key("")):
        task = find(state, key.rsplit(b"/", 1)[1].decode())
        if task is not None:
            yield task


def _pending_key(task_id: str) -> bytes:
    return f"registry/pending/{task_id}".encode()


def _task_key(task_id: str) -> bytes:
    return f"registry/task/{task_id}".encode()


def _state_key(task: Task) -> bytes:
    return f"registry/state/{task.state}/".encode() + task.created_at.to_bytes(8, "big")
