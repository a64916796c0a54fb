"""One file of the journal: a text that people can read, and from which frames are rebuilt bit by bit.

    {"format":1,"log":ID,"first":POSITION,"previous":CHECKSUM,"boot":ID}                    the header
    {"position":P,"count":N,"txn":T,"previous":CHECKSUM,"checksum":CHECKSUM,"frame":BASE64} one line a frame
    {"seal":BLAKE3}                                                                         the trailer, once sealed

`first` and `previous` say where the segment begins; `boot` names the boot of the machine under which it was written,
and `txn` the LMDB transaction the frame was meant for. `frame` is the frame's body as the log stores it, and the seal
is the BLAKE3 of all bytes before it. A sealed segment is compressed with zstd, whole.

A line counts only if it is, byte for byte, what this module writes, and its checksum holds: a line behind a damaged
one is still good by itself. Files are read, never mapped, so nothing in them can end the reader. Everything here is
free of state and safe to call from any thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import sys
from binascii import b2a_base64
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import msgspec
from blake3 import blake3

from sandkeep.events import codec
from sandkeep.events.codec import Frame
from sandkeep.events.durable import private, sync_folder
from sandkeep.events.errors import LogDamaged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT = 1
"""The version of the format above."""

_LEVEL = 1
_CHUNK = 1 << 20
_TAIL = 64 << 10
_MAX_LINE = 128 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(\d{20})\.jsonl(\.zst)?")


class Header(msgspec.Struct, frozen=True):
    """The first line of a segment."""

    format: int
    log: str
    first: int
    previous: str
    boot: str


class Line(msgspec.Struct, frozen=True):
    """A line that holds a frame; `frame` is its body."""

    position: int
    count: int
    txn: int
    previous: str
    checksum: str
    frame: bytes


class Trailer(msgspec.Struct, frozen=True):
    """The last line of a sealed segment."""

    seal: str


class Entry(msgspec.Struct, frozen=True):
    """A frame found in a segment, and the transaction it was meant for."""

    frame: Frame
    txn: int


Found = Header | Entry | Trailer | LogDamaged
"""What a line of a segment turns out to be."""

encode = msgspec.json.Encoder().encode
_header = msgspec.json.Decoder(Header).decode
_line = msgspec.json.Decoder(Line).decode
_trailer = msgspec.json.Decoder(Trailer).decode


def encode_line(first: int, count: int, txn: int, previous: bytes, checksum: bytes, body: bytes) -> bytes:
    """The line of a frame. On the path of every commit, hence by hand."""
    return b'{"position":%d,"count":%d,"txn":%d,"previous":"%s","checksum":"%s","frame":"%s"}\n' % (
        first, count, txn, previous.hex().encode(), checksum.hex().encode(), b2a_base64(body, newline=False),
    )  # fmt: skip


def decode_line(raw: bytes, log_id: bytes) -> Header | Entry | Trailer:
    """What the line `raw` holds. Raises `LogDamaged` if it is not exactly what was written.

    A seal is only decoded, since it is about all lines before it.
    """
    try:
        if raw.startswith(b'{"position"'):
            line = _line(raw)
            previous, digest = bytes.fromhex(line.previous), bytes.fromhex(line.checksum)
            whole = encode_line(line.position, line.count, line.txn, previous, digest, line.frame) == raw
            if whole and codec.checksum(previous, log_id, line.position, line.count, line.frame) == digest:
                return Entry(Frame(line.position, line.count, previous, digest, line.frame), line.txn)
            raise LogDamaged(f"the line of position {line.position} does not match its checksum")
        found = _header(raw) if raw.startswith(b'{"format"') else _trailer(raw)
        if encode(found) + b"\n" == raw:
            return found
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise LogDamaged(f"a line cannot be read: {error}") from error
    raise LogDamaged("a line is not what was written")


def name(first: int) -> str:
    """The file name of a plain segment."""
    return f"{first:020d}.jsonl"


def first_of(path: Path) -> int:
    """The position that a segment's file name begins with."""
    return int(path.name[:20])


def listed(folder: Path) -> list[Path]:
    """The segments in `folder`, in order. Of one that is there twice, the compressed one, which was made last."""
    names = sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name)) if folder.is_dir() else []
    return [folder / found for found in {name[:20]: name for name in names}.values()]


def header(path: Path) -> Header | None:
    """The header of a segment, or None if it cannot be read."""
    first = next(found(path, b""), None)
    return first if isinstance(first, Header) else None


def tail(path: Path) -> list[tuple[int, bytes]]:
    """At least the last two lines of a plain segment, and where each begins; one empty line if the file is empty."""
    size = path.stat().st_size
    length = _TAIL
    with open(path, "rb") as file:
        while True:
            start = max(0, size - length)
            file.seek(start)
            content = file.read(size - start)
            lines = [line + b"\n" for line in content.split(b"\n")]
            lines[-1] = lines[-1][:-1]
            lines = lines if lines[-1] else lines[:-1]
            if start and len(lines) < 3:
                length *= 4
                continue
            offsets = itertools.accumulate(map(len, lines), initial=start)
            return list(zip(offsets, lines, strict=False))[1 if start else 0 :] or [(0, b"")]


def found(path: Path, log_id: bytes) -> Iterator[Found]:
    """What the lines of a segment are, each judged by itself; the seal by all before it. Never raises `LogDamaged`.

    Reading ends where a compressed file cannot be unpacked any further, and before a line that was not finished: its
    writer died, or is about to write the rest of it.
    """
    hasher, sealed = blake3(), False
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(path, "rb"))
        if path.suffix == ".zst":
            file = stack.enter_context(cast("IO[bytes]", zstd.ZstdFile(file, "rb")))
        number = 0
        while True:
            number += 1
            try:
                raw = file.readline(_MAX_LINE)
            except (zstd.ZstdError, EOFError) as error:
                yield LogDamaged(f"{path.name}: cannot be unpacked: {error}")
                return
            if not raw or (path.suffix != ".zst" and not raw.endswith(b"\n")):
                break
            try:
                entry = decode_line(raw, log_id)
                _in_place(path, entry, number, sealed, hasher.hexdigest() if isinstance(entry, Trailer) else "")
            except LogDamaged as error:
                yield LogDamaged(f"{path.name}, line {number}: {error}")
            else:
                sealed = isinstance(entry, Trailer)
                yield entry
            hasher.update(raw)
        if path.suffix == ".zst" and not sealed:
            yield LogDamaged(f"{path.name}: the seal is missing")


def _in_place(path: Path, entry: Header | Entry | Trailer, number: int, sealed: bool, digest: str) -> None:
    if sealed or (number == 1) != isinstance(entry, Header):
        raise LogDamaged("a line stands where it does not belong")
    if isinstance(entry, Header):
        if entry.format != FORMAT:
            raise LogDamaged(f"the segment has format {entry.format}; this version reads format {FORMAT}")
        if entry.first != first_of(path) or not (_HEX.fullmatch(entry.previous) and _HEX.fullmatch(entry.log * 2)):
            raise LogDamaged("the header is not that of this segment")
    if isinstance(entry, Trailer) and entry.seal != digest:
        raise LogDamaged("the seal does not match what is above it")


def whole(path: Path, log_id: bytes) -> bool:
    """Whether every line of a segment is good and follows the one before it."""
    checksum, position = "", 0
    for entry in found(path, log_id):
        match entry:
            case LogDamaged():
                return False
            case Header():
                checksum, position = entry.previous, entry.first - 1
            case Entry(frame=frame):
                if frame.first != position + 1 or frame.previous.hex() != checksum:
                    return False
                checksum, position = frame.checksum.hex(), frame.last
            case Trailer():
                pass
    return bool(checksum)


def sealed(path: Path) -> bool:
    """Whether the last line of a plain segment is a trailer."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 80))
        return file.read().rpartition(b"\n{")[2].startswith(b'"seal"')


def compress(path: Path) -> None:
    """Replace a sealed plain segment by its compressed form; at every moment one of them is there, and durable.

    One whose seal does not hold is left as it is, for `verify` to report.
    """
    hasher, size = blake3(), path.stat().st_size
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    compressor = zstd.ZstdCompressor(level=_LEVEL)
    try:
        with open(path, "rb") as source, open(temporary, "xb", opener=private) as target:
            trailer = len(encode(Trailer("0" * 64))) + 1
            left = size - trailer
            while left > 0 and (chunk := source.read(min(_CHUNK, left))):
                left -= len(chunk)
                hasher.update(chunk)
                target.write(compressor.compress(chunk))
            last = source.read()
            if last != encode(Trailer(hasher.hexdigest())) + b"\n":
                return
            target.write(compressor.compress(last))
            target.write(compressor.flush())
            target.flush()
            os.fsync(target.fileno())
        temporary.rename(path.with_name(f"{path.name}.zst"))
        sync_folder(path.parent)
        path.unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)
