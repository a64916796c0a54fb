"""The branches of a task's history: where it went back to an earlier moment, and what was left by that.

A task that goes back to a checkpoint goes on from there: the *line* of its history is what led to the checkpoint, and
what comes after the restore. All between is a branch that was left. Nothing of it is lost, and a later restore may lead
back to it. Pure functions of the task's stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import msgspec

from sandkeep.events import Record
from sandkeep.events import catalogue as ev

RECENT = 10
"""How many decisions are told of a moment: the last."""


class Described(msgspec.Struct, frozen=True):
    """What describes a task at one moment: its tags, and what was decided last, oldest first."""

    tags: tuple[str, ...] = ()
    decided: tuple[str, ...] = ()


class Turn(msgspec.Struct, frozen=True):
    """At `position` the task went back to a checkpoint that was taken at the position `back_to`."""

    position: int
    back_to: int


@final
class Line:
    """Which positions lead to the end of a task's history, `until` a position or to now."""

    def __init__(self, turns: Sequence[Turn], until: int | None = None) -> None:
        self._spans: list[tuple[int, int | None]] = []
        end = until
        for turn in reversed(turns):
            if end is None or turn.position <= end:
                self._spans.append((turn.position, end))
                end = turn.back_to
        self._spans.append((0, end))

    def __contains__(self, position: object) -> bool:
        assert isinstance(position, int)
        return any(first <= position and (last is None or position <= last) for first, last in self._spans)


def turns(records: Iterable[Record]) -> list[Turn]:
    """Where a task went back, as its stream tells, oldest first."""
    return [
        Turn(record.position, event.position)
        for record in records
        if record.type == ev.CheckpointRestored.__name__
        and isinstance(event := record.event, ev.CheckpointRestored)
        and 0 < event.position < record.position
    ]


def described(records: Iterable[Record], until: int) -> Described:
    """What described a task at the position `until`, as its stream tells."""
    found = Described()
    for record in records:
        if record.position > until:
            break
        if record.type in _TELLING:  # decoding an event costs more than all of this
            found = _after(found, record)
    return found


def told(records: Iterable[Record], until: int, image: str) -> tuple[int, tuple[str, ...], tuple[str, ...], str]:
    """What `CheckpointRestored` tells of a task that goes back to the position `until` and to `image`, as its stream
    tells."""
    found = described(records, until)
    return until, found.tags, found.decided, image


_TELLING = ("TaskCreated", "TaskForked", "TaskTagged", "DecisionRecorded", "CheckpointRestored")


def _after(found: Described, record: Record) -> Described:
    match record.event:
        case ev.TaskCreated() as event:
            return Described(tuple(sorted(set(event.tags))), found.decided)
        case ev.TaskForked() as event:
            return Described(found.tags, event.decided)
        case ev.TaskTagged() as event:
            return Described(tuple(sorted({*found.tags, *event.added} - {*event.removed})), found.decided)
        case ev.DecisionRecorded() as event:
            return Described(found.tags, (*found.decided, event.text)[-RECENT:])
        case ev.CheckpointRestored(position=position) as event if position:
            return Described(event.tags, event.decided)
    return found
