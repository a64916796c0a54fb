"""What happened: the log, its events and checksums, the bus, and the blobs."""

from sandkeep.events.batch import Batch
from sandkeep.events.blobs import BlobStore
from sandkeep.events.bus import Bus, Fault, Missed
from sandkeep.events.codec import Record
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
from sandkeep.events.lmdb_log import LmdbLog
from sandkeep.events.log import EventLog, Follower, Head, Receipt, Session
from sandkeep.events.schema import Event, UnknownEvent, event, upcast
from sandkeep.events.subscription import Subscription

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
