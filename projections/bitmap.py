"""Sets of tasks as bitmaps: which tasks have a value, one bit a task.

A task's bit is its *ordinal*: how many tasks were created before it. A value's bitmap is cut into chunks of `CHUNK`
bits, and only chunks that hold a bit are stored, the sparse ones as lists of two-byte offsets (as in Roaring bitmaps,
Chambi et al., https://arxiv.org/abs/1402.6407, but without its runs). The stored form follows from the set alone,
however it came about. So any combination of values is answered by ands and ors of about a hundred integers at a million
tasks, also one that nothing has.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import final

from blake3 import blake3

from sandkeep.projections.projection import State, StateView

CHUNK_BITS = 13
CHUNK = 1 << CHUNK_BITS
"""How many tasks one stored value tells of."""

BUCKET_BITS = 12
BUCKET = 1 << BUCKET_BITS
"""How many positions are one value, in the bitmaps of when tasks were last updated."""

TOUCHED = b"registry/touched/"

TaskSet = Callable[[int], int]
"""A set of tasks: from the number of a chunk to its bits."""

_MAX_LISTED = 32
_MAX_VALUE_BYTES = 200
_OFFSET = struct.Struct(">H")
_NUMBER = struct.Struct(">I")


@lru_cache(maxsize=4096)
def bitmap_key(kind: bytes, value: str) -> bytes:
    """What the keys of a value's chunks begin with. Values too long for a key are told apart by their digest."""
    name = value.encode("utf-8", "surrogatepass")  # so that one may ask for what no event can hold
    if len(name) > _MAX_VALUE_BYTES:
        name = name[: _MAX_VALUE_BYTES // 2] + blake3(name).digest()
    return b"registry/bits/" + kind + b"/" + name + b"\0"


@final
class Flips:
    """Bits to be flipped, gathered so that each chunk is read and written once. One that is flipped twice stays."""

    def __init__(self) -> None:
        self._flips: dict[bytes, list[int]] = {}

    def flip(self, bitmap: bytes, ordinal: int) -> None:
        """Put the task into the set with this `bitmap_key`, or take it out if it is there."""
        self.flip_at(bitmap + _NUMBER.pack(ordinal >> CHUNK_BITS), ordinal)

    def flip_at(self, key: bytes, ordinal: int) -> None:
        """The same in the chunk under `key`."""
        self._flips.setdefault(key, []).append(ordinal & (CHUNK - 1))

    def store(self, state: State) -> Iterator[tuple[bytes, int]]:
        """Flip them in `state`. Yields the bitmap key of each chunk that came to be, with 1, or ceased, with -1."""
        for key, places in self._flips.items():
            before = state.get(key)
            after = _flipped(before, places)
            if after is not None:
                state.put(key, after)
            elif before is not None:
                state.delete(key)
            if (after is None) != (before is None):
                yield key[: -_NUMBER.size], 1 if before is None else -1


def _flipped(stored: bytes | None, places: list[int]) -> bytes | None:
    """The chunk in its stored form with these bits flipped; None if it is empty."""
    if len(places) == 1:
        place = places[0]
        if stored is None:
            return _OFFSET.pack(place)
        byte, bit = place >> 3, 1 << (place & 7)
        # One more bit in a chunk of many: the one change that is made all the time.
        if len(stored) > 2 * _MAX_LISTED and (byte >= len(stored) or not stored[byte] & bit):
            changed = bytearray(stored.ljust(byte + 1, b"\0"))
            changed[byte] |= bit
            return bytes(changed)
    bits = decode(stored)
    for place in places:
        bits ^= 1 << place
    return encode(bits) if bits else None


def encode(bits: int) -> bytes:
    """The stored form of a chunk that is not empty: offsets if there are few, else bits, least significant first."""
    if bits.bit_count() <= _MAX_LISTED:
        found = list(offsets(bits))
        return struct.pack(f">{len(found)}H", *found)
    # Longer than any list, which is how they are told apart.
    return bits.to_bytes(max(2 * _MAX_LISTED + 1, (bits.bit_length() + 7) // 8), "little")


def decode(stored: bytes | None) -> int:
    """The bits of a stored chunk."""
    if stored is None:
        return 0
    if len(stored) > 2 * _MAX_LISTED:
        return int.from_bytes(stored, "little")
    bits = 0
    for offset in struct.unpack(f">{len(stored) // 2}H", stored):
        bits |= 1 << offset
    return bits


def offsets(bits: int, *, descending: bool = False) -> Iterator[int]:
    """The numbers of the bits that are set, lowest first unless `descending`."""
    # Word by word, since each step with a number as long as a chunk would copy all of it.
    count = (bits.bit_length() + 63) // 64
    words = struct.unpack(f"<{count}Q", bits.to_bytes(count * 8, "little"))
    for place in range(len(words) - 1, -1, -1) if descending else range(len(words)):
        word = words[place]
        while word:
            offset = (word if descending else word & -word).bit_length() - 1
            yield (place << 6) + offset
            word ^= 1 << offset


def touched_key(chunk: int, position: int) -> bytes:
    """Where those tasks of a chunk are that were last updated in the same `BUCKET` of positions as `position`."""
    return TOUCHED + _NUMBER.pack(chunk) + _NUMBER.pack(position >> BUCKET_BITS)


def touched(state: StateView, chunk: int, first: int, end: int) -> Iterator[tuple[int, int]]:
    """The buckets of a chunk that hold positions from `first` to before `end`, in order, each with its tasks."""
    for key, stored in state.scan(TOUCHED + _NUMBER.pack(chunk), start=touched_key(chunk, first)):
        bucket = _NUMBER.unpack(key[-_NUMBER.size :])[0]
        if bucket << BUCKET_BITS >= end:
            return
        yield bucket, decode(stored)


def touched_in(state: StateView, first: int, end: int) -> TaskSet:
    """The tasks last updated from `first` to before `end`, and some that were shortly before or after."""

    def union(chunk: int) -> int:
        bits = 0
        for _, found in touched(state, chunk, first, end):
            bits |= found
        return bits

    return union


def having(state: StateView, kind: bytes, value: str) -> TaskSet:
    """The tasks with this value."""
    bitmap = bitmap_key(kind, value)
    return lambda chunk: decode(state.get(bitmap + _NUMBER.pack(chunk)))


def given(chunks: Mapping[int, int]) -> TaskSet:
    """The tasks in these chunks, by their numbers."""
    return lambda chunk: chunks.get(chunk, 0)


def any_of(sets: Sequence[TaskSet]) -> TaskSet:
    """The tasks in at least one of `sets`."""

    def union(chunk: int) -> int:
        bits = 0
        for each in sets:
            bits |= each(chunk)
        return bits

    return union


def all_of(sets: Sequence[TaskSet]) -> TaskSet:
    """The tasks in every one of `sets`, of which there is one at least."""

    def intersection(chunk: int) -> int:
        bits = sets[0](chunk)
        for each in sets[1:]:
            if not bits:
                break
            bits &= each(chunk)
        return bits

    return intersection


def between(first: int, end: int) -> TaskSet:
    """The tasks with ordinals from `first` to before `end`."""

    def within(chunk: int) -> int:
        base = chunk << CHUNK_BITS
        low, high = (min(max(bound - base, 0), CHUNK) for bound in (first, end))
        return (1 << high) - (1 << low) if low < high else 0

    return within


def remembered(tasks: TaskSet) -> TaskSet:
    """The same set, that computes each chunk once."""
    known: dict[int, int] = {}

    def look(chunk: int) -> int:
        if chunk not in known:
            known[chunk] = tasks(chunk)
        return known[chunk]

    return look


def ordinals(tasks: TaskSet, first: int, end: int, *, descending: bool = False) -> Iterator[int]:
    """The members from `first` to before `end`, in order."""
    if first >= end:
        return
    bounds, chunks = between(first, end), range(first >> CHUNK_BITS, ((end - 1) >> CHUNK_BITS) + 1)
    for chunk in reversed(chunks) if descending else chunks:
        bits = tasks(chunk)
        if bits and chunk in (chunks[0], chunks[-1]):
            bits &= bounds(chunk)
        base = chunk << CHUNK_BITS
        for offset in offsets(bits, descending=descending):
            yield base + offset


def contains(tasks: TaskSet, ordinal: int) -> bool:
    """Whether the task is a member."""
    return bool(tasks(ordinal >> CHUNK_BITS) >> (ordinal & (CHUNK - 1)) & 1)
