from __future__ import annotations

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import LogDamaged, Record, codec, schema

from .strategies import TEXT, events
from .support import done

LOG_ID = bytes(range(16))
PREVIOUS = bytes(range(100, 132))
GOLDEN = (
    "736b6631"  # magic
    "0000000000000005"
    "00000002"  # first position, count
    "6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283"  # checksum of the frame before
    "57bca895abec2eb1521330724a18ddb4a60482cd65431d7b8f943a0845887eca"  # checksum
    "92"  # two records
    "9a"
    "05"
    "a67461736b2f61"
    "05"
    "11"
    "a26d65"
    "c0"
    "c0"
    "a4446f6e65"
    "01"
    "80"
    "9a"
    "06"
    "a67461736b2f61"
    "06"
    "11"
    "a26d65"
    "05"
    "a16b"
    "a4446f6e65"
    "01"
    "81a16101"
)


def record(position: int, data: bytes = b"\x80", *, key: str | None = None, cause: int | None = None) -> Record:
    return Record(position, "task/a", position, 17, "me", cause, key, "Done", 1, msgspec.Raw(data))


RECORDS = [record(5), record(6, b"\x81\xa1a\x01", key="k", cause=5)]


def frame() -> bytes:
    return codec.encode_frame(RECORDS, PREVIOUS, LOG_ID)[0]


def test_a_frame_has_exactly_these_bytes() -> None:
    assert frame().hex() == GOLDEN


def test_the_checksum_covers_the_predecessor_the_log_the_place_and_the_body() -> None:
    body = frame()[80:]
    wanted = blake3(PREVIOUS + LOG_ID + (5).to_bytes(8, "big") + (2).to_bytes(4, "big") + body).digest()
    assert codec.stored_checksum(frame()) == wanted == codec.encode_frame(RECORDS, PREVIOUS, LOG_ID)[1]


def test_a_frame_gives_back_its_place_its_link_and_its_records() -> None:
    found = codec.decode_frame(frame(), LOG_ID, 5)
    assert (found.first, found.last, found.count, found.previous) == (5, 6, 2, PREVIOUS)
    assert [msgspec.structs.replace(r, data=msgspec.Raw(bytes(r.data))) for r in found.records()] == RECORDS
    assert [bytes(r.data) for r in found.records()] == [b"\x80", b"\x81\xa1a\x01"]


def test_every_change_of_any_single_byte_is_detected() -> None:
    whole = frame()
    for index, byte in enumerate(whole):
        for other in set(range(256)) - {byte}:
            damaged = whole[:index] + bytes([other]) + whole[index + 1 :]
            with pytest.raises(LogDamaged, match="position 5"):
                codec.decode_frame(damaged, LOG_ID, 5)


def test_a_frame_cut_at_any_length_or_made_longer_is_detected() -> None:
    whole = frame()
    for damaged in [*(whole[:length] for length in range(len(whole))), whole + b"\x00"]:
        with pytest.raises(LogDamaged):
            codec.decode_frame(damaged, LOG_ID, 5)


def test_a_frame_is_no_frame_of_another_place_or_another_log() -> None:
    with pytest.raises(LogDamaged, match="not the frame of that position"):
        codec.decode_frame(frame(), LOG_ID, 6)
    with pytest.raises(LogDamaged, match="does not match its checksum"):
        codec.decode_frame(frame(), bytes(16), 5)


def test_a_frame_moved_together_with_its_header_is_detected() -> None:
    moved = frame()[:4] + (9).to_bytes(8, "big") + frame()[12:]
    with pytest.raises(LogDamaged, match="does not match its checksum"):
        codec.decode_frame(moved, LOG_ID, 9)


def test_a_frame_linked_to_another_predecessor_is_detected() -> None:
    with pytest.raises(LogDamaged, match="does not match its checksum"):
        codec.decode_frame(frame()[:16] + codec.GENESIS + frame()[48:], LOG_ID, 5)


@pytest.mark.parametrize("positions", [[5], [5, 7], [6, 5], [5, 6, 7], []], ids=str)
def test_records_that_the_header_does_not_announce_are_damage(positions: list[int]) -> None:
    body = msgspec.msgpack.encode([record(position) for position in positions])
    found = codec.Frame(5, 2, PREVIOUS, codec.checksum(PREVIOUS, LOG_ID, 5, 2, body), body)
    with pytest.raises(LogDamaged, match="does not hold 2 records in order"):
        found.records()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91\x91\x01"], ids=repr)
def test_a_body_that_is_no_list_of_records_is_damage(body: bytes) -> None:
    with pytest.raises(LogDamaged, match="cannot be decoded"):
        codec.Frame(5, 1, PREVIOUS, PREVIOUS, body).records()


FACTS = st.lists(st.tuples(events(), TEXT, st.none() | TEXT), min_size=1, max_size=5)


@given(FACTS, st.integers(1, 2**40), st.binary())
def test_what_is_encoded_is_decoded(facts: list[tuple[schema.Event, str, str | None]], first: int, seed: bytes) -> None:
    log_id, previous = blake3(seed).digest(16), blake3(seed).digest()
    records = []
    for number, (fact, actor, key) in enumerate(facts):
        name, version, data = schema.encode(fact)
        records.append(Record(first + number, "s", 1, 0, actor, None, key, name, version, msgspec.Raw(data)))
    value, checksum = codec.encode_frame(records, previous, log_id)
    found = codec.decode_frame(value, log_id, first)
    assert (found.previous, found.checksum, found.count) == (previous, checksum, len(records))
    assert [(r.event, r.actor, r.key) for r in found.records()] == facts


def test_a_record_decodes_its_event_anew_at_each_call() -> None:
    name, version, data = schema.encode(done("x")[0])
    stored = Record(1, "s", 1, 0, "a", None, None, name, version, msgspec.Raw(data))
    assert stored.event == done("x")[0]
    assert stored.event is not stored.event
