"""The task registry: which tasks there are, and the state of each.

    created -> active <-> paused -> completed | failed -> cleaned

`evolve` is the pure fold of one task; the registry keeps one `Task` for each, and indexes to find it by (see `index`).
Listing by them is in `listing`, finding by words in `search`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

import msgspec

from sandkeep.events import Event, Record
from sandkeep.events import catalogue as ev
from sandkeep.projections import bitmap, index
from sandkeep.projections.index import number, number_at
from sandkeep.projections.projection import BatchProjection, Deferred, State, StateView

STREAM = "task/"


class TaskState(enum.StrEnum):
    """Where a task is in its life."""

    CREATED = "created"
    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CLEANED = "cleaned"


class Pending(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An intent without an outcome: under way, or left behind by a crash."""

    intent: str
    kind: str
    position: int
    time_ns: int


class Task(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is true of a task now. `container` is the one the log believes to run, or to be frozen for being `idle`;
    `used_ns` is when a sandbox of the task last began, ended or resumed something, 0 if it never had one.

    Of what was done in it, `events` counts all records; `bytes` is what its commands wrote to their streams, and
    `cpu_ns` the processor time that they are known to have used. Its sandbox's root may be `writable`; `system` is the
    id of the image that it starts from instead of `image`, if it went back to a checkpoint that has one.
    """

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
    owner: str = ""
    tags: tuple[str, ...] = ()
    parent: str | None = None
    events: int = 0
    cpu_ns: int = 0
    bytes: int = 0
    idle: bool = False
    used_ns: int = 0
    writable: bool = False
    system: str = ""


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
            owner=event.owner or record.actor,
            tags=tuple(sorted(set(event.tags))),
            parent=event.parent,
        )
    if task is None:
        return None
    pending = task.pending
    if isinstance(event, ev.Intent):
        pending = (*pending, Pending(event.intent, record.type, record.position, record.time_ns))
    elif isinstance(event, ev.Outcome):
        pending = tuple(waiting for waiting in pending if waiting.intent != event.intent)
    change = _CHANGES.get(type(event))
    return msgspec.structs.replace(
        task,
        pending=pending,
        updated_ns=record.time_ns,
        updated_at=record.position,
        events=task.events + 1,
        used_ns=record.time_ns if _is_use(task, event) else task.used_ns,
        **(change(task, event) if change is not None else {}),
    )


def _executed(task: Task, event: ev.CommandExecuted) -> dict[str, Any]:
    return {
        "executions": task.executions + 1,
        "failures": task.failures + (event.exit_code != 0),
        "cpu_ns": _counted(task.cpu_ns + event.cpu_ns),
        "bytes": _counted(task.bytes + event.stdout.size + event.stderr.size),
    }


def _went_back(task: Task, event: ev.CheckpointRestored) -> dict[str, Any]:
    return {"tags": tuple(sorted(set(event.tags))), "system": event.image} if event.position else {}


_NO_SANDBOX: dict[str, Any] = {"container": None, "idle": False}

_CHANGES: dict[type[Event], Callable[[Task, Any], dict[str, Any]]] = {
    ev.CommandExecuted: _executed,
    ev.CommandFailed: lambda task, event: {"executions": task.executions + 1, "failures": task.failures + 1},
    ev.CheckpointRestored: _went_back,
    ev.TaskForked: lambda task, event: {"system": event.image},
    ev.RootGranted: lambda task, event: {"writable": True},
    ev.CheckpointCreated: lambda task, event: {"checkpoints": task.checkpoints + 1},
    ev.WorkspacePrepared: lambda task, event: {"commit": event.commit},
    ev.SandboxStarted: lambda task, event: {"container": event.container, "state": TaskState.ACTIVE, "idle": False},
    ev.SandboxPaused: lambda task, event: {"idle": True},
    ev.SandboxResumed: lambda task, event: {"idle": False},
    ev.SandboxStopped: lambda task, event: _NO_SANDBOX,
    ev.SandboxLost: lambda task, event: _NO_SANDBOX,
    ev.SandboxRemoved: lambda task, event: _NO_SANDBOX,
    ev.TaskTagged: lambda task, event: {"tags": tuple(sorted({*task.tags, *event.added} - {*event.removed}))},
    ev.TaskPaused: lambda task, event: {"state": TaskState.PAUSED},
    ev.TaskResumed: lambda task, event: {"state": TaskState.ACTIVE, "idle": False},
    ev.TaskReopened: lambda task, event: {"state": TaskState.ACTIVE, "reason": None},
    ev.TaskCompleted: lambda task, event: {"state": TaskState.COMPLETED},
    ev.TaskFailed: lambda task, event: {"state": TaskState.FAILED, "reason": event.reason},
    ev.TaskCleaned: lambda task, event: {"state": TaskState.CLEANED, **_NO_SANDBOX},
}
"""The fields that an event sets, by its type: looked up, because most events set none and a rebuild meets millions."""

_USES = frozenset((ev.SandboxResumed, ev.CommandRequested, ev.CommandExecuted, ev.CommandFailed, ev.TaskResumed))


def _is_use(task: Task, event: Event) -> bool:
    """Whether a sandbox was begun to be used; one that never started was not, whatever else was asked."""
    kind = type(event)
    return kind is ev.SandboxStarted or (kind in _USES and task.used_ns != 0)


def _counted(total: int) -> int:
    """A sum that msgpack can hold, whatever the events claim."""
    return min(total, 2**63 - 1)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Task).decode


@final
class Registry(BatchProjection):
    """The projection of all tasks. Its keys are those of `index`."""

    name = "registry"
    version = 4

    def apply(self, state: State, record: Record) -> None:
        self.apply_all(state, (record,))

    def apply_all(self, state: State, records: Sequence[Record]) -> None:
        """As `apply` for each of `records`; each task that they touch is read and written once."""
        before: dict[str, tuple[int, Task] | None] = {}
        after: dict[str, Task] = {}
        for record in records:
            if not record.stream.startswith(STREAM):
                continue
            task_id = record.stream[len(STREAM) :]
            if task_id not in before:
                before[task_id] = found = _find(state, task_id)
                task = None if found is None else found[1]
            else:
                task = after.get(task_id)
            changed = evolve(task, record, record.event)
            if changed is not None:
                after[task_id] = changed
        if not after:
            return
        size = created = number_at(state.get(index.SIZE))
        deferred: dict[str, Deferred] | None = getattr(state, "deferred", None)
        indexes = None if deferred is None else deferred.get(self.name)
        if not isinstance(indexes, index.Indexes):
            indexes = index.Indexes(state)
        for task_id, changed in after.items():  # in the order of creation, for those that were created
            found = before[task_id]
            if found is None:
                ordinal, old = created, None
                created += 1
            else:
                ordinal, old = found
            state.put(index.TASK + number(ordinal), _encode(changed))
            indexes.change(ordinal, old, changed)
        if deferred is None:
            indexes.store()
        else:
            deferred[self.name] = indexes
        if created != size:
            state.put(index.SIZE, number(created))


def find(state: StateView, task_id: str) -> Task | None:
    """The task with this id, if there is one."""
    found = _find(state, task_id)
    return None if found is None else found[1]


def _find(state: StateView, task_id: str) -> tuple[int, Task] | None:
    place = state.get(index.ID + task_id.encode())
    return None if place is None else (number_at(place), _decode(state.get(index.TASK + place) or b""))


def size(state: StateView) -> int:
    """How many tasks were ever created."""
    return number_at(state.get(index.SIZE))


def created(state: StateView, ordinal: int) -> Task:
    """The task that was created after `ordinal` others; there must be one."""
    return _decode(state.get(index.TASK + number(ordinal)) or b"")


def those_created(state: StateView, ordinals: Iterable[int]) -> Iterator[tuple[int, Task]]:
    """As `created` for each of `ordinals`, for less, when there are many."""
    get, prefix, decode, size = state.get, index.TASK, _decode, index.NUMBER_BYTES
    for ordinal in ordinals:
        yield ordinal, decode(get(prefix + ordinal.to_bytes(size, "big")) or b"")


def matching(state: StateView, prefix: str) -> list[str]:
    """The ids of the tasks whose id begins with `prefix`, in order."""
    return [key.rsplit(b"/", 1)[1].decode() for key, _ in state.scan(index.ID + prefix.encode())]


def tasks(state: StateView, *states: TaskState) -> Iterator[Task]:
    """The tasks in any of `states` (all, when none is named), each state's in order of creation."""
    end = size(state)
    for wanted in states or tuple(TaskState):
        for ordinal in bitmap.ordinals(bitmap.having(state, index.STATE, wanted), 0, end):
            yield created(state, ordinal)


def busy(state: StateView) -> Iterator[Task]:
    """The tasks that something is under way in, or was when a process died."""
    return _those_in(state, index.PENDING)


def housed(state: StateView) -> Iterator[Task]:
    """The tasks that the log believes to have a container."""
    return _those_in(state, index.HOUSED)


def _those_in(state: StateView, prefix: bytes) -> Iterator[Task]:
    for key, _ in state.scan(prefix):
        task = find(state, key.removeprefix(prefix).decode())
        if task is not None:
            yield task
