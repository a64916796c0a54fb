"""Listing tasks: filters, sorting and pages, answered from the indexes.

A filter is a set of tasks (see `bitmap`), so its cost does not depend on how many tasks there are, nor on how many pass
one part of it and fail another. In the order of creation, which is that of the bits, a page is read off the set. In the
other orders, a few members are all read and sorted, and many are met soon by whoever walks the order's index. In
between, and where many all stand at its end, bitmaps tell the order roughly, by when about tasks were updated or how
their titles begin, and members are read part by part.

A *cursor* names the place where a page ended, not how many tasks came before it. What is created or ended between two
pages moves nothing else; a task that is updated meanwhile moves in the order of updates, as it must. To page through
one moment, list as of it.
"""

from __future__ import annotations

import base64
import binascii
import enum
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain, islice, starmap
from operator import itemgetter
from typing import final

import msgspec
from blake3 import blake3

from sandkeep.events import BadInput
from sandkeep.projections import bitmap, index, registry
from sandkeep.projections.bitmap import TaskSet
from sandkeep.projections.index import number, number_at
from sandkeep.projections.projection import StateView
from sandkeep.projections.registry import Task, TaskState
from sandkeep.projections.search import having_words

MAX_PAGE = 1000
"""The most tasks of one page."""

_FEW = 800
_STEPS = 500
_CURSOR_BYTES = 512


_Placed = tuple[bytes, Task]


class BadCursor(BadInput):
    """What was given is no cursor, or one of another listing."""

    code = "bad-cursor"


class Sort(enum.StrEnum):
    """The order of a listing: what was created or updated last comes first, titles from A to Z."""

    CREATED = "created"
    UPDATED = "updated"
    TITLE = "title"


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks are wanted: those that pass every part that is given.

    Any of `states`; all of `tags`; every word of `text` in the title or a tag, or the beginning of one. Times are in
    nanoseconds since 1970; `since` is included, `before` is not.
    """

    states: tuple[TaskState, ...] = ()
    owner: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None
    text: str = ""
    created_since: int | None = None
    created_before: int | None = None
    updated_since: int | None = None
    updated_before: int | None = None


class Page(msgspec.Struct, frozen=True):
    """Tasks in order, and the cursor of the page that follows, None at the end."""

    tasks: tuple[Task, ...]
    next: str | None


class _Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    listing: bytes
    place: bytes


class _Span(msgspec.Struct, frozen=True):
    """Ordinals, or positions, from `first` to before `end`."""

    first: int
    end: int


def list_tasks(
    state: StateView,
    wanted: Filter,
    *,
    sort: Sort = Sort.CREATED,
    reverse: bool = False,
    limit: int = 100,
    cursor: str | None = None,
) -> Page:
    """The first `limit` tasks that are `wanted`, or those behind `cursor`. Raises `BadCursor` and `BadInput`."""
    if not 1 <= limit <= MAX_PAGE:
        raise BadInput(f"a page of {limit} tasks cannot be; ask for 1 to {MAX_PAGE}")
    # Its text, since times may be too large for msgpack, and a command line's words no UTF-8.
    listing = blake3(repr((wanted, sort, reverse)).encode("utf-8", "surrogatepass")).digest(8)
    place = None if cursor is None else _place(cursor, listing, sort)
    descending = reverse if sort is Sort.TITLE else not reverse
    found = list(islice(_Listing(state, wanted, sort, descending, place, limit + 1).matches(), limit + 1))
    if len(found) <= limit:
        return Page(tuple(task for _, task in found), None)
    end = _Cursor(listing, found[limit - 1][0])
    words = base64.urlsafe_b64encode(msgspec.msgpack.encode(end)).decode().rstrip("=")
    return Page(tuple(task for _, task in found[:limit]), words)


def _place(cursor: str, listing: bytes, sort: Sort) -> bytes:
    try:
        stored = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found = msgspec.msgpack.decode(stored, type=_Cursor)
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise BadCursor("that is no cursor; give the one that the page before came with, unchanged") from error
    wrong_place = len(found.place) > _CURSOR_BYTES if sort is Sort.TITLE else len(found.place) != 8
    if found.listing != listing or wrong_place:
        raise BadCursor("the cursor is one of another listing; repeat the filters and the order it came from")
    return found.place


@final
class _Listing:
    """What one call of `list_tasks` looks for: the tasks behind `place`, each given with its own place, in order."""

    def __init__(
        self, state: StateView, wanted: Filter, sort: Sort, descending: bool, place: bytes | None, enough: int
    ) -> None:
        self._state, self._sort, self._descending, self._place, self._enough = state, sort, descending, place, enough
        self._updated, self._span = _updated(state, wanted), _created(state, wanted)
        if place is not None and sort is Sort.CREATED:
            self._span = _behind(self._span, number_at(place), descending)
        elif place is not None and sort is Sort.UPDATED:
            self._updated = _behind(self._updated, number_at(place), descending)
        sets = _sets(state, wanted, self._updated)
        if not sets or self._span != _Span(0, registry.size(state)):
            sets.append(bitmap.between(self._span.first, self._span.end))
        self._members = bitmap.remembered(bitmap.all_of(sets))

    def matches(self) -> Iterable[_Placed]:
        """All of them, or at least the first that are `enough`."""
        if self._sort is Sort.CREATED:
            return self._in_order_of_creation()
        count = self._count(self._members)
        if count <= _FEW:
            return self._gathered(self._members)
        # How far a walk leads if the members are spread evenly; if they are not, it is given up.
        steps = registry.size(self._state) * self._enough // count
        if steps <= _STEPS:
            met = self._met_first(4 * (steps + self._enough))
            if met is not None:
                return met
        return chain.from_iterable(self._by_title() if self._sort is Sort.TITLE else self._by_time())

    def _met_first(self, most: int) -> list[_Placed] | None:
        """Those that a walk along the whole order meets; None if they are not enough after `most` steps."""
        found: list[_Placed] = []
        for steps, each in enumerate(self._walk(self._members, self._updated)):
            if each is not None:
                found.append(each)
            if len(found) == self._enough:
                break
            if steps > most:
                return None
        return found

    def _in_order_of_creation(self) -> Iterator[_Placed]:
        found = bitmap.ordinals(self._members, self._span.first, self._span.end, descending=self._descending)
        return filter(None, (self._placed(ordinal) for ordinal in found))

    def _by_time(self) -> Iterator[Iterable[_Placed]]:
        """The members by when about they were last updated."""
        buckets: dict[int, dict[int, int]] = {}
        for chunk in self._chunks():
            wanted = self._members(chunk)
            for bucket, bits in self._touched(chunk) if wanted else ():
                if bits & wanted:
                    buckets.setdefault(bucket, {})[chunk] = bits & wanted
        for bucket in sorted(buckets, reverse=self._descending):
            first = bucket << bitmap.BUCKET_BITS
            times = _Span(max(self._updated.first, first), min(self._updated.end, first + bitmap.BUCKET))
            members = bitmap.given(buckets[bucket])
            yield self._part(members, bitmap.BUCKET, self._walk(members, times))

    def _touched(self, chunk: int) -> Iterator[tuple[int, int]]:
        return bitmap.touched(self._state, chunk, self._updated.first, self._updated.end)

    def _by_title(self) -> Iterator[Iterable[_Placed]]:
        """The members by how their titles begin."""
        start = None if self._place is None else index.TITLE + self._place
        while (at := next(self._titles(start), None)) is not None:
            begun = index.initial(at[0][len(index.TITLE) :])
            group = bitmap.remembered(bitmap.having(self._state, index.INITIAL, begun.hex()))
            members = bitmap.remembered(bitmap.all_of([self._members, group]))
            walk = self._walk(members, self._updated, begun, start)
            yield self._part(members, self._count(group), walk)
            later = begun if self._descending else (int.from_bytes(begun, "big") + 1).to_bytes(len(begun), "big")
            start = index.TITLE + later

    def _part(self, members: TaskSet, size: int, walk: Iterator[_Placed | None]) -> Iterable[_Placed]:
        """The members among `size` tasks that are neighbours in the order: walked, or gathered if that costs less."""
        count = self._count(members)
        # Reading a task costs about as much as three steps.
        return filter(None, walk) if size * self._enough < 3 * count * count else self._gathered(members)

    def _walk(
        self, members: TaskSet, updated: _Span, begun: bytes = b"", start: bytes | None = None
    ) -> Iterator[_Placed | None]:
        """The members along the order's index, and None for each step that leads to none."""
        if self._sort is Sort.UPDATED:
            edge = max(updated.end - 1, 0) if self._descending else updated.first
            entries = self._state.scan(index.UPDATED, start=index.UPDATED + number(edge), descending=self._descending)
            places = ((number_at(key[-8:]), number_at(value)) for key, value in entries)
            for position, ordinal in places:
                if not updated.first <= position < updated.end:
                    return
                yield self._placed(ordinal) if bitmap.contains(members, ordinal) else None
            return
        if start is None and self._place is not None:
            start = index.TITLE + self._place
        for key, _ in self._titles(start, begun):
            ordinal = number_at(key[-8:])
            yield self._placed(ordinal) if bitmap.contains(members, ordinal) else None

    def _titles(self, start: bytes | None, begun: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        prefix = index.TITLE + begun
        if start is not None and not start.startswith(prefix):
            start = None
        return self._state.scan(prefix, start=start, descending=self._descending)

    def _gathered(self, members: TaskSet) -> list[_Placed]:
        """All of the members, sorted."""
        ordinals = bitmap.ordinals(members, self._span.first, self._span.end)
        found = filter(None, starmap(self._in_place, registry.those_created(self._state, ordinals)))
        return sorted(found, key=itemgetter(0), reverse=self._descending)

    def _placed(self, ordinal: int) -> _Placed | None:
        return self._in_place(ordinal, registry.created(self._state, ordinal))

    def _in_place(self, ordinal: int, task: Task) -> _Placed | None:
        """The task and its place, unless it was updated at another time or is not behind the place to begin from."""
        if not self._updated.first <= task.updated_at < self._updated.end:
            return None
        if self._sort is not Sort.TITLE:
            return number(task.updated_at if self._sort is Sort.UPDATED else ordinal), task
        place = index.title_place(task.title, ordinal)
        met = self._place
        behind = met is None or (place < met if self._descending else place > met)
        return (place, task) if behind else None

    def _count(self, members: TaskSet) -> int:
        return sum(members(chunk).bit_count() for chunk in self._chunks())

    def _chunks(self) -> range:
        return range(self._span.first >> bitmap.CHUNK_BITS, ((self._span.end - 1) >> bitmap.CHUNK_BITS) + 1)


def _behind(span: _Span, met: int, descending: bool) -> _Span:
    return _Span(span.first, min(span.end, met)) if descending else _Span(max(span.first, met + 1), span.end)


def _sets(state: StateView, wanted: Filter, updated: _Span) -> list[TaskSet]:
    """For each part of the filter, the tasks that pass it; of the times, about."""
    sets: list[TaskSet] = []
    if wanted.owner is not None:
        sets.append(bitmap.having(state, index.OWNER, wanted.owner))
    if wanted.parent is not None:
        sets.append(bitmap.having(state, index.PARENT, wanted.parent))
    sets += [bitmap.having(state, index.TAG, tag) for tag in wanted.tags]
    if wanted.states:
        sets.append(bitmap.any_of([bitmap.having(state, index.STATE, each) for each in wanted.states]))
    if wanted.text:
        sets += having_words(state, wanted.text)
    if wanted.updated_since is not None or wanted.updated_before is not None:
        sets.append(bitmap.touched_in(state, updated.first, updated.end))
    return sets


def _created(state: StateView, wanted: Filter) -> _Span:
    """The ordinals of the tasks created in time: creation times never decrease."""

    def first_since(time_ns: int | None, otherwise: int) -> int:
        if time_ns is None:
            return otherwise
        return bisect_left(range(end), time_ns, key=lambda ordinal: registry.created(state, ordinal).created_ns)

    end = registry.size(state)
    # What was created after a time was not updated before it.
    bounds = [bound for bound in (wanted.created_before, wanted.updated_before) if bound is not None]
    return _Span(first_since(wanted.created_since, 0), first_since(min(bounds, default=None), end))


def _updated(state: StateView, wanted: Filter) -> _Span:
    """The positions of the last updates in time: later updates have later times."""
    newest = next(state.scan(index.UPDATED, descending=True), None)
    end = 0 if newest is None else number_at(newest[0][-8:]) + 1

    def time_at(position: int) -> int:
        found = next(state.scan(index.UPDATED, start=index.UPDATED + number(position)))
        return registry.created(state, number_at(found[1])).updated_ns

    def first_since(time_ns: int | None, otherwise: int) -> int:
        return otherwise if time_ns is None else bisect_left(range(end), time_ns, key=time_at)

    return _Span(first_since(wanted.updated_since, 0), first_since(wanted.updated_before, end))
