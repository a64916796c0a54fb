"""The events of sandkeep: every fact that can stand in a log.

A change to the world outside takes two of them: an `Intent` before it, an `Outcome` naming that intent after it. An
intent without an outcome is how a crash shows, and what reconciliation looks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sandkeep.events.catalogue.cache import CacheChoice, CachePruned, CachesChosen
from sandkeep.events.catalogue.checkpoint import (
    CheckpointExpired,
    CheckpointPinned,
    CheckpointTagged,
    CheckpointUnpinned,
    RootGranted,
    TaskForked,
)
from sandkeep.events.catalogue.common import INLINE_BYTES, Failure, Intent, Limits, Outcome, Output, Span
from sandkeep.events.catalogue.conflict import (
    Change,
    ConflictDetected,
    ConflictPolicySet,
    ConflictResolved,
    PathsChanged,
    Rule,
    Version,
)
from sandkeep.events.catalogue.fork import (
    MergeFailed,
    MergeRequested,
    WorkspaceDiscarded,
    WorkspaceForked,
    WorkspaceMerged,
)
from sandkeep.events.catalogue.image import (
    ImageBuilt,
    ImageFailed,
    ImageRemovalFailed,
    ImageRemovalRequested,
    ImageRemoved,
    ImageRequested,
)
from sandkeep.events.catalogue.keep import HandlerFailed, KeepCreated, LogRecovered
from sandkeep.events.catalogue.lock import (
    Claimed,
    DeadlockDetected,
    Lease,
    LockBroken,
    LockExpired,
    LockGranted,
    LockReleased,
    LockRenewed,
    LockRequested,
    LockTimedOut,
    Wait,
)
from sandkeep.events.catalogue.network import (
    ConnectionAllowed,
    ConnectionClosed,
    ConnectionDenied,
    ConnectionsSummarised,
    Destination,
    NetworkPolicySet,
    PortsOffered,
    Service,
    ServicesSet,
)
from sandkeep.events.catalogue.resource import (
    ExtensionDenied,
    ExtensionEnded,
    ExtensionGranted,
    ExtensionPrepared,
    ExtensionRequested,
    LimitEased,
    LimitNeared,
    LimitsFailed,
    LimitsRequested,
    LimitsSet,
    SandboxMeasured,
)
from sandkeep.events.catalogue.task import (
    CheckpointCreated,
    CheckpointRestored,
    CleanupFailed,
    CleanupRequested,
    CommandExecuted,
    CommandFailed,
    CommandRequested,
    CommitsPublished,
    DecisionRecorded,
    MemoryRepaired,
    PauseFailed,
    PauseRequested,
    RestoreFailed,
    RestoreRequested,
    ResumeFailed,
    ResumeRequested,
    SandboxFailed,
    SandboxLost,
    SandboxPaused,
    SandboxPauseFailed,
    SandboxPauseRequested,
    SandboxRemoved,
    SandboxRequested,
    SandboxResumed,
    SandboxStarted,
    SandboxStopFailed,
    SandboxStopped,
    SandboxStopRequested,
    TaskCleaned,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskPaused,
    TaskReopened,
    TaskResumed,
    TaskTagged,
    WorkspaceFailed,
    WorkspacePrepared,
)
from sandkeep.events.schema import Event

__all__ = [
    "INLINE_BYTES",
    "CacheChoice",
    "CachePruned",
    "CachesChosen",
    "Change",
    "CheckpointCreated",
    "CheckpointExpired",
    "CheckpointPinned",
    "CheckpointRestored",
    "CheckpointTagged",
    "CheckpointUnpinned",
    "Claimed",
    "CleanupFailed",
    "CleanupRequested",
    "CommandExecuted",
    "CommandFailed",
    "CommandRequested",
    "CommitsPublished",
    "ConflictDetected",
    "ConflictPolicySet",
    "ConflictResolved",
    "ConnectionAllowed",
    "ConnectionClosed",
    "ConnectionDenied",
    "ConnectionsSummarised",
    "DeadlockDetected",
    "DecisionRecorded",
    "Destination",
    "ExtensionDenied",
    "ExtensionEnded",
    "ExtensionGranted",
    "ExtensionPrepared",
    "ExtensionRequested",
    "Failure",
    "HandlerFailed",
    "ImageBuilt",
    "ImageFailed",
    "ImageRemovalFailed",
    "ImageRemovalRequested",
    "ImageRemoved",
    "ImageRequested",
    "Intent",
    "KeepCreated",
    "Lease",
    "LimitEased",
    "LimitNeared",
    "Limits",
    "LimitsFailed",
    "LimitsRequested",
    "LimitsSet",
    "LockBroken",
    "LockExpired",
    "LockGranted",
    "LockReleased",
    "LockRenewed",
    "LockRequested",
    "LockTimedOut",
    "LogRecovered",
    "MemoryRepaired",
    "MergeFailed",
    "MergeRequested",
    "NetworkPolicySet",
    "Outcome",
    "Output",
    "PathsChanged",
    "PauseFailed",
    "PauseRequested",
    "PortsOffered",
    "Reference",
    "RestoreFailed",
    "RestoreRequested",
    "ResumeFailed",
    "ResumeRequested",
    "RootGranted",
    "Rule",
    "SandboxFailed",
    "SandboxLost",
    "SandboxMeasured",
    "SandboxPauseFailed",
    "SandboxPauseRequested",
    "SandboxPaused",
    "SandboxRemoved",
    "SandboxRequested",
    "SandboxResumed",
    "SandboxStarted",
    "SandboxStopFailed",
    "SandboxStopRequested",
    "SandboxStopped",
    "Service",
    "ServicesSet",
    "Span",
    "TaskCleaned",
    "TaskCompleted",
    "TaskCreated",
    "TaskFailed",
    "TaskForked",
    "TaskPaused",
    "TaskReopened",
    "TaskResumed",
    "TaskTagged",
    "Version",
    "Wait",
    "WorkspaceDiscarded",
    "WorkspaceFailed",
    "WorkspaceForked",
    "WorkspaceMerged",
    "WorkspacePrepared",
    "references",
]


class Reference(NamedTuple):
    """Content that something vouches for: a blob of `size` bytes, or (`tree`) a manifest and all that it refers to."""

    digest: str
    size: int
    tree: bool = False


def references(event: Event) -> Iterator[Reference]:
    """The content that an event vouches for."""
    match event:
        case CommandRequested(stdin=Output() as given):
            if given.blob is not None:
                yield Reference(given.blob, given.size)
        case CommandExecuted():
            for output in (event.stdout, event.stderr):
                if output.blob is not None:
                    yield Reference(output.blob, output.size)
        case CheckpointCreated():
            yield Reference(event.digest, 0, tree=True)
        case PathsChanged():
            yield from _kept(change.before for change in event.changes)
        case ConflictDetected():
            yield from _kept((event.base, event.ours, event.theirs))
        case ConflictResolved():
            yield from _kept((event.before, event.result))


def _kept(versions: Iterable[Version | None]) -> Iterator[Reference]:
    for version in versions:
        if version is not None and version.digest:
            yield Reference(version.digest, version.size)
