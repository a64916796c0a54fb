"""Finding tasks by words, in any order: answered from the indexes of words, best first.

A task fits a query if it has every word of it, in its title or its tags. Those that have the words themselves come
first, then those that have words beginning with them, then those that have similar words (one letter more, less or
other, or two swapped); of each kind the newest first. A query that is the beginning of an id finds that task before all
others.

A beginning of at least `SHORTEST_BEGINNING` letters stands for the `MOST_WORDS` words that most tasks have, so that a
short one does not touch half of the index; a shorter one is a word of its own.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from operator import itemgetter

import msgspec

from sandkeep.events import BadInput
from sandkeep.projections import bitmap, index, registry
from sandkeep.projections.bitmap import TaskSet
from sandkeep.projections.index import number_at
from sandkeep.projections.projection import StateView
from sandkeep.projections.registry import Task
from sandkeep.projections.words import neighbourhood, one_edit_apart, ordered

SHORTEST_BEGINNING = 3
MOST_WORDS = 64
MAX_WORDS = 16
"""The most words of a query."""

MAX_FOUND = 100
"""The most tasks that are found at once."""

_SHORTEST_ID = 4
_WALKED = 4096


class Fit(enum.StrEnum):
    """How a task fits a query, best first."""

    ID = "id"
    WORDS = "words"
    BEGINNINGS = "beginnings"
    SIMILAR = "similar"


class Found(msgspec.Struct, frozen=True):
    """A task, and how it fits."""

    task: Task
    fit: Fit


def find_tasks(state: StateView, query: str, *, limit: int = 20) -> list[Found]:
    """The tasks that fit `query` best, at most `limit`. Raises `BadInput`."""
    if not 1 <= limit <= MAX_FOUND:
        raise BadInput(f"{limit} tasks cannot be found at once; ask for 1 to {MAX_FOUND}")
    asked = _words(query)
    found: dict[str, Found] = {}
    for task_id in _with_id(state, query.strip().lower(), limit):
        task = registry.find(state, task_id)
        if task is not None:
            found[task.id] = Found(task, Fit.ID)
    ways = {Fit.WORDS: _exactly, Fit.BEGINNINGS: _beginning, Fit.SIMILAR: _similar}
    for fit, way in ways.items():
        tasks = _having_all(state, asked, way)
        # Those that fit better are met again, so there may be as many more.
        newest = bitmap.ordinals(tasks, 0, registry.size(state), descending=True)
        for ordinal in islice(newest, limit):
            if len(found) == limit:
                return list(found.values())
            task = registry.created(state, ordinal)
            found.setdefault(task.id, Found(task, fit))
    return list(found.values())


def having_words(state: StateView, text: str) -> list[TaskSet]:
    """For each word of `text`, the tasks with it or with a word that it is the beginning of. Raises `BadInput`."""
    return [_beginning(state, word) for word in _words(text)]


def _words(text: str) -> list[str]:
    found = ordered(text)
    if not 1 <= len(found) <= MAX_WORDS:
        raise BadInput(
            f"{text[:40]!r} has {len(found)} words to look for; give 1 to {MAX_WORDS}, of letters and digits"
        )
    return found


def _having_all(state: StateView, asked: list[str], way: Callable[[StateView, str], TaskSet]) -> TaskSet:
    return bitmap.all_of([way(state, word) for word in sorted(asked, key=len, reverse=True)])


def _with_id(state: StateView, query: str, limit: int) -> Iterator[str]:
    if len(query) >= _SHORTEST_ID and query.isascii() and query.isalnum():
        for key, _ in islice(state.scan(index.ID + query.encode()), limit):
            yield key.removeprefix(index.ID).decode()


def _exactly(state: StateView, word: str) -> TaskSet:
    return bitmap.having(state, index.WORD, word)


def _beginning(state: StateView, word: str) -> TaskSet:
    """Tasks with `word`, or with a word that begins with it."""
    if len(word) < SHORTEST_BEGINNING:
        return _exactly(state, word)
    entries = islice(state.scan(index.VOCABULARY + word.encode()), _WALKED)
    common = heapq.nlargest(MOST_WORDS, entries, key=itemgetter(1))
    begun = [key.removeprefix(index.VOCABULARY).decode() for key, _ in common]
    return bitmap.any_of([_exactly(state, each) for each in dict.fromkeys([word, *begun])])


def _similar(state: StateView, word: str) -> TaskSet:
    """Tasks with a word that begins with `word`, or that one edit leads to."""
    near: dict[str, int] = {}
    for form in neighbourhood(word):
        prefix = index.NEAR + form.encode() + b"\0"
        for key, _ in islice(state.scan(prefix), _WALKED):
            known = key[len(prefix) :]
            if one_edit_apart(word, known.decode()):
                near[known.decode()] = number_at(state.get(index.VOCABULARY + known))
    common = heapq.nlargest(MOST_WORDS, near, key=lambda each: (near[each], each))
    return bitmap.any_of([_beginning(state, word), *(_exactly(state, each) for each in common)])
