"""Group commit: callers that arrive while a commit is under way share the next one.

A commit costs two flushes of the disk, whatever it holds. So requests wait in a queue, and whoever gets the mutex
commits all that are there as one frame: itself, other threads, and asyncio callers. A caller alone finds the queue
empty and the mutex free, and is not delayed. Each request is checked for itself inside the transaction, seeing those
before it in its group; one that is refused, or whose decider raises, fails alone and leaves nothing.

Deciders run on the thread that commits, which may be another caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, final

import lmdb
import msgspec

from sandkeep.events import codec, schema
from sandkeep.events.codec import Frame, Record
from sandkeep.events.errors import (
    BadEvent,
    BadInput,
    KeyReused,
    LimitReached,
    LogDamaged,
    LogUnavailable,
    RevisionConflict,
    SandkeepError,
    StaleFence,
)
from sandkeep.events.journal import Journal
from sandkeep.events.lmdb_layout import (
    Layout,
    Used,
    asked,
    decode_used,
    encode_used,
    idempotency_key,
    place,
    position_at,
    stream_key,
)
from sandkeep.events.log import MAX_EVENT_BYTES, MAX_EVENTS, Follower, Head, Receipt, Session, View
from sandkeep.events.schema import Event

_logger = logging.getLogger(__name__)

Body = tuple[str, int, bytes]
"""An encoded event: type, version, body."""

_well_formed = msgspec.msgpack.Decoder(msgspec.Raw).decode


@final
class Request(Generic[View]):
    """One call of `append` (with `bodies`) or `decide` (with `decider`), and what came of it."""

    __slots__ = (
        "actor", "bodies", "cause", "decider", "error", "expected", "fence", "future", "key", "receipt", "stream"
    )  # fmt: skip

    def __init__(
        self,
        stream: str,
        what: list[Body] | Callable[[View], Sequence[Event]],
        *,
        actor: str,
        expected: int | None,
        key: str | None,
        cause: int | None,
        fence: int | None,
    ) -> None:
        self.stream = stream
        self.bodies = what if isinstance(what, list) else None
        self.decider = None if isinstance(what, list) else what
        self.actor, self.expected, self.key, self.cause, self.fence = actor, expected, key, cause, fence
        self.receipt: Receipt | None = None
        self.error: Exception | None = None
        self.future: asyncio.Future[Receipt] | None = None

    @property
    def settled(self) -> bool:
        """Whether it is known what came of it."""
        return self.receipt is not None or self.error is not None


class _TooMany(Exception):
    """The frame is full; the request is for the next one."""


class _FollowerFailed(Exception):
    """The projections could not take what was placed already; `error` is why. The group cannot be committed."""

    def __init__(self, error: SandkeepError) -> None:
        super().__init__(str(error))
        self.error = error


@final
class Committer(Generic[View]):
    """The writer of one open log. Used by all its callers."""

    def __init__(
        self,
        layout: Layout,
        follower: Follower[View] | None,
        clock: Callable[[], int],
        committed: Callable[[], None],
        journal: Journal | None,
    ) -> None:
        """`committed` is called after each commit, on the committing thread."""
        self._layout = layout
        self._follower = follower
        self._clock = clock
        self._committed = committed
        self._journal = journal
        self._mutex = threading.Lock()
        self._queue: deque[Request[View]] = deque()
        self._executor: ThreadPoolExecutor | None = None
        self._draining = False
        self._drain_lock = threading.Lock()
        self.failure: str | None = None

    def submit(self, request: Request[View]) -> Receipt:
        """Commit `request`, with whatever else waits, and return its receipt or raise its error."""
        self._queue.append(request)
        try:
            while not request.settled:
                with self._mutex:
                    if not request.settled:
                        self._commit_group()
        except BaseException:  # the caller is interrupted: what it asked for is not done behind its back
            with contextlib.suppress(ValueError):
                self._queue.remove(request)
            raise
        if request.error is not None:
            raise request.error
        assert request.receipt is not None
        return request.receipt

    def submit_async(self, request: Request[View]) -> asyncio.Future[Receipt]:
        """As `submit`, for a caller on an event loop. Cancelling the future does not take the request back."""
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        request.future = future
        self._queue.append(request)
        with self._drain_lock:
            if not self._draining:
                self._draining = True
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(1, "sandkeep-commit")
                self._executor.submit(self._drain)
        return future

    def close(self) -> None:
        """Commit what waits, and refuse what comes. Safe to call twice."""
        if self._executor is not None:
            self._executor.shutdown()
        with self._mutex:
            self.failure = self.failure or "it was closed"

    def refuse_after_failure(self) -> None:
        """Raise `LogUnavailable` once a write has failed or the log is closed."""
        if self.failure is not None:
            raise LogUnavailable(f"the log is closed: {self.failure}; open the keep again")

    def _drain(self) -> None:
        """Commit for asyncio callers until none waits."""
        while True:
            with self._mutex:
                if self._queue:
                    self._commit_group()
            with self._drain_lock:
                if not self._queue:
                    self._draining = False
                    return

    def _commit_group(self) -> None:
        """Take what waits, commit it and settle it. The caller holds the mutex."""
        taken: list[Request[View]] = []
        try:
            self._settle(self._commit(taken))
        except (LimitReached, LogDamaged, LogUnavailable) as error:
            taken.extend(() if taken else self._waiting())
            self._settle([(request, error) for request in taken])
        except _FollowerFailed as failed:
            self._settle([(request, failed.error) for request in taken])
        finally:
            # Only if this thread was interrupted is one left: its caller, who waits for the mutex, commits it.
            self._queue.extendleft(request for request in reversed(taken) if not request.settled)

    def _commit(self, taken: list[Request[View]]) -> list[tuple[Request[View], Receipt | Exception]]:
        """Move requests from the queue to `taken`, and write them; what came of each, once it is durable."""
        self._refuse_all_after_failure(taken)
        while True:
            try:
                with self._layout.writing() as txn:
                    group = _Group(self._layout, self._follower, self._clock(), txn)
                    try:
                        self._fill(group, taken)
                        return group.commit(self._committed, self._journal)
                    except BaseException:
                        group.abort()
                        raise
            except lmdb.MapFullError:
                self._layout.grow()
            except (lmdb.Error, OSError) as error:
                self.failure = f"a write failed: {error}"
                raise LogUnavailable(
                    f"the log could not be written ({error}) and is closed; check the disk, then open the keep again"
                ) from error

    def _refuse_all_after_failure(self, taken: list[Request[View]]) -> None:
        """As `refuse_after_failure`, for everyone who waits."""
        if self.failure is not None:
            taken.extend(self._waiting())
            self.refuse_after_failure()

    def _fill(self, group: _Group[View], taken: list[Request[View]]) -> None:
        for request in tuple(taken):  # again, after the map has grown
            group.add(request)
        for request in self._waiting():
            try:
                group.add(request)
            except _TooMany:
                self._queue.appendleft(request)
                return
            except _FollowerFailed:
                taken.append(request)
                raise
            taken.append(request)

    def _waiting(self) -> Iterator[Request[View]]:
        while self._queue:
            yield self._queue.popleft()

    def _settle(self, outcomes: Sequence[tuple[Request[View], Receipt | Exception]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Receipt], Receipt | Exception]]] = {}
        for request, outcome in outcomes:
            if isinstance(outcome, Receipt):
                request.receipt = outcome
            else:
                request.error = outcome
            if request.future is not None:
                loops.setdefault(request.future.get_loop(), []).append((request.future, outcome))
        for loop, futures in loops.items():
            try:
                loop.call_soon_threadsafe(_resolve, futures)
            except RuntimeError:
                _logger.warning("an event loop ended before %d of its appends did", len(futures))


@final
class _Group(Generic[View]):
    """The frame that is being written: requests checked, events placed, in one transaction."""

    def __init__(
        self, layout: Layout, follower: Follower[View] | None, now_ns: int, txn: lmdb.Transaction[bytes]
    ) -> None:
        self._layout = layout
        self._follower = follower
        self._txn = txn
        self._head = layout.head(txn)
        self._time_ns = max(now_ns, self._head.time_ns)
        self._records: list[Record] = []
        self._session: Session[View] | None = None
        self._outcomes: list[tuple[Request[View], Receipt | Exception]] = []

    def add(self, request: Request[View]) -> None:
        """Check one request and place its events; a refusal is its outcome. Raises `_TooMany`."""
        try:
            outcome: Receipt | Exception = self._place(request)
        except (_TooMany, _FollowerFailed, lmdb.Error):
            raise
        except Exception as error:  # noqa: BLE001 - a decider is foreign code; what it raises is its caller's
            outcome = error
        self._outcomes.append((request, outcome))

    def commit(
        self, committed: Callable[[], None], journal: Journal | None
    ) -> list[tuple[Request[View], Receipt | Exception]]:
        """Make it durable, then keep what the follower made of it."""
        if self._records:
            first = self._records[0].position
            value, digest = codec.encode_frame(self._records, self._head.checksum, self._layout.log_id)
            self._txn.put(place(first), value, db=self._layout.frames, append=True)
            if journal is not None:
                body = value[codec.HEADER_BYTES :]
                frame = Frame(first, len(self._records), self._head.checksum, digest, body)
                journal.write(self._layout, self._txn, frame)
            self._txn.commit()
            self._layout.took(Head(self._records[-1].position, digest, self._time_ns))
            committed()
        if self._session is not None:
            self._session.commit()
        return self._outcomes

    def abort(self) -> None:
        """Forget all of it."""
        if self._session is not None:
            self._session.abort()

    def _place(self, request: Request[View]) -> Receipt:
        used = self._used(request)
        if used is not None and request.bodies is None:
            return msgspec.structs.replace(used.receipt, repeated=True)
        bodies = request.bodies if request.bodies is not None else self._decided(request)
        digest = asked(request.stream, bodies)
        if used is not None:
            if used.request != digest:
                raise KeyReused(
                    f"key {request.key!r} on {request.stream} was used for other events at position"
                    f" {used.receipt.first}; choose a new key for new events"
                )
            return msgspec.structs.replace(used.receipt, repeated=True)
        if self._records and len(self._records) + len(bodies) > MAX_EVENTS:
            raise _TooMany
        revision = self._layout.revision(self._txn, request.stream)
        if request.expected is not None and request.expected != revision:
            raise RevisionConflict(
                f"{request.stream} is at revision {revision}, not {request.expected};"
                " read what was added and decide anew"
            )
        last = self._head.position + len(self._records)
        if not bodies:
            return Receipt(last + 1, last, revision, self._time_ns if self._records else self._head.time_ns)
        self._check(request, last)
        records = [
            Record(
                last + 1 + i, request.stream, revision + 1 + i, self._time_ns,
                request.actor, request.cause, request.key, name, version, msgspec.Raw(body),
            )
            for i, (name, version, body) in enumerate(bodies)
        ]  # fmt: skip
        receipt = Receipt(last + 1, last + len(records), revision + len(records), self._time_ns)
        self._index(request, records, digest, receipt)
        return receipt

    def _used(self, request: Request[View]) -> Used | None:
        if request.key is None:
            return None
        value = self._txn.get(idempotency_key(request.stream, request.key), db=self._layout.keys)
        return None if value is None else decode_used(value)

    def _decided(self, request: Request[View]) -> list[Body]:
        if self._session is None:
            assert self._follower is not None
            self._session = self._follower.begin(self._head.position, self._behind)
            self._session.apply(self._records)
        assert request.decider is not None
        return encode_events(request.decider(self._session.view))

    def _behind(self, after: int) -> Iterator[Record]:
        for frame in self._layout.scan(self._txn, after):
            yield from (record for record in frame.records() if record.position > after)

    def _check(self, request: Request[View], last: int) -> None:
        """Refuse a cause or a fencing token that does not hold."""
        if request.cause is not None and not 1 <= request.cause <= last:
            raise BadInput(f"cause {request.cause} names no position of this log")
        if request.fence is None:
            return
        if not 1 <= request.fence <= last:
            raise BadInput(f"fencing token {request.fence} names no position of this log")
        seen = self._txn.get(request.stream.encode(), db=self._layout.fences)
        if seen is not None and request.fence < position_at(seen):
            raise StaleFence(
                f"fencing token {request.fence} on {request.stream} is stale: {position_at(seen)} was granted since;"
                " acquire the lock again"
            )

    def _index(self, request: Request[View], records: list[Record], digest: bytes, receipt: Receipt) -> None:
        layout, txn = self._layout, self._txn
        for record in records:
            txn.put(stream_key(record.stream, record.revision), place(record.position), db=layout.streams)
        if request.key is not None:
            used = encode_used(Used(digest, receipt))
            txn.put(idempotency_key(request.stream, request.key), used, db=layout.keys)
        if request.fence is not None:
            txn.put(request.stream.encode(), place(request.fence), db=layout.fences)
        self._records += records
        if self._session is not None:
            try:
                self._session.apply(records)
            except SandkeepError as error:
                raise _FollowerFailed(error) from error


def encode_events(events: Sequence[Event]) -> list[Body]:
    """The events as they are stored. Raises `BadInput` and `LimitReached`."""
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
            raise LimitReached(
                f"{name} has {len(body)} bytes, more than {MAX_EVENT_BYTES}; store its content as a blob"
            )
    return bodies


def _resolve(futures: list[tuple[asyncio.Future[Receipt], Receipt | Exception]]) -> None:
    """Tell asyncio callers what came of their requests. Runs on their loop."""
    for future, outcome in futures:
        if future.done():
            continue
        if isinstance(outcome, Receipt):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
