"""The indexes of the registry: how its keys lie, and keeping them while tasks change.

    registry/size                         how many tasks there are
    registry/id/<id>                      the task's ordinal: how many were created before it
    registry/task/<ordinal>               the task
    registry/pending/<id>                 there while something is under way in it
    registry/housed/<id>                  there while it has a container
    registry/updated/<position>           the ordinal of the task that the event at this position was the last of
    registry/title/<title>, NUL, ordinal  there, in the order of case-folded titles
    registry/bits/<kind>/<value>, NUL, chunk    which tasks have a state, owner, tag, parent, word, or beginning of
                                          the title (see `bitmap`)
    registry/touched/<chunk>, bucket      which tasks were last updated about a position (see `bitmap.touched_key`)
    registry/vocabulary/<word>            in how many chunks there are tasks with this word
    registry/near/<form>, NUL, word       there if `form` is in the neighbourhood of the word (see `words`)

Numbers are big-endian. All of it follows from the tasks alone, however many events are folded at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from sandkeep.projections.bitmap import BUCKET_BITS, CHUNK_BITS, TOUCHED, Flips, bitmap_key, touched_key
from sandkeep.projections.projection import State
from sandkeep.projections.words import neighbourhood, words

if TYPE_CHECKING:
    from sandkeep.projections.registry import Task

SIZE = b"registry/size"
ID, TASK = b"registry/id/", b"registry/task/"
PENDING, HOUSED = b"registry/pending/", b"registry/housed/"
UPDATED, TITLE = b"registry/updated/", b"registry/title/"
NUMBER_BYTES = 8
VOCABULARY, NEAR = b"registry/vocabulary/", b"registry/near/"

STATE, OWNER, TAG, PARENT, WORD, INITIAL = b"state", b"owner", b"tag", b"parent", b"word", b"initial"
"""The kinds of values that tasks are found by."""

_WORDS = bitmap_key(WORD, "")[:-1]
_MAX_TITLE_BYTES = 120


def number(value: int) -> bytes:
    """A position, an ordinal or a count in a key or a value."""
    return value.to_bytes(NUMBER_BYTES, "big")


def number_at(stored: bytes | None) -> int:
    """The number that `number` gave these bytes for; 0 for none."""
    return int.from_bytes(stored or b"", "big")


def title_place(title: str, ordinal: int) -> bytes:
    """Where a task stands in the order of titles: what comes behind `TITLE` in its key."""
    return title.casefold().encode()[:_MAX_TITLE_BYTES] + b"\0" + number(ordinal)


def initial(place: bytes) -> bytes:
    """How the title begins that has this `title_place`; in hex, the task's value of the kind `INITIAL`."""
    return place[:2]


@final
class Indexes:
    """Changes of the indexes of `state`: those of bitmaps and words are gathered until `store`."""

    covers = (b"registry/bits/", TOUCHED, VOCABULARY, NEAR)

    def __init__(self, state: State) -> None:
        self._state = state
        self._flips = Flips()

    def change(self, ordinal: int, before: Task | None, after: Task) -> None:
        """The task with this ordinal has become `after`; `before` is None if it was created."""
        state, place = self._state, number(ordinal)
        if before is None:
            state.put(ID + after.id.encode(), place)
            title = title_place(after.title, ordinal)
            state.put(TITLE + title, b"")
            self._flips.flip(bitmap_key(INITIAL, initial(title).hex()), ordinal)
            self._flips.flip(bitmap_key(OWNER, after.owner), ordinal)
            if after.parent is not None:
                self._flips.flip(bitmap_key(PARENT, after.parent), ordinal)
        else:
            state.delete(UPDATED + number(before.updated_at))
        state.put(UPDATED + number(after.updated_at), place)
        if before is None or before.updated_at >> BUCKET_BITS != after.updated_at >> BUCKET_BITS:
            for each in (before, after):
                if each is not None:
                    self._flips.flip_at(touched_key(ordinal >> CHUNK_BITS, each.updated_at), ordinal)
        if before is None or before.state is not after.state:
            for each in (before, after):
                if each is not None:
                    self._flips.flip(bitmap_key(STATE, each.state), ordinal)
        if before is None or before.tags != after.tags:
            old = frozenset[str]() if before is None else frozenset(before.tags)
            for tag in old.symmetric_difference(after.tags):
                self._flips.flip(bitmap_key(TAG, tag), ordinal)
            known = frozenset[str]() if before is None else words(before.title, *before.tags)
            for word in known ^ words(after.title, *after.tags):
                self._flips.flip(bitmap_key(WORD, word), ordinal)
        if after.pending:
            state.put(PENDING + after.id.encode(), b"")
        elif before is not None and before.pending:
            state.delete(PENDING + after.id.encode())
        housed = before is not None and before.container is not None
        if after.container is not None and not housed:
            state.put(HOUSED + after.id.encode(), b"")
        elif after.container is None and housed:
            state.delete(HOUSED + after.id.encode())

    def store(self) -> None:
        """Store what was gathered."""
        chunks: dict[bytes, int] = {}
        for bitmap, change in self._flips.store(self._state):
            if bitmap.startswith(_WORDS):
                word = bitmap[len(_WORDS) : -1]
                chunks[word] = chunks.get(word, 0) + change
        for word, change in chunks.items():
            self._count(word, change)

    def _count(self, word: bytes, change: int) -> None:
        """The word stands in so many chunks more."""
        state = self._state
        before = number_at(state.get(VOCABULARY + word))
        after = before + change
        if after:
            state.put(VOCABULARY + word, number(after))
        elif before:
            state.delete(VOCABULARY + word)
        if (before == 0) == (after == 0):
            return
        for form in neighbourhood(word.decode()):
            key = NEAR + form.encode() + b"\0" + word
            if after:
                state.put(key, b"")
            else:
                state.delete(key)
