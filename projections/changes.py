"""What became of the tasks between two moments."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import msgspec

from sandkeep.projections import index, registry
from sandkeep.projections.index import number, number_at
from sandkeep.projections.projection import StateView
from sandkeep.projections.registry import Task, TaskState

_ENDED = (TaskState.COMPLETED, TaskState.FAILED, TaskState.CLEANED)
_ALWAYS = ("updated_ns", "updated_at", "used_ns")


class Change(enum.StrEnum):
    """What became of a task."""

    CREATED = "created"
    CHANGED = "changed"
    ENDED = "ended"


class Changes(msgspec.Struct, frozen=True):
    """One task, and what became of it: as it is at the later moment, and the fields that had another value at the
    earlier one, each with the value before and after. A task that was created has none: all of it is new."""

    change: Change
    task: Task
    fields: dict[str, tuple[Any, Any]]


def compare(earlier: StateView, position: int, later: StateView) -> Iterator[Changes]:
    """The tasks that something happened to behind `position`, where `earlier` is, up to where `later` is.

    In the order of their last events; a task that was created and ended between the two has ended. The cost is that of
    the tasks it gives, not of the records between.
    """
    for _, place in later.scan(index.UPDATED, start=index.UPDATED + number(position + 1)):
        after = registry.created(later, number_at(place))
        before = registry.find(earlier, after.id)
        ended = after.state in _ENDED and (before is None or before.state not in _ENDED)
        change = Change.ENDED if ended else Change.CREATED if before is None else Change.CHANGED
        yield Changes(change, after, {} if before is None else dict(_fields(before, after)))


def _fields(before: Task, after: Task) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in Task.__struct_fields__:
        old, new = getattr(before, name), getattr(after, name)
        if old != new and name not in _ALWAYS:
            yield name, (old, new)
