from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.projections import MemoryState, bitmap
from sandkeep.projections.bitmap import CHUNK, Flips

ORDINALS = st.sets(st.integers(0, 4 * CHUNK) | st.sampled_from([0, CHUNK - 1, CHUNK, 2 * CHUNK - 1]), max_size=80)
KEY = bitmap.bitmap_key(b"tag", "x")


def holding(*ordinals: int) -> MemoryState:
    state = MemoryState()
    flips = Flips()
    for ordinal in ordinals:
        flips.flip(KEY, ordinal)
    list(flips.store(state))
    return state


@given(st.sets(st.integers(0, CHUNK - 1), min_size=1) | st.just(set(range(CHUNK))))
def test_a_chunk_is_stored_and_read(offsets: set[int]) -> None:
    bits = sum(1 << offset for offset in offsets)
    stored = bitmap.encode(bits)
    assert bitmap.decode(stored) == bits
    assert len(stored) <= CHUNK // 8
    assert len(stored) == 2 * len(offsets) or len(offsets) > 32
    assert list(bitmap.offsets(bits)) == sorted(offsets)
    assert list(bitmap.offsets(bits, descending=True)) == sorted(offsets, reverse=True)


@given(st.sets(st.integers(0, 300), min_size=30), st.lists(st.integers(0, 400), max_size=20))
def test_bits_are_flipped_one_at_a_time_as_well_as_all_at_once(ordinals: set[int], later: list[int]) -> None:
    state = holding(*ordinals)
    for ordinal in later:
        flips = Flips()
        flips.flip(KEY, ordinal)
        list(flips.store(state))
        ordinals = ordinals ^ {ordinal}
        assert list(state.scan(b"")) == list(holding(*ordinals).scan(b""))


@given(ORDINALS, ORDINALS)
def test_the_stored_form_follows_from_the_set_alone(one: set[int], other: set[int]) -> None:
    state, flips = holding(*one), Flips()
    for ordinal in one ^ other:
        flips.flip(KEY, ordinal)
    came_and_went = list(flips.store(state))
    assert list(state.scan(b"")) == list(holding(*other).scan(b""))
    chunks = [{ordinal // CHUNK for ordinal in each} for each in (one, other)]
    assert sorted(came_and_went) == sorted((KEY, 1 if chunk in chunks[1] else -1) for chunk in chunks[0] ^ chunks[1])


@given(ORDINALS, ORDINALS, st.integers(0, 5 * CHUNK), st.integers(0, 5 * CHUNK))
def test_sets_are_combined_as_sets_are(one: set[int], other: set[int], first: int, end: int) -> None:
    left, right = (bitmap.having(holding(*each), b"tag", "x") for each in (one, other))
    inside = set(range(first, end))

    def found(tasks: bitmap.TaskSet, *, descending: bool = False) -> list[int]:
        return list(bitmap.ordinals(tasks, first, end, descending=descending))

    assert found(bitmap.any_of([left, right])) == sorted((one | other) & inside)
    assert found(bitmap.all_of([left, right]), descending=True) == sorted(one & other & inside, reverse=True)
    assert {ordinal for ordinal in one | other if bitmap.contains(left, ordinal)} == one
    whole = bitmap.between(first, end)
    assert list(bitmap.ordinals(bitmap.remembered(whole), 0, 6 * CHUNK)) == sorted(inside)


def test_a_set_that_is_remembered_is_computed_once() -> None:
    asked: list[int] = []

    def computed(chunk: int) -> int:
        asked.append(chunk)
        return 5

    tasks = bitmap.remembered(computed)
    assert [tasks(1), tasks(2), tasks(1)] == [5, 5, 5]
    assert asked == [1, 2]


@pytest.mark.parametrize("value", ["", "a", "a\0b", "é" * 300, "x" * 201, "x" * 200])
def test_any_value_has_a_key_of_its_own_that_lmdb_takes(value: str) -> None:
    others = ["", "a", "a\0b", "é" * 300, "x" * 201, "x" * 200, "é" * 300 + "z", "x" * 201 + "z"]
    assert len(bitmap.bitmap_key(b"owner", value)) < 300
    assert [other for other in others if bitmap.bitmap_key(b"owner", other) == bitmap.bitmap_key(b"owner", value)] == [
        value
    ]


def test_when_tasks_were_touched_is_told_by_buckets() -> None:
    state, flips = MemoryState(), Flips()
    for place, position in enumerate((0, bitmap.BUCKET - 1, bitmap.BUCKET, 5 * bitmap.BUCKET)):
        flips.flip_at(bitmap.touched_key(1, position), CHUNK + place)
    list(flips.store(state))
    assert [bucket for bucket, _ in bitmap.touched(state, 1, 0, 9 * bitmap.BUCKET)] == [0, 1, 5]
    assert [bucket for bucket, _ in bitmap.touched(state, 1, bitmap.BUCKET, 5 * bitmap.BUCKET)] == [1]
    assert bitmap.touched_in(state, 0, 1)(1) == 0b11
    assert bitmap.touched_in(state, 1, 10**9)(1) == 0b1111
    assert bitmap.touched_in(state, 0, 10**9)(0) == 0
