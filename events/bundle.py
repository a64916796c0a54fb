"""The file that an auditor gets: records, notes, proofs and blobs, in one pass and bounded memory.

    "sandkeep audit bundle 1\\n", then entries: length, 4 bytes, big-endian | a msgpack array [kind, ...]

    header  first, last, stream, blobs     what is in the bundle: positions, those of one stream only or null, content
    note    note, proof                    a signed note, and that its tree begins with that of the note before
    record  record, proof                  exact bytes; the proof is empty in a bundle of all records, which is its own
    tree    digest                         a checkpoint's manifest; its content follows
    blob    digest                         other content of the records and trees; it follows
    data    bytes                          a piece of content (one zstd frame in all); an empty one ends it
    end

in this order. Kinds that a version does not know are refused. A proof is a list of hashes (see `merkle`).

A bundle comes from anybody. `read` takes nothing into memory before its length is known to be within bounds, gives
entries only in an order that the format has, and never more than one at a time; nothing in a bundle is ever used as a
path. What the entries *say* is for `audit` to judge.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, BinaryIO

import msgspec
from blake3 import blake3

from sandkeep.events.errors import BlobDamaged, BundleDamaged, NotABundle
from sandkeep.events.schema import NOT_DECODED

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"sandkeep audit bundle 1\n"
MAX_ENTRY_BYTES = 2 << 20
"""More than the largest note, record or piece of content takes."""

PIECE_BYTES = 1 << 20
_LEVEL = 1
_MAX_WINDOW_LOG = 23  # 8 MiB: what decompressing takes at most, and all that our own level asks for
_LENGTH = struct.Struct(">I")

Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Proof = Annotated[tuple[Hash, ...], msgspec.Meta(max_length=128)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Position = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class _Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Header(_Entry, frozen=True, tag="header"):
    """What the bundle holds: the records from `first` to `last`, or of them only those of `stream`."""

    first: Position
    last: Position
    stream: str | None
    blobs: bool


class Note(_Entry, frozen=True, tag="note"):
    """A published note, and the proof that its tree begins with that of the note before."""

    note: bytes
    proof: Proof


class Leaf(_Entry, frozen=True, tag="record"):
    """A record's exact bytes, and the proof that the newest note vouches for them."""

    record: bytes
    proof: Proof


class Tree(_Entry, frozen=True, tag="tree"):
    """A manifest follows."""

    digest: Digest


class Blob(_Entry, frozen=True, tag="blob"):
    """Other content follows."""

    digest: Digest


class Data(_Entry, frozen=True, tag="data"):
    """A piece of content."""

    data: bytes


class End(_Entry, frozen=True, tag="end"):
    """Nothing follows."""


Entry = Header | Note | Leaf | Tree | Blob | Data | End

_ORDER: dict[type[Entry], int] = {Header: 0, Note: 1, Leaf: 2, Tree: 3, Blob: 4, End: 5}
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)


def write(file: BinaryIO, entries: Iterable[Entry]) -> None:
    """Write a bundle; `entries` are in the order of the format, from the header to the end."""
    file.write(MAGIC)
    for entry in entries:
        encoded = _encode(entry)
        file.write(_LENGTH.pack(len(encoded)) + encoded)


def pack(chunks: Iterable[bytes]) -> Iterator[Data]:
    """Content as entries."""
    compressor = zstd.ZstdCompressor(level=_LEVEL)
    for chunk in chunks:
        # What comes out of one chunk can be a little longer than the chunk, so it is cut as well.
        yield from _cut(compressor.compress(chunk))
    yield from _cut(compressor.flush())
    yield Data(b"")


def _cut(data: bytes) -> Iterator[Data]:
    for at in range(0, len(data), PIECE_BYTES):
        yield Data(data[at : at + PIECE_BYTES])


def read(file: BinaryIO) -> Iterator[Entry]:
    """The entries of a bundle, from its header to its end.

    Raises `NotABundle` unless it begins as a bundle does, and `BundleDamaged` if it does not go on so.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise NotABundle("that is no audit bundle of this version; 'sandkeep audit export' makes one")
    number = at = 0
    content = False
    while True:
        try:
            entry = _read_entry(file)
        except BundleDamaged as error:
            if number == 0:
                raise NotABundle(f"the audit bundle has no header: {error}") from error
            raise BundleDamaged(f"entry {number} of the bundle: {error}") from error
        if number == 0 and not isinstance(entry, Header):
            raise NotABundle("the audit bundle does not begin with its header")
        place = _ORDER.get(type(entry), at)
        if isinstance(entry, Data) != content or place < at or (number > 0 and isinstance(entry, Header)):
            raise BundleDamaged(f"entry {number} of the bundle is not where its kind belongs")
        at = place
        content = isinstance(entry, Tree | Blob) or (isinstance(entry, Data) and bool(entry.data))
        yield entry
        if isinstance(entry, End):
            if file.read(1):
                raise BundleDamaged("something follows the end of the bundle")
            return
        number += 1


def _read_entry(file: BinaryIO) -> Entry:
    prefix = file.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        raise BundleDamaged("the bundle is cut short")
    length: int = _LENGTH.unpack(prefix)[0]
    if length > MAX_ENTRY_BYTES:
        raise BundleDamaged(f"an entry claims {length} bytes, more than {MAX_ENTRY_BYTES}")
    encoded = file.read(length)
    if len(encoded) < length:
        raise BundleDamaged("the bundle is cut short")
    try:
        return _decoder.decode(encoded)
    except NOT_DECODED as error:
        raise BundleDamaged(f"it cannot be decoded: {error}") from error


def unpack(entries: Iterator[Entry], digest: str, limit: int) -> Iterator[bytes]:
    """The content that comes next in `entries`, at most `limit` bytes of it; all of its pieces are taken.

    Raises `BlobDamaged` at the end if it is not what `digest` names, so nothing given before is to be relied on, and
    what `read` raises.
    """
    hasher, size, wrong = blake3(), 0, False
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})
    for entry in entries:
        assert isinstance(entry, Data)
        if not entry.data:
            break
        data, wrong = entry.data, wrong or decompressor.eof
        while not wrong:
            try:
                piece = decompressor.decompress(data, max_length=PIECE_BYTES)
            except zstd.ZstdError:
                wrong = True
                break
            data = b""
            size += len(piece)
            wrong = size > limit or bool(decompressor.unused_data)
            hasher.update(piece)
            if not wrong:
                yield piece
            if decompressor.eof or decompressor.needs_input:
                break
    if wrong or not decompressor.eof or hasher.hexdigest() != digest:
        raise BlobDamaged(f"the content given for blob {digest} is not what that digest names")
