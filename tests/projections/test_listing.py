"""Listings are what a scan of all tasks would give, and pages of them neither repeat nor leave out anything."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BadInput, Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import BadCursor, Filter, MemoryState, Sort, Task, TaskState, bitmap, list_tasks, listing
from sandkeep.projections.registry import tasks
from sandkeep.projections.words import ordered, words

from .support import folded

TITLES = ["Fix the parser", "fix tests", "Add a cache", "cache of the parser", "Über alles", "", "fix the parser"]
OWNERS = ["ann", "bob", "x" * 300]
TAGS = ["urgent", "later", "fixme"]
Sorting = Callable[[Task], Any]


def making(title: str, owner: str | None = None, tags: tuple[str, ...] = (), parent: str | None = None) -> Event:
    return ev.TaskCreated("i", title, None, "base", owner, tags, parent)


CREATIONS = st.builds(
    making,
    st.sampled_from(TITLES),
    st.none() | st.sampled_from(OWNERS),
    st.lists(st.sampled_from(TAGS), max_size=2).map(tuple),
    st.none() | st.sampled_from(["p", "q"]),
)
LATER: st.SearchStrategy[Event] = st.one_of(
    st.builds(ev.SandboxStarted, st.just("i"), st.just("c")),
    st.builds(ev.TaskPaused, st.just("i")),
    st.builds(ev.TaskCompleted, st.just("s")),
    st.builds(ev.TaskFailed, st.just("r")),
    st.builds(ev.TaskCleaned, st.just("i")),
    st.builds(
        ev.TaskTagged,
        st.lists(st.sampled_from(TAGS), max_size=2).map(tuple),
        st.lists(st.sampled_from(TAGS), max_size=2).map(tuple),
    ),
)
STREAMS = st.sampled_from([f"task/{name}" for name in "abcdefgh"])
HISTORIES = st.builds(
    lambda created, later: [(f"task/{name}", event) for name, event in zip("abcdefgh", created, strict=False)] + later,
    st.lists(CREATIONS, min_size=2, max_size=8),
    st.lists(st.tuples(STREAMS, LATER | CREATIONS), max_size=30),
)
TIMES = st.integers(0, 4100)
PARTS: dict[str, st.SearchStrategy[object]] = {
    "states": st.lists(st.sampled_from(TaskState), min_size=1, max_size=3).map(tuple),
    "owner": st.sampled_from([*OWNERS, "me"]),
    "tags": st.lists(st.sampled_from(TAGS), min_size=1, max_size=2).map(tuple),
    "parent": st.sampled_from(["p", "q"]),
    "text": st.sampled_from(["fix", "fix par", "PARSER the", "über", "urg", "la", "none such"]),
    "created_since": TIMES,
    "created_before": TIMES,
    "updated_since": TIMES,
    "updated_before": TIMES,
}
# Few parts at a time, or next to nothing would pass them.
FILTERS = st.lists(st.sampled_from(sorted(PARTS)), max_size=3, unique=True).flatmap(
    lambda names: st.builds(Filter, **{name: PARTS[name] for name in names})
)


def passes(task: Task, wanted: Filter) -> bool:
    """The meaning of a filter, read off its description."""

    def has(word: str) -> bool:
        there = words(task.title, *task.tags)
        return any(each.startswith(word) for each in there) if len(word) >= 3 else word in there

    return all(
        [
            not wanted.states or task.state in wanted.states,
            wanted.owner in (None, task.owner),
            set(wanted.tags) <= set(task.tags),
            wanted.parent in (None, task.parent),
            all(has(word) for word in ordered(wanted.text)),
            wanted.created_since is None or task.created_ns >= wanted.created_since,
            wanted.created_before is None or task.created_ns < wanted.created_before,
            wanted.updated_since is None or task.updated_ns >= wanted.updated_since,
            wanted.updated_before is None or task.updated_ns < wanted.updated_before,
        ]
    )


ORDERS: dict[Sort, tuple[Sorting, bool]] = {
    Sort.CREATED: (lambda task: task.created_at, True),
    Sort.UPDATED: (lambda task: task.updated_at, True),
    Sort.TITLE: (lambda task: (task.title.casefold().encode()[:120] + b"\0", task.created_at), False),
}


def naive(state: MemoryState, wanted: Filter, sort: Sort, reverse: bool) -> list[Task]:
    key, descending = ORDERS[sort]
    found = [task for task in tasks(state) if passes(task, wanted)]
    return sorted(found, key=key, reverse=descending != reverse)


def pages(state: MemoryState, wanted: Filter, sort: Sort, reverse: bool, limit: int) -> Iterator[Task]:
    cursor = None
    while True:
        page = list_tasks(state, wanted, sort=sort, reverse=reverse, limit=limit, cursor=cursor)
        assert len(page.tasks) == limit or page.next is None
        yield from page.tasks
        if page.next is None:
            return
        cursor = page.next


@pytest.mark.parametrize("ways", ["gathered", "walked", "by buckets"])
@given(HISTORIES, FILTERS, st.sampled_from(Sort), st.booleans(), st.integers(1, 6))
def test_a_listing_is_what_a_scan_would_give(
    ways: str, history: list[tuple[str, Event]], wanted: Filter, sort: Sort, reverse: bool, limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # However many tasks there are, each way of finding them gives the same.
        patch.setattr(bitmap, "BUCKET_BITS", 2)
        if ways != "gathered":
            patch.setattr(listing, "_FEW", 0)
        if ways == "by buckets":
            patch.setattr(listing, "_STEPS", -1000)
        state = folded(history)
        assert list(pages(state, wanted, sort, reverse, limit)) == naive(state, wanted, sort, reverse)


@pytest.mark.parametrize("sort", Sort)
@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_created_between_two_pages_moves_nothing_else(sort: Sort, reverse: bool) -> None:
    history = [(f"task/{number:02}", making(f"title {number * 7 % 20:02}")) for number in range(20)]
    state = folded(history)
    every = list_tasks(state, Filter(), sort=sort, reverse=reverse).tasks
    first = list_tasks(state, Filter(), sort=sort, reverse=reverse, limit=10)
    assert first.tasks == every[:10]
    state = folded([*history, *((f"task/new{number}", making(f"title {number:02}")) for number in range(20))])
    rest = list_tasks(state, Filter(), sort=sort, reverse=reverse, cursor=first.next).tasks
    assert tuple(task for task in rest if not task.id.startswith("new")) == every[10:]


def test_a_task_that_is_updated_between_two_pages_is_not_told_twice() -> None:
    history = [(f"task/{number}", making("t")) for number in range(6)]
    first = list_tasks(folded(history), Filter(), sort=Sort.UPDATED, limit=3)
    assert [task.id for task in first.tasks] == ["5", "4", "3"]
    history.append(("task/4", ev.TaskCompleted("s")))
    rest = list_tasks(folded(history), Filter(), sort=Sort.UPDATED, cursor=first.next)
    assert [task.id for task in rest.tasks] == ["2", "1", "0"]


def cursors() -> Iterator[tuple[str, str]]:
    state = folded([(f"task/{number}", making("t")) for number in range(4)])
    page = list_tasks(state, Filter(), limit=2)
    assert page.next is not None
    yield "empty", ""
    yield "no base64", "!!"
    yield "not ascii", "é"
    yield "cut short", page.next[:-4]
    yield "garbage", base64.urlsafe_b64encode(b"\xc1" * 9).decode()
    yield "another shape", base64.urlsafe_b64encode(msgspec.msgpack.encode([1, 2])).decode()
    listing_of = msgspec.msgpack.decode(base64.urlsafe_b64decode(page.next + "=" * (-len(page.next) % 4)))[0]
    for place in (b"", b"x" * 9, b"x" * 1000):
        yield (
            f"a place of {len(place)} bytes",
            base64.urlsafe_b64encode(msgspec.msgpack.encode([listing_of, place])).decode(),
        )
    yield "of another order", list_tasks(state, Filter(), sort=Sort.TITLE, limit=2).next or ""
    yield "of another direction", list_tasks(state, Filter(), reverse=True, limit=2).next or ""
    yield "of other filters", list_tasks(state, Filter(owner="me"), limit=2).next or ""
    yield "nested without end", base64.urlsafe_b64encode(b"\x91" * 5000).decode()


@pytest.mark.parametrize("cursor", [cursor for _, cursor in cursors()], ids=[name for name, _ in cursors()])
def test_what_is_no_cursor_of_this_listing_is_refused(cursor: str) -> None:
    with pytest.raises(BadCursor, match="cursor"):
        list_tasks(folded([("task/a", making("t"))]), Filter(), cursor=cursor)


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_page_has_a_size_that_can_be(limit: int) -> None:
    with pytest.raises(BadInput, match="ask for 1 to 1000"):
        list_tasks(MemoryState(), Filter(), limit=limit)


def test_a_text_without_words_is_refused() -> None:
    with pytest.raises(BadInput, match="0 words"):
        list_tasks(MemoryState(), Filter(text="…"))


def test_nothing_is_listed_of_nothing() -> None:
    for sort in Sort:
        assert list_tasks(MemoryState(), Filter(), sort=sort) == listing.Page((), None)
