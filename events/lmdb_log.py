"""The log in LMDB: one environment (see `lmdb_layout`), one value a frame, one fully synced transaction a commit.

Concurrency. LMDB's writer lock orders the writers of all processes; inside this process callers share commits (see
`commit`). Readers never wait, save for a moment while the map grows. One process opens a log once; in a child that was
forked meanwhile every use raises `LogUnavailable`, and after `close` the child may open the log anew.

Durability. Each commit is an `fdatasync` of the data and a synchronous write of the meta page. When LMDB reports an
I/O error the log is closed to further use: after a failed sync nobody knows what is on the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, final

import lmdb

from sandkeep.events import calls, codec
from sandkeep.events.codec import Record
from sandkeep.events.commit import Committer
from sandkeep.events.doorbell import Doorbell
from sandkeep.events.errors import BadInput, LogDamaged, LogUnavailable
from sandkeep.events.group import Request, encode_events
from sandkeep.events.journal import SEGMENT_BYTES, Journal
from sandkeep.events.lmdb_layout import (
    Layout,
    Published,
    encode_published,
    place,
    position_at,
    split_stream_key,
    stream_key,
)
from sandkeep.events.log import Follower, Head, Receipt, View
from sandkeep.events.names import check_actor, check_key, check_stream
from sandkeep.events.schema import Event
from sandkeep.events.verify import refuse_if_cut

_PAGE_FRAMES = 256
_PAGE_BYTES = 1 << 20
_MAPPED_BYTES = 32 << 20
_MOST = 2**63

_logger = logging.getLogger(__name__)


@final
class LmdbLog(Generic[View]):
    """An `EventLog` in the folder `path`, which is made if it is not there."""

    def __init__(
        self,
        path: Path,
        *,
        follower: Follower[View] | None = None,
        journal: Path | None = None,
        clock: Callable[[], int] = time.time_ns,
        doorbells: Path | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Open the log; `clock` gives nanoseconds since 1970.

        With the folder `journal`, which all who open this log must name, the log has a second copy there in segments of
        `segment_bytes`, and what has to be cut from it goes to the folder `quarantine` beside it. All processes that
        name the same folder of `doorbells` hear of each other's commits at once.

        Raises what `Layout` raises, `LogBusy` during a recovery, and `LogDamaged` if log and journal contradict each
        other.
        """
        self._follower = follower
        self._listeners: list[Callable[[], None]] = []
        with contextlib.ExitStack() as undo:
            self._journal = None
            if journal is not None:
                self._journal = Journal(journal, segment_bytes=segment_bytes)
                undo.callback(_abandon, self._journal)
                self._journal.refuse_if_orphaned(path)
            refuse_if_cut(path)
            self._layout = Layout(path)
            undo.callback(self._layout.env.close)
            if self._journal is not None:
                self._follow(self._journal)
            self._doorbell = None if doorbells is None else Doorbell(doorbells)
            undo.pop_all()
        self._committer = Committer(self._layout, follower, clock, self._tell_listeners, self._journal)

    @property
    def log_id(self) -> bytes:
        return self._layout.log_id

    @property
    def incarnation(self) -> bytes:
        return self._layout.incarnation

    def readers(self) -> tuple[int, int]:
        """How many places of the table of readers have been used, by all processes, and how many there are."""
        info = self._layout.env.info()
        return int(info["num_readers"]), int(info["max_readers"])

    def head(self) -> Head:
        with self._reading() as txn:
            return self._layout.head(txn)

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
        with calls.keyed(key) as key:
            return self._committer.submit(self._appending(stream, events, actor, expected, key, cause, fence))

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
        with calls.keyed(key) as key:
            return self._committer.submit(self._deciding(stream, decider, actor, key, cause, fence))

    async def append_async(
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
        request = self._appending(stream, events, actor, expected, key, cause, fence)
        return await self._committer.submit_async(request)

    async def decide_async(
        self,
        stream: str,
        decider: Callable[[View], Sequence[Event]],
        *,
        actor: str,
        key: str | None = None,
        cause: int | None = None,
        fence: int | None = None,
    ) -> Receipt:
        return await self._committer.submit_async(self._deciding(stream, decider, actor, key, cause, fence))

    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        _check_after(after)
        return self._read(after, until)

    def _read(self, after: int, until: int | None) -> Iterator[Record]:
        for frame in self._frames(after, until):
            records = frame.records()
            if frame.first <= after or (until is not None and frame.last > until):
                records = [r for r in records if r.position > after and (until is None or r.position <= until)]
            yield from records

    def leaves(self, after: int = 0, *, until: int | None = None) -> Iterator[bytes]:
        """As `read`, but the exact bytes of each record: what the leaves of the log's Merkle tree hold."""
        for frame in self._frames(after, until):
            leaves = frame.leaves()
            if frame.first <= after or (until is not None and frame.last > until):
                leaves = leaves[max(0, after + 1 - frame.first) : None if until is None else until + 1 - frame.first]
            yield from leaves

    def notes(self) -> list[tuple[int, Published]]:
        """The notes that were published, by the number of records they are for, newest first; unchecked."""
        with self._reading() as txn:
            return list(self._layout.published(txn))

    def newest_note(self) -> tuple[int, Published] | None:
        """The first of `notes`."""
        with self._reading() as txn:
            return next(self._layout.published(txn), None)

    def add_note(self, size: int, published: Published) -> None:
        """Keep a note durably; one that there is for this size already stays."""
        self._committer.put(self._layout.notes, place(size), encode_published(published))

    def read_stream(self, stream: str, after: int = 0) -> Iterator[Record]:
        check_stream(stream)
        _check_after(after)
        return self._read_stream(stream, after)

    def _read_stream(self, stream: str, after: int) -> Iterator[Record]:
        while True:
            with self._reading() as txn:
                page = self._stream_page(txn, stream, after)
            yield from page
            if not page:
                return
            after = page[-1].revision

    def position_as_of(self, time_ns: int) -> int:
        with self._reading() as txn:

            def time_of(position: int) -> int:
                frame = next(self._layout.scan(txn, position - 1))
                return frame.records()[position - frame.first].time_ns

            return bisect_right(range(1, self._layout.head(txn).position + 1), time_ns, key=time_of)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._listeners.append(callback)
        unlisten = None if self._doorbell is None else self._doorbell.listen(callback)

        def end() -> None:
            with contextlib.suppress(ValueError):  # ended before
                self._listeners.remove(callback)
            if unlisten is not None:
                unlisten()

        return end

    def snapshot(self, path: Path) -> None:
        """Write a compact, consistent copy of the log into the folder `path`, while others go on writing."""
        self._committer.refuse_after_failure()
        path.mkdir(mode=0o700, parents=True)
        try:
            self._layout.env.copy(os.fspath(path), compact=True)
        except lmdb.Error as error:
            raise LogUnavailable(f"the log could not be copied to {path}: {error}") from error

    def close(self) -> None:
        if self._layout.forked:
            self._layout.env.close()  # the locks and threads of the rest are our parent's
            return
        self._committer.close()
        if self._doorbell is not None:
            self._doorbell.close()
        self._layout.env.close()
        if self._journal is not None:
            try:
                self._journal.close()
            except OSError as error:
                raise LogUnavailable(f"the journal could not be synced: {error}; check the disk") from error

    def _follow(self, journal: Journal) -> None:
        """Bring log and journal to agree."""
        try:
            with self._layout.writing() as txn:
                head = self._layout.head(txn)
                journal.follow(self._layout, txn, head.position, head.checksum)
        except (lmdb.Error, OSError) as error:
            raise LogUnavailable(f"log and journal could not be brought to agree: {error}; check the disk") from error

    def _appending(
        self,
        stream: str,
        events: Sequence[Event],
        actor: str,
        expected: int | None,
        key: str | None,
        cause: int | None,
        fence: int | None,
    ) -> Request[View]:
        self._layout.refuse_after_fork()
        bodies = encode_events(events)
        if not bodies:
            raise BadInput("an append needs at least one event")
        _check(stream, actor, key)
        return Request(stream, bodies, actor=actor, expected=expected, key=key, cause=cause, fence=fence)

    def _deciding(
        self,
        stream: str,
        decider: Callable[[View], Sequence[Event]],
        actor: str,
        key: str | None,
        cause: int | None,
        fence: int | None,
    ) -> Request[View]:
        if self._follower is None:
            raise LogUnavailable("this log was opened without projections, so nothing can be decided on it")
        self._layout.refuse_after_fork()
        _check(stream, actor, key)
        return Request(stream, decider, actor=actor, expected=None, key=key, cause=cause, fence=fence)

    def _tell_listeners(self) -> None:
        for listener in tuple(self._listeners):
            try:
                listener()
            except Exception:  # the commit is done, and whoever asked for it must hear that
                _logger.exception("a listener of the log failed")
        if self._doorbell is not None:
            self._doorbell.ring()

    def _frames(self, after: int, until: int | None) -> Iterator[codec.Frame]:
        """The frames that hold these positions, each verified with its link to the one before."""
        previous = codec.GENESIS if after == 0 else None
        mapped = 0
        while frames := self._page(after, until):
            for frame in frames:
                if frame.first > after + 1:
                    raise LogDamaged(f"the log lacks positions {after + 1} to {frame.first - 1}")
                if previous is not None and frame.previous != previous:
                    raise LogDamaged(f"the frame at position {frame.first} does not follow the one before it")
                previous = frame.checksum
                yield frame
                after = frame.last
            mapped += sum(len(frame.body) for frame in frames)
            if mapped >= _MAPPED_BYTES:
                with self._reading():
                    self._layout.release_pages()
                mapped = 0

    @contextlib.contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        self._layout.refuse_after_fork()
        self._committer.refuse_after_failure()
        try:
            with self._layout.reading() as txn:
                yield txn
        except lmdb.Error as error:
            raise LogUnavailable(f"the log cannot be read: {error}") from error

    def _page(self, after: int, until: int | None) -> list[codec.Frame]:
        page: list[codec.Frame] = []
        size = 0
        with self._reading() as txn:
            for frame in self._layout.scan(txn, after, until):
                page.append(frame)
                size += len(frame.body)
                if len(page) == _PAGE_FRAMES or size >= _PAGE_BYTES:
                    break
        return page

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
                frame = next(self._layout.scan(txn, position - 1), None)
                records = {} if frame is None else {record.position: record for record in frame.records()}
            record = records.get(position)
            if record is None or record.stream != stream or record.revision != revision:
                raise LogDamaged(f"revision {revision} of {stream} is not at position {position}, as the index says")
            if revision != after + len(page) + 1:
                raise LogDamaged(f"{stream} lacks revision {after + len(page) + 1}")
            page.append(record)
            found = cursor.next()
        return page


def _abandon(journal: Journal) -> None:
    """Close the journal of a log that could not be opened, for a reason that is told already."""
    with contextlib.suppress(OSError):
        journal.close()


def _check_after(after: int) -> None:
    if not 0 <= after < _MOST:
        raise BadInput(f"{after} is no place to read from; begin behind 0, the start, or behind what was read last")


def _check(stream: str, actor: str, key: str | None) -> None:
    check_stream(stream)
    check_actor(actor)
    if key is not None:
        check_key(key)
