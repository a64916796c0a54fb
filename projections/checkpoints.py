"""The checkpoints of every task, in the order they were taken, and what became of them.

One that has expired stays on record, and cannot be restored. One that another task was forked from is in use until that
is cleaned up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import final

import msgspec

from sandkeep.events import Record
from sandkeep.events import catalogue as ev
from sandkeep.projections.projection import State, StateView
from sandkeep.projections.registry import STREAM


class Checkpoint(msgspec.Struct, frozen=True):
    """A recorded workspace: `digest` is that of its root manifest; `files` and `bytes` count its regular files.

    It is kept while it is `pinned` or has `tags`. `expired_ns` is when it expired, for the reason `expired`; 0 if it
    has not. `commands` ran when it was taken, of whose processes nothing is kept, and the sandbox stood still for
    `frozen_ns`; `image` holds what lay outside the workspace, if that was asked for.
    """

    id: str
    task: str
    digest: str
    files: int
    bytes: int
    label: str
    torn: tuple[str, ...]
    position: int
    time_ns: int
    pinned: bool = False
    tags: tuple[str, ...] = ()
    expired_ns: int = 0
    expired: str = ""
    commands: int = 0
    frozen_ns: int = 0
    image: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Checkpoint).decode


@final
class Checkpoints:
    """The projection.

    Keys, each behind `checkpoints/`: `<task>/<position>` holds a checkpoint, `id/<task>/<id>` its position;
    `fork/<id>` says which task and checkpoint the task with this id was forked from, and
    `used/<task>/<checkpoint>/<id>` is there until that is cleaned up; `tasks/<task>` is there if it has any, and
    `expired` says when the last expired.
    """

    name = "checkpoints"
    version = 2

    def apply_all(self, state: State, records: Iterable[Record]) -> None:
        """As `apply` for each of `records`."""
        for record in records:
            if record.type in _HANDLERS:
                self.apply(state, record)

    def apply(self, state: State, record: Record) -> None:
        # By its name first: this projection is given every record, and decoding an event costs more than all of this.
        if record.type not in _HANDLERS or not record.stream.startswith(STREAM):
            return
        _HANDLERS[record.type](state, record, record.stream.removeprefix(STREAM))


def _created(state: State, record: Record, task: str) -> None:
    event = record.event
    if isinstance(event, ev.CheckpointCreated):
        counted = (event.digest, event.files, event.bytes, event.label, event.torn)
        checkpoint = Checkpoint(
            *(event.checkpoint, task, *counted, record.position, record.time_ns),
            commands=event.commands,
            frozen_ns=event.frozen_ns,
            image=event.image,
        )
        _put(state, checkpoint)
        state.put(_key("tasks", task), b"")


def _pinned(state: State, record: Record, task: str) -> None:
    event = record.event
    if isinstance(event, ev.CheckpointPinned | ev.CheckpointUnpinned):
        _change(state, task, event.checkpoint, pinned=isinstance(event, ev.CheckpointPinned))


def _tagged(state: State, record: Record, task: str) -> None:
    event = record.event
    if isinstance(event, ev.CheckpointTagged) and (found := find(state, task, event.checkpoint)) is not None:
        tags = tuple(sorted({*found.tags, *event.added} - {*event.removed}))
        _change(state, task, event.checkpoint, tags=tags)


def _expired(state: State, record: Record, task: str) -> None:
    event = record.event
    if isinstance(event, ev.CheckpointExpired):
        _change(state, task, event.checkpoint, expired_ns=record.time_ns, expired=event.reason)
        state.put(_LAST_EXPIRED, record.time_ns.to_bytes(8, "big"))


def _forked(state: State, record: Record, task: str) -> None:
    event = record.event
    if isinstance(event, ev.TaskForked):
        state.put(_key("fork", task), _encode((event.task, event.checkpoint)))
        state.put(_key("used", event.task, event.checkpoint, task), b"")


def _cleaned(state: State, record: Record, task: str) -> None:
    origin = state.get(_key("fork", task))
    if origin is not None:
        parent, checkpoint = _decode_origin(origin)
        state.delete(_key("used", parent, checkpoint, task))


_HANDLERS: dict[str, Callable[[State, Record, str], None]] = {
    "CheckpointCreated": _created,
    "CheckpointPinned": _pinned,
    "CheckpointUnpinned": _pinned,
    "CheckpointTagged": _tagged,
    "CheckpointExpired": _expired,
    "TaskForked": _forked,
    "TaskCleaned": _cleaned,
}
_LAST_EXPIRED = b"checkpoints/expired"
_decode_origin = msgspec.msgpack.Decoder(tuple[str, str]).decode


def checkpoints(state: StateView, task: str, *, expired: bool = False) -> Iterator[Checkpoint]:
    """The checkpoints of one task, oldest first; with `expired`, those too that cannot be restored any more."""
    for _, value in state.scan(_key(task)):
        found = _decode(value)
        if expired or not found.expired_ns:
            yield found


def find(state: StateView, task: str, checkpoint: str) -> Checkpoint | None:
    """The checkpoint with this id, also if it has expired."""
    place = state.get(_key("id", task, checkpoint))
    return None if place is None else _decode(state.get(_key(task) + place) or b"")


def newest(state: StateView, task: str) -> Checkpoint | None:
    """The newest of the task's checkpoints that have not expired."""
    found = (_decode(value) for _, value in state.scan(_key(task), descending=True))
    return next((each for each in found if not each.expired_ns), None)


def having(state: StateView) -> Iterator[str]:
    """The ids of the tasks that ever took a checkpoint."""
    prefix = _key("tasks")
    for key, _ in state.scan(prefix):
        yield key.removeprefix(prefix).rstrip(b"/").decode()


def last_expired_ns(state: StateView) -> int:
    """When a checkpoint expired last; 0 if none ever did."""
    return int.from_bytes(state.get(_LAST_EXPIRED) or b"", "big")


def used(state: StateView, task: str) -> set[str]:
    """The ids of the task's checkpoints that tasks were forked from which are not cleaned up."""
    prefix = _key("used", task)
    return {key.removeprefix(prefix).split(b"/")[0].decode() for key, _ in state.scan(prefix)}


def origin(state: StateView, task: str) -> tuple[str, str] | None:
    """The task and the checkpoint that this task was forked from, if it was."""
    found = state.get(_key("fork", task))
    return None if found is None else _decode_origin(found)


def _change(state: State, task: str, checkpoint: str, **fields: object) -> None:
    found = find(state, task, checkpoint)
    if found is not None:
        _put(state, msgspec.structs.replace(found, **fields))


def _put(state: State, checkpoint: Checkpoint) -> None:
    place = checkpoint.position.to_bytes(8, "big")
    state.put(_key(checkpoint.task) + place, _encode(checkpoint))
    state.put(_key("id", checkpoint.task, checkpoint.id), place)


def _key(*parts: str) -> bytes:
    return f"checkpoints/{'/'.join(parts)}/".encode()
