"""Listing tasks: filters, sorting and pages, answered from the indexes.

A filter is a set of tasks (see `bitmap`), so its cost does not depend on how many tasks there are, nor on how many pass
one part of it and fail another. In the order of creation, which is that of the bits, a page is read off the set. In the
other orders, a few members are all read and sorted; more are met soon by whoever walks the order's index. Where they
are not, because they all stand at its end, the walk is given up for bitmaps that tell the order roughly: by when about
tasks were updated, or how their titles begin. Members are then read part by part.

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
from itertools import chain, islice
from operator import itemgetter

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
_STEPS = 1500
_TITLE_AT = len(index.TITLE)
_CURSOR_BYTES = 512


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
    found = list(islice(_matches(state, wanted, sort, descending, place, limit + 1), limit + 1))
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


def _matches(
    state: StateView, wanted: Filter, sort: Sort, descending: bool, place: bytes | None, enough: int
) -> Iterable[tuple[bytes, Task]]:
    """The tasks behind `place`, each with its own place, in order: the first `enough` at least."""
    updated = _updated(state, wanted)
    span = _created(state, wanted)
    if place is not None and sort is not Sort.TITLE:
        # What is before the place needs no looking at.
        bounds = span if sort is Sort.CREATED else updated
        met = number_at(place)
        bounds = (
            _Span(bounds.first, min(bounds.end, met)) if descending else _Span(max(bounds.first, met + 1), bounds.end)
        )
        span, updated = (bounds, updated) if sort is Sort.CREATED else (span, bounds)
    members = bitmap.remembered(bitmap.all_of([bitmap.between(span.first, span.end), *_sets(state, wanted, updated)]))
    if sort is Sort.CREATED:
        return _in_order_of_creation(state, members, span, updated, descending)
    candidates = list(islice(bitmap.ordinals(members, span.first, span.end), _FEW + 1))
    if len(candidates) > _FEW:
        walked = _walked(state, members, sort, updated, descending, place, enough)
        if walked is not None:
            return walked
        parts = _by_time(state, members, span, updated, descending)
        if sort is Sort.TITLE:
            parts = _by_initial(state, members, span, updated, descending, place)
        return chain.from_iterable(parts)
    return _sorted(state, candidates, sort, updated, descending, place)


def _in_order_of_creation(
    state: StateView, members: TaskSet, span: _Span, updated: _Span, descending: bool
) -> Iterator[tuple[bytes, Task]]:
    for ordinal in bitmap.ordinals(members, span.first, span.end, descending=descending):
        task = registry.created(state, ordinal)
        if updated.first <= task.updated_at < updated.end:
            yield number(ordinal), task


def _walked(
    state: StateView,
    members: TaskSet,
    sort: Sort,
    updated: _Span,
    descending: bool,
    place: bytes | None,
    enough: int,
) -> list[tuple[bytes, Task]] | None:
    """The members met first along the order's index; None if too few were met to go on like that."""
    prefix, start = index.TITLE, None if place is None else index.TITLE + place
    if sort is Sort.UPDATED:
        prefix, start = index.UPDATED, index.UPDATED + number(max(updated.end - 1, 0) if descending else updated.first)
    found: list[tuple[bytes, Task]] = []
    for steps, (key, value) in enumerate(state.scan(prefix, start=start, descending=descending)):
        if steps > _STEPS + 4 * enough:
            return None
        ordinal = number_at(value if sort is Sort.UPDATED else key[-8:])
        if not bitmap.contains(members, ordinal) or key[len(prefix) :] == place:
            continue
        task = registry.created(state, ordinal)
        if updated.first <= task.updated_at < updated.end:
            found.append((key[len(prefix) :], task))
        if len(found) == enough:
            break
    return found


def _by_time(
    state: StateView, members: TaskSet, span: _Span, updated: _Span, descending: bool
) -> Iterator[Iterable[tuple[bytes, Task]]]:
    """The members in the order of updates, by when about they were last updated."""
    buckets: dict[int, list[tuple[int, int]]] = {}
    for chunk in _chunks(span):
        wanted = members(chunk)
        for bucket, bits in bitmap.touched(state, chunk, updated.first, updated.end) if wanted else ():
            if bits & wanted:
                buckets.setdefault(bucket, []).append((chunk, bits & wanted))
    for bucket in sorted(buckets, reverse=descending):
        found = [
            (chunk << bitmap.CHUNK_BITS) + offset for chunk, bits in buckets[bucket] for offset in bitmap.offsets(bits)
        ]
        yield _sorted(state, found, Sort.UPDATED, updated, descending, None)


def _by_initial(
    state: StateView, members: TaskSet, span: _Span, updated: _Span, descending: bool, place: bytes | None
) -> Iterator[Iterable[tuple[bytes, Task]]]:
    """The members in the order of titles, by how the titles begin."""
    start = None if place is None else index.TITLE + place
    while (at := next(state.scan(index.TITLE, start=start, descending=descending), None)) is not None:
        first = at[0][_TITLE_AT]
        these = bitmap.all_of([members, bitmap.having(state, index.INITIAL, index.initial(at[0]))])
        found = bitmap.ordinals(these, span.first, span.end)
        yield _sorted(state, found, Sort.TITLE, updated, descending, place)
        start = index.TITLE + bytes([first if descending else first + 1])


def _sorted(
    state: StateView, candidates: Iterable[int], sort: Sort, updated: _Span, descending: bool, place: bytes | None
) -> list[tuple[bytes, Task]]:
    """Those of `candidates` that were updated in time and are behind `place`, in order."""
    found = []
    for ordinal in candidates:
        task = registry.created(state, ordinal)
        key = number(task.updated_at) if sort is Sort.UPDATED else index.title_key(task.title, ordinal)[_TITLE_AT:]
        behind = place is None or (key < place if descending else key > place)
        if behind and updated.first <= task.updated_at < updated.end:
            found.append((key, task))
    return sorted(found, key=itemgetter(0), reverse=descending)


def _chunks(span: _Span) -> range:
    return range(span.first >> bitmap.CHUNK_BITS, ((span.end - 1) >> bitmap.CHUNK_BITS) + 1)


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
