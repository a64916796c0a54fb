"""How a log lies in its LMDB environment: the databases, their keys, and the transactions on them.

All keys are big-endian, so that LMDB's byte order is the log's order:

    meta     "format", "log_id", and "incarnation" once the log was recovered
    frames   first position                 -> frame (see `codec`)
    streams  stream, NUL, revision          -> position
    keys     stream, NUL, idempotency key   -> digest of what was asked, and the receipt
    fences   stream                         -> the highest fencing token seen
    notes    size of the tree               -> the signed note that was published for it, and the tree's peaks

The map begins small and is doubled when it is full. LMDB moves it only while this process has no transaction open, so
readers pass a gate that growing it closes for a moment; that another process has grown it shows when a transaction
begins, and is followed in the same way.

A reader that was killed stays in LMDB's table, takes a place there, and keeps old pages from being used again. So the
table is cleared of the dead when the log is opened, once a minute when it is written, and when it is full.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import lmdb
import msgspec
from blake3 import blake3

from sandkeep.events import codec, lmdb_file, mapped
from sandkeep.events.codec import Frame, Record
from sandkeep.events.durable import sync_folder
from sandkeep.events.errors import LimitReached, LogDamaged, LogUnavailable
from sandkeep.events.log import Head, Receipt
from sandkeep.events.mounts import refuse_network

FORMAT = 1
"""The version of the layout above."""

MAP_BYTES = 64 << 20
"""Address space for a new log, doubled whenever it is full; the file grows only as it is written."""

MAX_MAP_BYTES = 1 << 46
"""Where doubling ends: half of what a process can address."""

MAX_READERS = 1024
"""How many read transactions all processes together may have open."""

_DATABASES = (b"meta", b"frames", b"streams", b"keys", b"fences")
_CHECK_SECONDS = 60.0
_U64 = struct.Struct(">Q")

_META = struct.Struct("=I124xQ")
"""A meta page of LMDB 0.9 on 64 bits, behind the page's header: its magic number and its transaction."""

_META_OFFSET = 16


class Used(msgspec.Struct, frozen=True, array_like=True):
    """What an idempotency key was used for."""

    request: bytes
    receipt: Receipt


class Published(msgspec.Struct, frozen=True, array_like=True):
    """A signed note (see `note`), and the hashes that the tree goes on from (see `merkle.Peaks`)."""

    note: bytes
    peaks: tuple[bytes, ...]


_encode = msgspec.msgpack.Encoder().encode
encode_published = msgspec.msgpack.Encoder().encode
decode_published = msgspec.msgpack.Decoder(Published).decode
encode_used = msgspec.msgpack.Encoder().encode
decode_used = msgspec.msgpack.Decoder(Used).decode


@final
class Layout:
    """The open environment of a log and its databases."""

    def __init__(self, path: Path, *, readonly: bool = False, log_id: bytes | None = None) -> None:
        """Open the environment in `path`; unless `readonly`, make what is missing. A log that is made gets the id
        `log_id`, and an incarnation of its own, if it is made in place of one that was lost.

        Raises `LogUnavailable` if this process has it open already or it cannot be opened, `LogDamaged` if it holds no
        log or one of another format.
        """
        create = not readonly
        self._gate = _Gate()
        self._head: Head | None = None
        self._pid = os.getpid()
        self._check_at = 0.0
        refuse_network(path)
        try:
            if create:
                self._make(path, log_id)
            self.env = lmdb.open(
                os.fspath(path),
                map_size=MAP_BYTES,
                max_dbs=6,
                max_readers=MAX_READERS,
                mode=0o600,
                readonly=readonly,
                create=create,
            )
        except (lmdb.InvalidError, lmdb.CorruptedError) as error:
            raise LogDamaged(f"{path} holds no whole log: {error}; 'sandkeep recover' rebuilds it") from error
        except (lmdb.Error, OSError) as error:
            raise LogUnavailable(f"the log in {path} cannot be opened: {error}") from error
        try:
            self._clear_readers()
            self.meta, self.frames, self.streams, self.keys, self.fences = (
                self.env.open_db(name, create=False) for name in _DATABASES
            )
            self.notes = self._open_notes(create)
            self.log_id = self._identify(path)
        except lmdb.Error as error:
            self.env.close()
            raise LogDamaged(f"{path} holds no whole log: {error}") from error
        except LogDamaged:
            self.env.close()
            raise

    @staticmethod
    def _make(path: Path, recovered: bytes | None) -> None:
        """Make what is missing. The names are synced each time: whoever made them may not have come to it."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (path / "data.mdb").exists():
            entries = {b"format": str(FORMAT).encode(), b"log_id": recovered or secrets.token_bytes(16)}
            if recovered is not None:
                entries[b"incarnation"] = secrets.token_bytes(16)
            lmdb_file.make(path / "data.mdb", [*_DATABASES, b"notes"], entries, map_bytes=MAP_BYTES)
        sync_folder(path)
        sync_folder(path.parent)

    def _open_notes(self, create: bool) -> lmdb._Database | None:
        """None if there are none, which is so in a log that the first release wrote and nobody has opened since."""
        try:
            return self.env.open_db(b"notes", create=create)
        except lmdb.NotFoundError:
            return None

    def _identify(self, path: Path) -> bytes:
        with self.env.begin(db=self.meta) as txn:
            self.incarnation = txn.get(b"incarnation") or b""
            found, log_id = txn.get(b"format"), txn.get(b"log_id")
        if found is None or log_id is None:
            raise LogDamaged(f"{path} holds no log: its format and id are missing")
        if found != str(FORMAT).encode():
            raise LogDamaged(f"the log in {path} has format {found!r}; this version reads format {FORMAT}")
        return log_id

    @contextlib.contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A read transaction. Hold it for a page, never while waiting for a write: the map cannot grow meanwhile."""
        cleared = False
        while True:
            with self._gate.shared():
                try:
                    txn = self.env.begin()
                except lmdb.ReadersFullError:
                    if cleared:
                        raise
                    cleared = True
                    self._clear_readers()
                    continue
                except lmdb.MapResizedError:
                    txn = None
                if txn is not None:
                    with txn:
                        yield txn
                    return
            self._resize(0)

    @contextlib.contextmanager
    def writing(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A write transaction, aborted unless the block commits it. One thread of this process at a time."""
        if time.monotonic() >= self._check_at:
            self._clear_readers()
        while True:
            try:
                txn = self.env.begin(write=True)
                break
            except lmdb.MapResizedError:
                self._resize(0)
        try:
            yield txn
        finally:
            txn.abort()

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that opened this."""
        return os.getpid() != self._pid

    def refuse_after_fork(self) -> None:
        """Raise `LogUnavailable` in such a child, where LMDB's locks and map are not its own."""
        if self.forked:
            raise LogUnavailable(
                "the log was opened before a fork; close it in the child, and open the keep again there"
            )

    def _clear_readers(self) -> None:
        self._check_at = time.monotonic() + _CHECK_SECONDS
        self.env.reader_check()

    def grow(self) -> None:
        """Double the map, waiting for this process's readers; no write transaction may be open.

        Raises `LimitReached`.
        """
        size = self.env.info()["map_size"] * 2
        if size > MAX_MAP_BYTES:
            raise LimitReached(f"the log has reached {MAX_MAP_BYTES >> 40} TiB, the most this version holds")
        self._resize(size)

    def _resize(self, size: int) -> None:
        """Set the map's size; 0 takes up what another process has set."""
        with self._gate.alone():
            self.env.set_mapsize(size)

    def release_pages(self) -> None:
        """Give back the memory of the pages that were read (see `mapped`). Only inside `reading`: the map must not
        move meanwhile, for other memory may take its place."""
        mapped.release(os.path.join(self.env.path(), "data.mdb"))

    def head(self, txn: lmdb.Transaction[bytes]) -> Head:
        """The end of the log."""
        cursor = txn.cursor(self.frames)
        if not cursor.last():
            return Head(0, codec.GENESIS, 0)
        value, cached = cursor.value(), self._head
        if cached is None or cached.checksum != codec.stored_checksum(value):
            frame = codec.decode_frame(value, self.log_id, position_at(cursor.key()))
            cached = self._head = Head(frame.last, frame.checksum, frame.records()[-1].time_ns)
        return cached

    def consecutive(self) -> bool:
        """Whether the two meta pages are of the last two transactions, as commits leave them.

        If a damaged one makes LMDB fall back to the other, the log is silently the one before its last commit.
        """
        size = self.env.stat()["psize"]
        with open(os.path.join(self.env.path(), "data.mdb"), "rb") as file:
            metas = [_META.unpack_from(file.read(size), _META_OFFSET) for _ in range(2)]
        (magic, first), (other_magic, second) = metas
        newest: int = self.env.info()["last_txnid"]
        return bool(magic == other_magic and abs(first - second) == 1 and max(first, second) == newest)

    def took(self, head: Head) -> None:
        """Remember the end of the log after a commit of this process."""
        self._head = head

    def revision(self, txn: lmdb.Transaction[bytes], stream: str) -> int:
        """The last revision of `stream`, 0 when there is none."""
        cursor = txn.cursor(self.streams)
        found = cursor.prev() if cursor.set_range(stream_key(stream, 2**64 - 1)) else cursor.last()
        if not found:
            return 0
        name, revision = split_stream_key(cursor.key())
        return revision if name == stream else 0

    def published(self, txn: lmdb.Transaction[bytes]) -> Iterator[tuple[int, Published]]:
        """The notes, newest first, by the size they are for; unchecked. Raises `LogDamaged` if one cannot be read."""
        if self.notes is None:
            return
        for key, value in txn.cursor(self.notes).iterprev():
            try:
                yield position_at(key), decode_published(value)
            except (struct.error, msgspec.DecodeError) as error:
                raise LogDamaged(f"the published note under {key.hex()} cannot be read: {error}") from error

    def scan(self, txn: lmdb.Transaction[bytes], after: int, until: int | None = None) -> Iterator[Frame]:
        """The frames that hold positions behind `after`, each checked by itself; none that begins behind `until`."""
        cursor = txn.cursor(self.frames)
        key = place(after + 1)
        found = cursor.set_range(key)
        if not found:
            found = cursor.last()
        elif cursor.key() != key and not cursor.prev():
            cursor.first()
            raise LogDamaged(f"the log does not begin at position 1 but at {position_at(cursor.key())}")
        if not found:
            return
        for place_of, value in cursor.iternext():
            if until is not None and position_at(place_of) > until:
                return
            frame = codec.decode_frame(value, self.log_id, position_at(place_of))
            if frame.last > after:
                yield frame


@final
class _Gate:
    """Lets in any number who share, or one who must be alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._sharing = 0
        self._closed = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                if self._closed:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
            while self._sharing:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


def asked(stream: str, bodies: Sequence[tuple[str, int, bytes]]) -> bytes:
    """The digest of what an idempotency key was used for: type, version and body of each event."""
    return blake3(_encode((stream, bodies))).digest()


def uses(records: Sequence[Record]) -> Iterator[tuple[bytes, Used]]:
    """The entries of `keys` that the appends in one frame made. A key cannot stand in two appends of a stream, so what
    has the same one was one append."""
    for (stream, key), group in itertools.groupby(records, key=lambda record: (record.stream, record.key)):
        if key is not None:
            taken = list(group)
            digest = asked(stream, [(record.type, record.version, bytes(record.data)) for record in taken])
            receipt = Receipt(taken[0].position, taken[-1].position, taken[-1].revision, taken[-1].time_ns)
            yield idempotency_key(stream, key), Used(digest, receipt)


def place(position: int) -> bytes:
    """A position as a key or value."""
    return _U64.pack(position)


def position_at(place: bytes) -> int:
    """The position that `place` encodes."""
    found: int = _U64.unpack(place)[0]
    return found


def stream_key(stream: str, revision: int) -> bytes:
    """The key of one revision of a stream."""
    return stream.encode() + b"\0" + _U64.pack(revision)


def stream_entries(stream: str, revision: int, position: int, count: int) -> list[tuple[bytes, bytes]]:
    """The keys of `count` consecutive revisions of a stream, each with the place of its position."""
    prefix, pack = stream_key(stream, revision)[:-8], _U64.pack
    return [(prefix + pack(revision + number), pack(position + number)) for number in range(count)]


def split_stream_key(key: bytes) -> tuple[str, int]:
    """The stream and revision of a key."""
    return key[:-9].decode(), _U64.unpack(key[-8:])[0]


def idempotency_key(stream: str, key: str) -> bytes:
    """The key under which the use of an idempotency key is kept."""
    return stream.encode() + b"\0" + key.encode()
