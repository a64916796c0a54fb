"""The checkpoints of every task, in the order they were taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import final

import msgspec

from sandkeep.events import Record
from sandkeep.events import catalogue as ev
from sandkeep.projections.projection import State, StateView
from sandkeep.projections.registry import STREAM


class Checkpoint(msgspec.Struct, frozen=True):
    """A recorded workspace: `digest` is that of its root manifest; `files` and `bytes` count its regular files."""

    id: str
    task: str
    digest: str
    files: int
    bytes: int
    label: str
    torn: tuple[str, ...]
    position: int
    time_ns: int


_CREATED = ev.CheckpointCreated.__name__
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Checkpoint).decode


@final
class Checkpoints:
    """The projection. Keys: `checkpoints/<task>/<position>`."""

    name = "checkpoints"
    version = 1

    def apply_all(self, state: State, records: Iterable[Record]) -> None:
        """As `apply` for each of `records`."""
        for record in records:
            if record.type == _CREATED:
                self.apply(state, record)

    def apply(self, state: State, record: Record) -> None:
        # By its name first: this projection is given every record, and decoding an event costs more than all of this.
        if record.type != _CREATED or not record.stream.startswith(STREAM):
            return
        event = record.event
        if not isinstance(event, ev.CheckpointCreated):
            return
        task = record.stream.removeprefix(STREAM)
        checkpoint = Checkpoint(
            id=event.checkpoint,
            task=task,
            digest=event.digest,
            files=event.files,
            bytes=event.bytes,
            label=event.label,
            torn=event.torn,
            position=record.position,
            time_ns=record.time_ns,
        )
        state.put(_prefix(task) + record.position.to_bytes(8, "big"), _encode(checkpoint))


def checkpoints(state: StateView, task: str) -> Iterator[Checkpoint]:
    """The checkpoints of one task, oldest first."""
    for _, value in state.scan(_prefix(task)):
        yield _decode(value)


def _prefix(task: str) -> bytes:
    return f"checkpoints/{task}/".encode()
