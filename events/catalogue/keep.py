"""The events of a keep: its making, its recoveries, and what its subscriptions could not handle."""

from __future__ import annotations

from sandkeep.events.catalogue.common import Span
from sandkeep.events.schema import Event, event


@event(version=1)
class KeepCreated(Event, frozen=True):
    """A keep was made; `public_key` is the raw Ed25519 key that vouches for its log."""

    format: int
    public_key: bytes


@event(version=1)
class LogRecovered(Event, frozen=True):
    """The log was damaged. All up to position `kept` is as it was; `lost` are positions that no copy had whole, and
    `salvaged` such as are kept beside the log, because something before them is lost. `source` names what it was
    rebuilt from, `quarantine` the folder that what was there before was moved to.

    Tokens from before it are stale: how far a stream's fence had been raised cannot be told from its records.
    """

    mode: str
    source: str
    kept: int
    lost: tuple[Span, ...]
    salvaged: tuple[Span, ...]
    quarantine: str


@event(version=1)
class HandlerFailed(Event, frozen=True):
    """The handler of a durable subscription failed on the record at `position`, for the last time; `error` is why."""

    subscription: str
    position: int
    error: str
    halted: bool
