"""What happened: the log, its events and checksums, the bus, and the blobs."""

from typing import TYPE_CHECKING

from sandkeep.events import late
from sandkeep.events.errors import (
    BadEvent,
    BadInput,
    BadKey,
    BadNote,
    BadSignature,
    BlobDamaged,
    BlobMissing,
    BlobsUnavailable,
    BundleDamaged,
    KeyReused,
    LimitReached,
    LogDamaged,
    LogUnavailable,
    NotABundle,
    RevisionConflict,
    SandkeepError,
    StaleFence,
    SubscriptionBusy,
    SubscriptionDamaged,
    SubscriptionHalted,
    UnknownKey,
)

if TYPE_CHECKING:
    from sandkeep.events.batch import Batch
    from sandkeep.events.blobs import BlobStore
    from sandkeep.events.bus import Bus, Fault, Missed
    from sandkeep.events.codec import Record
    from sandkeep.events.lmdb_log import LmdbLog
    from sandkeep.events.log import EventLog, Follower, Head, Receipt, Session
    from sandkeep.events.schema import Event, UnknownEvent, event, upcast
    from sandkeep.events.subscription import Subscription
else:
    __getattr__, __dir__ = late.names(
        __name__,
        """
        batch:Batch blobs:BlobStore bus:Bus,Fault,Missed codec:Record lmdb_log:LmdbLog
        log:EventLog,Follower,Head,Receipt,Session schema:Event,UnknownEvent,event,upcast
        subscription:Subscription
        """,
    )

__all__ = [
    "BadEvent",
    "BadInput",
    "BadKey",
    "BadNote",
    "BadSignature",
    "Batch",
    "BlobDamaged",
    "BlobMissing",
    "BlobStore",
    "BlobsUnavailable",
    "BundleDamaged",
    "Bus",
    "Event",
    "EventLog",
    "Fault",
    "Follower",
    "Head",
    "KeyReused",
    "LimitReached",
    "LmdbLog",
    "LogDamaged",
    "LogUnavailable",
    "Missed",
    "NotABundle",
    "Receipt",
    "Record",
    "RevisionConflict",
    "SandkeepError",
    "Session",
    "StaleFence",
    "Subscription",
    "SubscriptionBusy",
    "SubscriptionDamaged",
    "SubscriptionHalted",
    "UnknownEvent",
    "UnknownKey",
    "event",
    "upcast",
]
