"""Records and frames as bytes.

A *record* is an event in its envelope. A *frame* is the records of one commit, stored as one value:

    magic "skf1" | first position, 8 bytes | count, 4 bytes | previous checksum, 32 | checksum, 32 | body

All integers are big-endian; the body is a msgpack array of records. The checksum is BLAKE3 over the previous
frame's checksum, the log's id, the first position, the count and the body, so a scan locates the first damaged
byte and no frame can be moved within a log or into another one. Each frame also holds its predecessor's
checksum, so that frames behind a damaged one still verify by themselves.

The bytes that were stored are what is hashed: nothing is decoded and encoded again to be checked. This also holds for
a single record: its bytes are its element of the body's array, and the data of its leaf in the log's Merkle tree.
Everything here is pure and safe to call from any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec
from blake3 import blake3

from sandkeep.events import schema
from sandkeep.events.errors import LogDamaged

GENESIS = bytes(32)
"""The checksum that the first frame of a log follows."""

_MAGIC = b"skf1"
_HEADER = struct.Struct(">4sQI32s32s")
_PLACE = struct.Struct(">QI")

HEADER_BYTES = _HEADER.size
"""What stands before the body of a stored frame."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event in its envelope.

    `position` counts all events of the log and `revision` those of the stream, both from 1 without gaps.
    `time_ns` is the writer's wall clock in nanoseconds since 1970, never less than the record before.
    `cause` is the position of the record that led to this one; `key` is the caller's idempotency key.
    """

    position: int
    stream: str
    revision: int
    time_ns: int
    actor: str
    cause: int | None
    key: str | None
    type: str
    version: int
    data: msgspec.Raw

    @property
    def event(self) -> schema.Event:
        """The event itself, decoded anew at each call. Raises `BadEvent` if the body does not fit its type."""
        return schema.decode(self.type, self.version, self.data)


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A frame whose own checksum has been found right. `body` holds the encoded records."""

    first: int
    count: int
    previous: bytes
    checksum: bytes
    body: bytes

    @property
    def last(self) -> int:
        """The position of the last record in the frame."""
        return self.first + self.count - 1

    def records(self) -> list[Record]:
        """The records. Raises `LogDamaged` if they are not the ones the header announces."""
        try:
            records = _decoder.decode(self.body)
        except schema.NOT_DECODED as error:
            raise LogDamaged(f"the frame at position {self.first} cannot be decoded: {error}") from error
        if self.count == 1 == len(records):  # the common frame, for which building two lists would double the cost
            dense = records[0].position == self.first
        else:
            dense = [record.position for record in records] == list(range(self.first, self.first + self.count))
        if not dense:
            raise LogDamaged(f"the frame at position {self.first} does not hold {self.count} records in order")
        return records

    def leaves(self) -> list[bytes]:
        """The exact bytes of each record, in order. Raises `LogDamaged` if there are not as many as announced."""
        try:
            leaves = _leaf_decoder.decode(self.body)
        except schema.NOT_DECODED as error:
            raise LogDamaged(f"the frame at position {self.first} cannot be decoded: {error}") from error
        if len(leaves) != self.count:
            raise LogDamaged(f"the frame at position {self.first} does not hold {self.count} records")
        return [bytes(leaf) for leaf in leaves]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])
_leaf_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])
_record_decoder = msgspec.msgpack.Decoder(Record)


def checksum(previous: bytes, log_id: bytes, first: int, count: int, body: bytes) -> bytes:
    """The chained checksum of a frame: 32 bytes."""
    return blake3(b"".join((previous, log_id, _PLACE.pack(first, count), body))).digest()


def encode_frame(records: Sequence[Record], previous: bytes, log_id: bytes) -> tuple[bytes, bytes]:
    """The stored form of a frame, and its checksum."""
    first, count = records[0].position, len(records)
    body = _encoder.encode(records)
    digest = checksum(previous, log_id, first, count, body)
    return _HEADER.pack(_MAGIC, first, count, previous, digest) + body, digest


def stored(frame: Frame) -> bytes:
    """The stored form of a frame that was read before: the very same bytes."""
    return _HEADER.pack(_MAGIC, frame.first, frame.count, frame.previous, frame.checksum) + frame.body


def stored_first(value: bytes) -> int:
    """The position that a stored frame claims to begin at, unchecked; 0 if it is cut short."""
    return _HEADER.unpack_from(value)[1] if len(value) >= _HEADER.size else 0


def stored_checksum(value: bytes) -> bytes:
    """The checksum that a stored frame claims, unchecked."""
    return value[_HEADER.size - 32 : _HEADER.size]


def decode_frame(value: bytes, log_id: bytes, first: int) -> Frame:
    """The frame stored as `value` under position `first`.

    Raises `LogDamaged` if its checksum, magic or place do not hold. Its link to the frame before is for the
    caller to check.
    """
    if len(value) < _HEADER.size:
        raise LogDamaged(f"the frame at position {first} is cut short")
    magic, stored_first, count, previous, digest = _HEADER.unpack_from(value)
    if magic != _MAGIC or stored_first != first:
        raise LogDamaged(f"what is stored at position {first} is not the frame of that position")
    body = value[_HEADER.size :]
    if checksum(previous, log_id, first, count, body) != digest:
        raise LogDamaged(f"the frame at position {first} does not match its checksum")
    return Frame(first, count, previous, digest, body)


def decode_record(leaf: bytes) -> Record:
    """The record with these bytes, from wherever they come. Raises `LogDamaged` if they are no record's."""
    try:
        return _record_decoder.decode(leaf)
    except schema.NOT_DECODED as error:
        raise LogDamaged(f"what should be a record cannot be decoded: {error}") from error
