"""The frame that is being written: requests checked for themselves, and their events placed, in one transaction.

A request sees those before it in its group. What refuses it, or what its decider raises, is its outcome alone; what the
transaction or the follower's state cannot take fails the group.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, final

import lmdb
import msgspec

from sandkeep.events import codec, schema
from sandkeep.events.codec import Frame, Record
from sandkeep.events.errors import (
    BadEvent,
    BadInput,
    KeyReused,
    LimitReached,
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
    stream_entries,
)
from sandkeep.events.log import MAX_EVENT_BYTES, MAX_EVENTS, Follower, Head, Receipt, Session, View
from sandkeep.events.schema import Event, UnknownEvent

if TYPE_CHECKING:
    import asyncio

Body = tuple[str, int, bytes]
"""An encoded event: type, version, body."""

_well_formed = msgspec.msgpack.Decoder(msgspec.Raw).decode


@final
class Request(Generic[View]):
    """One call of `append` (with `bodies`) or `decide` (with `decider`), and what came of it."""

    __slots__ = (
        "actor", "bodies", "cause", "decider", "error", "expected", "fence", "future", "key", "leads", "receipt",
        "stream", "wake", "withdrawn",
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
        self.error: BaseException | None = None
        self.future: asyncio.Future[Receipt] | None = None
        self.wake: threading.Lock | None = None
        self.leads = False
        self.withdrawn = False

    @property
    def settled(self) -> bool:
        """Whether it is known what came of it."""
        return self.receipt is not None or self.error is not None

    def settle(self, outcome: Receipt | BaseException) -> None:
        """Keep what came of it."""
        if isinstance(outcome, Receipt):
            self.receipt = outcome
        else:
            self.error = outcome


class FrameFull(Exception):
    """The frame is full; the request is for the next one."""


class FollowerFailed(Exception):
    """The projections could not take what was placed already; `error` is why. The group cannot be committed."""

    def __init__(self, error: SandkeepError) -> None:
        """`error` is what the follower raised."""
        super().__init__(str(error))
        self.error = error


@final
class Group(Generic[View]):
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
        self._outcomes: list[tuple[Request[View], Receipt | BaseException]] = []

    def add(self, request: Request[View]) -> None:
        """Check one request and place its events; a refusal is its outcome. Raises `FrameFull`."""
        try:
            outcome: Receipt | BaseException = self._place(request)
        except (FrameFull, FollowerFailed, lmdb.Error):
            raise
        except BaseException as error:
            # A decider is foreign code, and what it raises is its caller's. But on the main thread it may be an
            # interrupt (Python delivers none elsewhere), which is this thread's.
            if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
                raise
            outcome = error
        self._outcomes.append((request, outcome))

    def commit(self, committed: Callable[[], None], journal: Journal | None) -> None:
        """Make it durable, settle the requests, then keep what the follower made of it."""
        if self._records:
            first = self._records[0].position
            value, digest = codec.encode_frame(self._records, self._head.checksum, self._layout.log_id)
            self._txn.put(place(first), value, db=self._layout.frames, append=True)
            if journal is not None:
                body = value[codec.HEADER_BYTES :]
                frame = Frame(first, len(self._records), self._head.checksum, digest, body)
                journal.write(self._layout, self._txn, frame)
            self._txn.commit()
            self._settle()  # before anything that may be interrupted: what is durable must not be done again
            self._layout.took(Head(self._records[-1].position, digest, self._time_ns))
            committed()
        else:
            self._settle()
        if self._session is not None:
            self._session.commit()

    def abort(self) -> None:
        """Forget all of it."""
        if self._session is not None:
            self._session.abort()

    def _settle(self) -> None:
        for request, outcome in self._outcomes:
            request.settle(outcome)

    def _place(self, request: Request[View]) -> Receipt:
        used = self._used(request)
        if used is not None and request.bodies is None:
            return msgspec.structs.replace(used.receipt, repeated=True)
        bodies = request.bodies if request.bodies is not None else self._decided(request)
        digest = b"" if request.key is None else asked(request.stream, bodies)
        if used is not None:
            if used.request != digest:
                raise KeyReused(
                    f"key {request.key!r} on {request.stream} was used for other events at position"
                    f" {used.receipt.first}; choose a new key for new events"
                )
            return msgspec.structs.replace(used.receipt, repeated=True)
        if self._records and len(self._records) + len(bodies) > MAX_EVENTS:
            raise FrameFull
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
        first = records[0]
        entries = stream_entries(request.stream, first.revision, first.position, len(records))
        txn.cursor(layout.streams).putmulti(entries)
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
                raise FollowerFailed(error) from error


def encode_events(events: Sequence[Event]) -> list[Body]:
    """The events as they are stored. Raises `BadInput` and `LimitReached`."""
    if len(events) > MAX_EVENTS:
        raise LimitReached(f"{len(events)} events in one append; at most {MAX_EVENTS} are taken, so split them")
    try:
        bodies = [schema.encode(event) for event in events]
        # Constructors check nothing, and what is once stored must be readable for ever.
        for name, version, body in bodies:
            if isinstance(schema.decode(name, version, body), UnknownEvent):
                _well_formed(body)
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
