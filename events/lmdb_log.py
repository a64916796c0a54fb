"""The log in LMDB: one environment (see `lmdb_layout`), one value a frame, one fully synced transaction a commit.

Concurrency. LMDB's writer lock orders the writers of all processes; inside this process a mutex does, because LMDB
allows one write transaction a thread. Readers never wait. One process opens a log once; it must not be used across a
fork.

Durability. Each commit is an `fdatasync` of the data and a synchronous write of the meta page. When LMDB reports an
I/O error the log is closed to further use: after a failed sync nobody knows what is on the disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, final

import lmdb
import msgspec
from blake3 import blake3

from sandkeep.events import codec, schema
from sandkeep.events.codec import Record
from sandkeep.events.errors import (
    BadEvent,
    BadInput,
    KeyReused,
    LimitReached,
    LogDamaged,
    LogUnavailable,
    RevisionConflict,
    StaleFence,
)
from sandkeep.events.lmdb_layout import (
    MAP_BYTES,
    Layout,
    Used,
    decode_used,
    encode_used,
    idempotency_key,
    place,
    position_at,
    split_stream_key,
    stream_key,
)
from sandkeep.events.log import MAX_EVENT_BYTES, MAX_EVENTS, Follower, Head, Receipt, Session, View
from sandkeep.events.schema import Event

_PAGE_FRAMES = 256
_PAGE_BYTES = 1 << 20
_STREAM = re.compile(r"[a-z]{1,16}(/[A-Za-z0-9][A-Za-z0-9._:-]{0,127})?")
_MAX_KEY = 200


_encode = msgspec.msgpack.Encoder().encode
_well_formed = msgspec.msgpack.Decoder(msgspec.Raw).decode


@final
class LmdbLog(Generic[View]):
    """An `EventLog` in the folder `path`, which is made if it is not there."""

    def __init__(
        self,
        path: Path,
        *,
        follower: Follower[View] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open the log; `clock` gives nanoseconds since 1970. Raises what `Layout` raises."""
        self._follower = follower
        self._clock = clock
        self._mutex = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._failure: str | None = None
        self._head: Head | None = None
        self._layout = Layout(path)

    @property
    def log_id(self) -> bytes:
        return self._layout.log_id

    def head(self) -> Head:
        with self._reading() as txn:
            return self._read_head(txn)

    def append(
        self,
        stream: str,
        events: Sequence[Event],
        *,
        actor: str,
        expected: int | None = None,
        key: str | None = None,
        cause: int | None = None,
        fence: int | None = None,
    ) -> Receipt:
        bodies = _encode_events(events)
        if not bodies:
            raise BadInput("an append needs at least one event")
        _check(stream, actor, key)
        request = blake3(_encode((stream, bodies))).digest()
        with self._mutex, self._writing() as txn:
            if key is not None and (used := self._used(txn, stream, key)):
                if used.request != request:
                    raise KeyReused(
                        f"key {key!r} on {stream} was used for other events at position {used.receipt.first};"
                        " choose a new key for new events"
                    )
                return msgspec.structs.replace(used.receipt, repeated=True)
            revision = self._revision(txn, stream)
            if expected is not None and expected != revision:
                raise RevisionConflict(
                    f"{stream} is at revision {revision}, not {expected}; read what was added and decide anew"
                )
            return self._commit(txn, stream, bodies, revision, actor, key, cause, fence, request)

    def decide(
        self,
        stream: str,
        decider: Callable[[View], Sequence[Event]],
        *,
        actor: str,
        key: str | None = None,
        cause: int | None = None,
        fence: int | None = None,
    ) -> Receipt:
        if self._follower is None:
            raise LogUnavailable("this log was opened without projections, so nothing can be decided on it")
        _check(stream, actor, key)
        with self._mutex, self._writing() as txn:
            if key is not None and (used := self._used(txn, stream, key)):
                return msgspec.structs.replace(used.receipt, repeated=True)
            session = self._begin(txn)
            try:
                bodies = _encode_events(decider(session.view))
                revision = self._revision(txn, stream)
                if not bodies:
                    head = self._read_head(txn)
                    receipt = Receipt(head.position + 1, head.position, revision, head.time_ns)
                    txn.abort()
                else:
                    request = blake3(_encode((stream, bodies))).digest()
                    receipt = self._commit(txn, stream, bodies, revision, actor, key, cause, fence, request, session)
            except BaseException:
                session.abort()
                raise
            session.commit()
            return receipt

    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        previous = codec.GENESIS if after == 0 else None
        while True:
            frames = self._page(after, until)
            for frame in frames:
                if frame.first > after + 1:
                    raise LogDamaged(f"the log lacks positions {after + 1} to {frame.first - 1}")
                if previous is not None and frame.previous != previous:
                    raise LogDamaged(f"the frame at position {frame.first} does not follow the one before it")
                previous = frame.checksum
                records = frame.records()
                if frame.first <= after or (until is not None and frame.last > until):
                    records = [r for r in records if r.position > after and (until is None or r.position <= until)]
                yield from records
                after = frame.last
            if not frames:
                return

    def read_stream(self, stream: str, after: int = 0) -> Iterator[Record]:
        while True:
            with self._reading() as txn:
                page = self._stream_page(txn, stream, after)
            yield from page
            if not page:
                return
            after = page[-1].revision

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def snapshot(self, path: Path) -> None:
        """Write a compact, consistent copy of the log into the folder `path`, while others go on writing."""
        self._refuse_after_failure()
        path.mkdir(mode=0o700, parents=True)
        try:
            self._layout.env.copy(os.fspath(path), compact=True)
        except lmdb.Error as error:
            raise LogUnavailable(f"the log could not be copied to {path}: {error}") from error

    def close(self) -> None:
        with self._mutex:
            self._failure = self._failure or "it was closed"
            self._layout.env.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        self._refuse_after_failure()
        try:
            with self._layout.env.begin() as txn:
                yield txn
        except lmdb.Error as error:
            raise LogUnavailable(f"the log cannot be read: {error}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A write transaction that is aborted unless the block commits it."""
        self._refuse_after_failure()
        try:
            txn = self._layout.env.begin(write=True)
            try:
                yield txn
            finally:
                txn.abort()
        except lmdb.MapFullError as error:
            raise LimitReached(f"the log has reached {MAP_BYTES >> 30} GiB, the most this version holds") from error
        except lmdb.Error as error:
            self._failure = f"a write failed: {error}"
            raise LogUnavailable(
                f"the log could not be written ({error}) and is closed; check the disk, then open the keep again"
            ) from error

    def _refuse_after_failure(self) -> None:
        if self._failure is not None:
            raise LogUnavailable(f"the log is closed: {self._failure}; open the keep again")

    def _begin(self, txn: lmdb.Transaction[bytes]) -> Session[View]:
        assert self._follower is not None
        head = self._read_head(txn)
        return self._follower.begin(head.position, lambda after: self._records(txn, after))

    def _records(self, txn: lmdb.Transaction[bytes], after: int) -> Iterator[Record]:
        for frame in self._scan(txn, after):
            yield from (record for record in frame.records() if record.position > after)

    def _commit(
        self,
        txn: lmdb.Transaction[bytes],
        stream: str,
        bodies: list[tuple[str, int, bytes]],
        revision: int,
        actor: str,
        key: str | None,
        cause: int | None,
        fence: int | None,
        request: bytes,
        session: Session[View] | None = None,
    ) -> Receipt:
        head = self._read_head(txn)
        self._check_fence(txn, stream, fence, head)
        if cause is not None and not 1 <= cause <= head.position:
            raise BadInput(f"cause {cause} names no position of this log")
        time_ns = max(self._clock(), head.time_ns)
        first = head.position + 1
        records = [
            Record(first + i, stream, revision + 1 + i, time_ns, actor, cause, key, name, version, msgspec.Raw(body))
            for i, (name, version, body) in enumerate(bodies)
        ]
        value, digest = codec.encode_frame(records, head.checksum, self._layout.log_id)
        txn.put(place(first), value, db=self._layout.frames, append=True)
        for record in records:
            txn.put(stream_key(stream, record.revision), place(record.position), db=self._layout.streams)
        receipt = Receipt(first, first + len(records) - 1, revision + len(records), time_ns)
        if key is not None:
            txn.put(idempotency_key(stream, key), encode_used(Used(request, receipt)), db=self._layout.keys)
        if session is not None:
            session.apply(records)
        txn.commit()
        self._head = Head(receipt.last, digest, time_ns)
        for listener in tuple(self._listeners):
            listener()
        return receipt

    def _check_fence(self, txn: lmdb.Transaction[bytes], stream: str, fence: int | None, head: Head) -> None:
        if fence is None:
            return
        if not 1 <= fence <= head.position:
            raise BadInput(f"fencing token {fence} names no position of this log")
        seen = txn.get(stream.encode(), db=self._layout.fences)
        highest = 0 if seen is None else position_at(seen)
        if fence < highest:
            raise StaleFence(
                f"fencing token {fence} on {stream} is stale: {highest} was granted since; acquire the lock again"
            )
        if fence > highest:
            txn.put(stream.encode(), place(fence), db=self._layout.fences)

    def _read_head(self, txn: lmdb.Transaction[bytes]) -> Head:
        cursor = txn.cursor(self._layout.frames)
        if not cursor.last():
            return Head(0, codec.GENESIS, 0)
        value, cached = cursor.value(), self._head
        if cached is None or cached.checksum != codec.stored_checksum(value):
            frame = codec.decode_frame(value, self._layout.log_id, position_at(cursor.key()))
            cached = self._head = Head(frame.last, frame.checksum, frame.records()[-1].time_ns)
        return cached

    def _revision(self, txn: lmdb.Transaction[bytes], stream: str) -> int:
        cursor = txn.cursor(self._layout.streams)
        found = cursor.prev() if cursor.set_range(stream_key(stream, 2**64 - 1)) else cursor.last()
        if not found:
            return 0
        name, revision = split_stream_key(cursor.key())
        return revision if name == stream else 0

    def _used(self, txn: lmdb.Transaction[bytes], stream: str, key: str) -> Used | None:
        value = txn.get(idempotency_key(stream, key), db=self._layout.keys)
        return None if value is None else decode_used(value)

    def _page(self, after: int, until: int | None) -> list[codec.Frame]:
        page: list[codec.Frame] = []
        size = 0
        with self._reading() as txn:
            for frame in self._scan(txn, after):
                if until is not None and frame.first > until:
                    break
                page.append(frame)
                size += len(frame.body)
                if len(page) == _PAGE_FRAMES or size >= _PAGE_BYTES:
                    break
        return page

    def _scan(self, txn: lmdb.Transaction[bytes], after: int) -> Iterator[codec.Frame]:
        """The frames that hold positions behind `after`, each checked by itself."""
        cursor = txn.cursor(self._layout.frames)
        key = place(after + 1)
        found = cursor.set_range(key)
        if not found:
            found = cursor.last()
        elif cursor.key() != key and not cursor.prev():
            cursor.first()
            raise LogDamaged(f"the log does not begin at position 1 but at {position_at(cursor.key())}")
        if not found:
            return
        log_id = self._layout.log_id
        for place_of, value in cursor.iternext():
            frame = codec.decode_frame(value, log_id, position_at(place_of))
            if frame.last > after:
                yield frame

    def _stream_page(self, txn: lmdb.Transaction[bytes], stream: str, after: int) -> list[Record]:
        page: list[Record] = []
        cursor = txn.cursor(self._layout.streams)
        found = cursor.set_range(stream_key(stream, after + 1))
        records: dict[int, Record] = {}
        while found and len(page) < _PAGE_FRAMES:
            name, revision = split_stream_key(cursor.key())
            if name != stream:
                break
            position = position_at(cursor.value())
            if position not in records:
                frame = next(self._scan(txn, position - 1), None)
                records = {} if frame is None else {record.position: record for record in frame.records()}
            record = records.get(position)
            if record is None or record.stream != stream or record.revision != revision:
                raise LogDamaged(f"revision {revision} of {stream} is not at position {position}, as the index says")
            if revision != after + len(page) + 1:
                raise LogDamaged(f"{stream} lacks revision {after + len(page) + 1}")
            page.append(record)
            found = cursor.next()
        return page


def _check(stream: str, actor: str, key: str | None) -> None:
    if not _STREAM.fullmatch(stream):
        raise BadInput(f"{stream!r} is no stream name; use 'kind' or 'kind/id', letters, digits and . _ : -")
    check_actor(actor)
    if key is not None and not (key.isascii() and 1 <= len(key) <= _MAX_KEY):
        raise BadInput(f"an idempotency key must have 1 to {_MAX_KEY} ASCII characters")


def check_actor(actor: str) -> str:
    """The name of who acts. Raises `BadInput` if it cannot be stored and shown."""
    if not (actor.isprintable() and 1 <= len(actor) <= _MAX_KEY):
        raise BadInput(f"the actor's name must have 1 to {_MAX_KEY} printable characters")
    return actor


def _encode_events(events: Sequence[Event]) -> list[tuple[str, int, bytes]]:
    if len(events) > MAX_EVENTS:
        raise LimitReached(f"{len(events)} events in one append; at most {MAX_EVENTS} are taken, so split them")
    try:
        bodies = [schema.encode(event) for event in events]
        # Constructors check nothing, and what is once stored must be readable for ever.
        for name, version, body in bodies:
            _well_formed(body)
            schema.decode(name, version, body)
    except (UnicodeEncodeError, OverflowError, TypeError, msgspec.DecodeError) as error:
        raise BadInput(f"an event holds what cannot be stored: {error}; text must be UTF-8, numbers 64 bits") from error
    except BadEvent as error:
        raise BadInput(f"a field of {name} has another type than its class declares: {error.__cause__}") from error
    for name, _, body in bodies:
        if len(body) > MAX_EVENT_BYTES:
            raise LimitReached(f"{name} has {len(body)} bytes, over {MAX_EVENT_BYTES}; store its content as a blob")
    return bodies
