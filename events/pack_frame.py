"""The frames that packs consist of: several objects compressed as one, with their digests and lengths in front.

    head     magic, kind, level, number of objects, length of the payload, and unpacked; BLAKE3 of the payload
    table    digest and length of each object
    BLAKE3   of the pack's name, head and table
    payload  the objects one behind the other, as one zstd frame

So a frame describes itself without being unpacked, and every byte of it is under a checksum. The pack's name, which is
random and known to nobody who only gives content, is in the checksum: bytes that look like a frame, in content that
does not compress, are none. A frame of the kind `END` ends a batch; what none follows was never committed.
"""

from __future__ import annotations

import enum
import itertools
import os
import struct
import sys
from collections.abc import Iterator, Sequence

import msgspec
from blake3 import blake3

from sandkeep.events.errors import BlobDamaged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_OBJECTS = 4096
"""The most objects in one frame."""

ARCHIVE_LEVEL = 9
"""How hard zstd tries with what has lain for a while. A pack that begins with such a frame has no others."""

DIGEST_BYTES = 32

_MAGIC = b"\x93skpack\x01"
_MAX_BYTES = 256 << 20
_HEAD = struct.Struct(">8sBB2xIII32s")
_OBJECT = struct.Struct(">32sI")
_READ = 1 << 20


class Kind(enum.IntEnum):
    """What a frame holds: content, manifests, lists of the chunks that content is cut into, or nothing but an end."""

    CONTENT = 1
    TREES = 2
    RECIPES = 3
    END = 4


class Header(msgspec.Struct, frozen=True):
    """A frame without its payload: objects by digest and length, where the payload lies and how long the frame is;
    and how hard it was tried to make it small, which releases that had one level only did not write down (0)."""

    kind: Kind
    level: int
    objects: tuple[tuple[bytes, int], ...]
    payload: int
    stored: int
    raw: int
    checksum: bytes
    size: int


class Frame(msgspec.Struct, frozen=True):
    """A frame that was read whole and matches its checksum; what it holds, and where in that each object begins."""

    header: Header
    raw: bytes
    starts: tuple[int, ...]

    def content(self, number: int) -> bytes:
        """An object of it, by its number, as it was given to `encode`. Raises `BlobDamaged`."""
        digest, length = self.header.objects[number]
        content = self.raw[self.starts[number] : self.starts[number] + length]
        # A recipe is under the digest of the content that it leads to.
        if self.header.kind is not Kind.RECIPES and blake3(content).digest() != digest:
            raise BlobDamaged(f"{digest.hex()} does not match its digest; restore its pack from a copy")
        return content


def encode(pack: bytes, kind: Kind, objects: Sequence[tuple[bytes, bytes]], level: int = 0) -> bytes:
    """The frame, in the pack of this name, that holds these objects, each with its digest."""
    raw = b"".join(content for _, content in objects)
    payload = zstd.compress(raw, level=level) if raw else b""
    head = _HEAD.pack(_MAGIC, kind, level, len(objects), len(payload), len(raw), blake3(payload).digest())
    head += b"".join(_OBJECT.pack(digest, len(content)) for digest, content in objects)
    return head + _checksum(pack, head) + payload


def read_header(file: int, pack: bytes, offset: int) -> Header:
    """The header of the frame at `offset` of the open `file`. Raises `BlobDamaged` and `OSError`."""
    first = os.pread(file, _HEAD.size + 64 * _OBJECT.size + DIGEST_BYTES, offset)
    try:
        magic, kind, level, count, stored, raw, checksum = _HEAD.unpack_from(first)
    except struct.error:
        raise _damaged(pack, offset, "it is cut short") from None
    if magic != _MAGIC or count > MAX_OBJECTS or max(stored, raw) > _MAX_BYTES:
        raise _damaged(pack, offset, "no frame begins there")
    length = _HEAD.size + count * _OBJECT.size
    if len(first) < length + DIGEST_BYTES:
        first = os.pread(file, length + DIGEST_BYTES, offset)
    head = first[:length]
    if first[length : length + DIGEST_BYTES] != _checksum(pack, head):
        raise _damaged(pack, offset, "its header does not match its checksum")
    objects = tuple(_OBJECT.iter_unpack(head[_HEAD.size :]))
    start = length + DIGEST_BYTES
    return Header(Kind(kind), level, objects, offset + start, stored, raw, checksum, start + stored)


def read(file: int, pack: bytes, offset: int) -> Frame:
    """The frame at `offset` of the open `file`. Raises `BlobDamaged` and `OSError`."""
    header = read_header(file, pack, offset)
    payload = read_payload(file, pack, offset, header)
    try:
        raw = zstd.decompress(payload) if payload else b""
    except zstd.ZstdError as error:  # only if what wrote it was broken: its checksum holds
        raise _damaged(pack, offset, str(error)) from error
    return Frame(header, raw, tuple(itertools.accumulate((length for _, length in header.objects), initial=0)))


def read_payload(file: int, pack: bytes, offset: int, header: Header) -> bytes:
    """The payload, still compressed and checked. Raises `BlobDamaged` and `OSError`."""
    payload = os.pread(file, header.stored, header.payload)
    if blake3(payload).digest() != header.checksum:
        raise _damaged(pack, offset, "it does not match its checksum")
    return payload


def committed(file: int, pack: bytes, start: int) -> tuple[list[tuple[int, Header]], int]:
    """The whole frames behind `start` in the open `file` that belong to a batch that was ended, each with its offset,
    and where the last such batch ends. What is damaged is passed over. Raises `OSError`."""
    found: list[tuple[int, Header]] = []
    kept, end = 0, start
    for offset, header in headers(file, pack, start):
        try:
            read_payload(file, pack, offset, header)
            found.append((offset, header))
        except BlobDamaged:
            pass  # what is in it counts as missing, and is stored again by whoever has it
        if header.kind is Kind.END:
            kept, end = len(found), offset + header.size
    return found[:kept], end


def headers(file: int, pack: bytes, start: int) -> Iterator[tuple[int, Header]]:
    """The frames behind `start` in the open `file` whose headers are whole, each with its offset; what is not is passed
    over. Raises `OSError`."""
    size, offset = os.fstat(file).st_size, start
    while offset < size:
        try:
            header = read_header(file, pack, offset)
        except BlobDamaged:
            offset = _next(file, offset + 1, size)
            continue
        yield offset, header
        offset += header.size


def is_archive(file: int, pack: bytes) -> bool:
    """Whether the open `file` is a pack for what has lain for a while. Raises `OSError`."""
    try:
        return read_header(file, pack, 0).level >= ARCHIVE_LEVEL
    except BlobDamaged:
        return False


def parts(recipe: bytes) -> list[bytes]:
    """The digests of the chunks that a recipe names, in order."""
    return [recipe[start : start + DIGEST_BYTES] for start in range(0, len(recipe), DIGEST_BYTES)]


def _next(file: int, offset: int, size: int) -> int:
    """Where something that may be a frame begins next; `size` if nothing does."""
    while offset < size:
        data = os.pread(file, _READ, offset)
        at = data.find(_MAGIC)
        if at >= 0:
            return offset + at
        offset += max(1, len(data) - len(_MAGIC) + 1)
    return size


def _checksum(pack: bytes, head: bytes) -> bytes:
    return blake3(pack + head).digest()


def _damaged(pack: bytes, offset: int, why: str) -> BlobDamaged:
    return BlobDamaged(f"the frame at {offset} of pack {pack.hex()} is damaged: {why}; restore the pack from a copy")
