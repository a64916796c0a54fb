"""The log, as every implementation of it must behave.

Contract. Positions run over the whole log and revisions over each stream, both from 1 and without gaps.
`append` and `decide` are atomic: all of their events are stored, consecutively, or none. When either returns, the
events are durable. Both may be called from any thread and any number of processes; the log orders them.
A repeat with the same idempotency key on the same stream returns the first receipt and stores nothing.
A refused call changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import msgspec

from sandkeep.events.codec import Record
from sandkeep.events.schema import Event

View = TypeVar("View")
View_co = TypeVar("View_co", covariant=True)

MAX_EVENT_BYTES = 64 * 1024
"""The largest encoded event; anything larger belongs into a blob."""

MAX_EVENTS = 1024
"""The most events of one append."""


class Head(msgspec.Struct, frozen=True):
    """The end of a log: its last position (0 when empty), the checksum of its last frame, its last time."""

    position: int
    checksum: bytes
    time_ns: int


class Receipt(msgspec.Struct, frozen=True):
    """What an append did: the positions and the stream revision it took, and its time.

    `repeated` is true when the idempotency key had been used before, so that nothing was stored now.
    A decider that decided nothing gets `last == first - 1`.
    """

    first: int
    last: int
    revision: int
    time_ns: int
    repeated: bool = False


class Session(Protocol[View_co]):
    """State advanced inside one write of the log. Used by one thread, and always ended once."""

    @property
    def view(self) -> View_co:
        """What a decider sees: exactly the state at the head of the log, and nothing it can change."""

    def apply(self, records: Sequence[Record]) -> None:
        """Advance by records that are about to be committed."""

    def commit(self) -> None:
        """Keep what was applied; called after the log's own commit."""

    def abort(self) -> None:
        """Forget what was applied; called when the log refused or failed."""


class Follower(Protocol[View_co]):
    """State that moves with the log, under its write lock: the transactional projections."""

    def begin(self, head: int, read: Callable[[int], Iterator[Record]]) -> Session[View_co]:
        """Start a session at position `head`; `read(after)` gives the records that are still to be caught up."""


class EventLog(Protocol[View_co]):
    """An append-only log of events in streams."""

    @property
    def log_id(self) -> bytes:
        """16 random bytes that name this log; part of every checksum."""

    @property
    def incarnation(self) -> bytes:
        """Changes when the log is rebuilt, which may have cost it its end: what was derived from it is to be derived
        anew."""

    def head(self) -> Head:
        """Where the log ends now, whoever wrote it."""

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
        """Append `events` to `stream`.

        `expected` is the revision the stream must be at (0: it must not exist yet; None: any). `fence` is a fencing
        token: the position of the event that granted the caller its lock. Raises `RevisionConflict`, `StaleFence`,
        `KeyReused`, `LimitReached`, `BadInput` for a stream name that is
        malformed or of an unknown kind, and `LogUnavailable`.
        """

    def decide(
        self,
        stream: str,
        decider: Callable[[View_co], Sequence[Event]],
        *,
        actor: str,
        key: str | None = None,
        cause: int | None = None,
        fence: int | None = None,
    ) -> Receipt:
        """Append what `decider` decides, seeing the follower's state exactly at the head.

        The decider is pure: it may run more than once, and what it raises is raised here with nothing stored. It does
        not run at all when `key` was used before. Raises as `append` does.
        """

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
        """As `append`, for callers on an event loop. Cancelling it does not take back what has been asked."""

    async def decide_async(
        self,
        stream: str,
        decider: Callable[[View_co], Sequence[Event]],
        *,
        actor: str,
        key: str | None = None,
        cause: int | None = None,
        fence: int | None = None,
    ) -> Receipt:
        """As `decide`, for callers on an event loop. The decider runs on another thread."""

    def read(self, after: int = 0, *, until: int | None = None) -> Iterator[Record]:
        """The records behind position `after`, up to `until` or the head, verified, in order.

        Reads in bounded pages and holds no transaction between them. Raises `BadInput` at once for an `after` below 0,
        and `LogDamaged` where a checksum or link does not hold.
        """

    def read_stream(self, stream: str, after: int = 0) -> Iterator[Record]:
        """The records of one stream behind revision `after`, verified, in order; none if there is no such stream.

        Raises as `read` does, and `BadInput` for a stream name that is malformed or of an unknown kind.
        """

    def position_as_of(self, time_ns: int) -> int:
        """The last position that was stored by `time_ns`, nanoseconds since 1970; 0 if there is none."""

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each commit of this process; returns a function that ends this.

        It is called soon after those of other processes too, as far as the log can tell, so who waits for records polls
        as well. It runs on the committing thread or on one of the log's own, and must neither block nor raise.
        """

    def close(self) -> None:
        """Release the log. Further calls raise `LogUnavailable`."""
