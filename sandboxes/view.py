"""What is or was true of the tasks of a keep, at one moment.

A *moment* is a position of the log, or a time: then it is the last position that was stored by that time. Given as
text, digits are a position and all else a time as RFC 3339 has it; one without an offset is UTC, one without a time of
day the beginning of that day.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from sandkeep.projections import (
    BadMoment,
    Changes,
    Checkpoint,
    Filter,
    Fork,
    Found,
    Page,
    Sort,
    StateView,
    Task,
    checkpoints,
    compare,
    find_tasks,
    forks,
    list_tasks,
    registry,
)
from sandkeep.sandboxes.errors import BadId, TaskNotFound

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

Moment = int | str | datetime.datetime

_ID = re.compile(r"[0-9a-f]{1,12}")
_SHORTEST_PREFIX = 4
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@final
class View:
    """The tasks as they were at `position`. Made by `Keep.as_of`, and of use until that ends."""

    def __init__(self, state: StateView, position: int) -> None:
        """Use `Keep.as_of` instead."""
        self._state = state
        self.position = position

    def tasks(
        self,
        wanted: Filter = Filter(),  # noqa: B008 - it is frozen
        *,
        sort: Sort = Sort.CREATED,
        reverse: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """A page of the tasks that are `wanted`, newest or A first unless `reverse`; `cursor` is the page before's.

        Raises `BadCursor` and `BadInput`.
        """
        return list_tasks(self._state, wanted, sort=sort, reverse=reverse, limit=limit, cursor=cursor)

    def find(self, query: str, *, limit: int = 20) -> list[Found]:
        """The tasks that fit words best: in title or tags, in any order, begun or misspelt; or an id's beginning."""
        return find_tasks(self._state, query, limit=limit)

    def task(self, task_id: str) -> Task:
        """The task with this id, or with the only id that begins with it. Raises `BadId` and `TaskNotFound`."""
        found = registry.find(self._state, identified(self._state, task_id))
        assert found is not None
        return found

    def checkpoints(self, task_id: str) -> list[Checkpoint]:
        """The task's checkpoints, oldest first."""
        return list(checkpoints.checkpoints(self._state, task_id))

    def forked_from(self, task_id: str) -> tuple[str, str] | None:
        """The task and the checkpoint that the task was forked from, if it was."""
        return checkpoints.origin(self._state, task_id)

    def own_workspaces(self, task_id: str) -> list[Fork]:
        """The own workspaces of agents in a task that are not merged, oldest first."""
        return list(forks.unmerged(self._state, task_id))


def identified(state: StateView, prefix: str) -> str:
    """The only task id that begins with `prefix`, of four digits at least. Raises `BadId` and `TaskNotFound`."""
    if not _ID.fullmatch(prefix):
        raise BadId(f"{prefix[:40]!r} is no task id; an id has 12 hexadecimal digits, as 'sandkeep list-tasks' shows")
    found = registry.matching(state, prefix) if len(prefix) >= _SHORTEST_PREFIX else []
    if len(found) > 1:
        raise BadId(f"{prefix} fits {len(found)} tasks; give more digits")
    if not found:
        raise TaskNotFound(f"there is no task {prefix}; 'sandkeep list-tasks' shows those there are")
    return found[0]


@contextlib.contextmanager
def as_of(keep: Keep, moment: Moment | None) -> Iterator[View]:
    """The keep's tasks at `moment`, now if it is None. Raises `BadMoment`."""
    if moment is None:
        with keep.projections.reading() as state:
            yield View(state, keep.projections.position(state))
        return
    position = position_at(keep, moment)
    with keep.projections.as_of(position) as state:
        yield View(state, position)


def changes(keep: Keep, since: Moment, until: Moment | None) -> list[Changes]:
    """What became of the tasks behind `since`, up to `until` or now. Raises `BadMoment`."""
    first = position_at(keep, since)
    last = keep.head().position if until is None else position_at(keep, until)
    if last < first:
        raise BadMoment(f"position {last} is before {first}; give the earlier moment first")
    with keep.projections.as_of(first) as earlier, keep.projections.as_of(last) as later:
        return list(compare(earlier, first, later))


def position_at(keep: Keep, moment: Moment) -> int:
    """The position of `moment`, which may lie past the head. Raises `BadMoment` if it is none."""
    if isinstance(moment, str):
        moment = int(moment) if moment.isascii() and moment.isdigit() and len(moment) < 20 else parse_time(moment)
    return moment if isinstance(moment, int) else keep.log.position_as_of(nanoseconds(moment))


def parse_time(text: str) -> datetime.datetime:
    """The time that `text` names. Raises `BadMoment`."""
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise BadMoment(
            f"{text[:40]!r} is neither a position nor a time; write a time as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from error


def nanoseconds(time: datetime.datetime) -> int:
    """The time in nanoseconds since 1970, exactly; UTC if it has no offset."""
    since = (time if time.tzinfo is not None else time.replace(tzinfo=datetime.UTC)) - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
