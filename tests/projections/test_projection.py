from __future__ import annotations

import tempfile

import lmdb
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import Record
from sandkeep.projections import MemoryState, State, digest, fold
from sandkeep.projections.lmdb_state import LmdbState, ReadOnly

from ..events.support import done
from .support import records

KEYS = st.sampled_from([b"a/", b"a/1", b"a/12", b"a/2", b"b/1", b"a0", b"\xff\xff"])
CHANGES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=3)), max_size=20)


class Named:
    """Keeps, under its name, the positions that it was given."""

    version = 1

    def __init__(self, name: str) -> None:
        self.name = name

    def apply(self, state: State, record: Record) -> None:
        state.put(f"{self.name}/{record.position}".encode(), record.stream.encode())


def holding(*entries: tuple[bytes, bytes]) -> MemoryState:
    state = MemoryState()
    for key, value in entries:
        state.put(key, value)
    return state


@given(CHANGES)
def test_a_state_in_memory_and_one_in_lmdb_behave_alike(changes: list[tuple[bytes, bytes | None]]) -> None:
    memory = MemoryState()
    with tempfile.TemporaryDirectory() as folder, lmdb.open(folder) as env, env.begin(write=True) as txn:
        stored = LmdbState(txn)
        for key, value in changes:
            for state in (memory, stored):
                if value is None:
                    state.delete(key)
                else:
                    state.put(key, value)
        half = len(changes) // 2
        overlaid = MemoryState(holding_all(changes[:half]))
        for key, value in changes[half:]:
            overlaid.delete(key) if value is None else overlaid.put(key, value)
        for prefix in (b"a/", b"a/1", b"b", b"c", b"\xff"):
            for start in (None, prefix, prefix + b"1", prefix + b"\xff"):
                for descending in (False, True):
                    expected = list(stored.scan(prefix, start=start, descending=descending))
                    assert expected == sorted(expected, reverse=descending)
                    for other in (memory, overlaid, ReadOnly(stored)):
                        assert list(other.scan(prefix, start=start, descending=descending)) == expected
            assert memory.get(prefix) == stored.get(prefix)
        kept = {key: value for key, value in dict(changes).items() if value is not None and key.startswith(b"a/")}
        assert list(memory.scan(b"a/")) == sorted(kept.items())
        assert digest([Named("a")], memory) == digest([Named("a")], stored)


def holding_all(changes: list[tuple[bytes, bytes | None]]) -> MemoryState:
    state = MemoryState()
    for key, value in changes:
        state.delete(key) if value is None else state.put(key, value)
    return state


@given(CHANGES, CHANGES)
def test_what_was_put_and_not_yet_written_is_read(
    before: list[tuple[bytes, bytes | None]], after: list[tuple[bytes, bytes | None]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, lmdb.open(folder) as env, env.begin(write=True) as txn:
        stored = LmdbState(txn)
        for key, value in before:
            stored.delete(key) if value is None else stored.put(key, value)
        stored.flush()
        for key, value in after:
            stored.delete(key) if value is None else stored.put(key, value)
        expected = dict(holding_all([*before, *after]).scan(b""))
        keys = {key for key, _ in [*before, *after]}
        assert {key: stored.get(key) for key in keys} == {key: expected.get(key) for key in keys}
        stored.flush()
        assert dict(txn.cursor()) == expected


def test_equal_states_have_equal_digests_however_they_came_about() -> None:
    one, other = holding((b"a/1", b"x"), (b"a/2", b"y")), holding((b"a/2", b"z"), (b"a/3", b""), (b"a/1", b"x"))
    assert digest([Named("a")], one) != digest([Named("a")], other)
    other.put(b"a/2", b"y")
    other.delete(b"a/3")
    other.delete(b"a/4")
    assert digest([Named("a")], one) == digest([Named("a")], other)


def test_a_digest_tells_where_keys_and_values_end() -> None:
    digests = {digest([Named("a")], holding(*entries)) for entries in SIMILAR}
    assert len(digests) == len(SIMILAR)


SIMILAR: list[tuple[tuple[bytes, bytes], ...]] = [
    (),
    ((b"a/", b"bc"),),
    ((b"a/b", b"c"),),
    ((b"a/bc", b""),),
    ((b"a/b", b""), (b"a/c", b"")),
]


def test_a_digest_covers_the_named_projections_in_any_order() -> None:
    state = holding((b"a/1", b"x"), (b"b/1", b"y"), (b"ab/1", b"z"), (b"!position", b"8"))
    both = digest([Named("a"), Named("b")], state)
    assert both == digest([Named("b"), Named("a")], state)
    assert both != digest([Named("a")], state)
    state.put(b"ab/1", b"other")
    state.put(b"!position", b"9")
    assert both == digest([Named("a"), Named("b")], state)


def test_a_fold_gives_each_record_to_each_projection_and_tells_the_last_position() -> None:
    state = MemoryState()
    facts = records(zip(["task/a", "keep"], done("1", "2"), strict=True))
    assert fold([Named("a"), Named("b")], facts, state) == 2
    assert dict(state.scan(b"")) == {b"a/1": b"task/a", b"a/2": b"keep", b"b/1": b"task/a", b"b/2": b"keep"}
    assert fold([Named("a")], [], state) == 0
