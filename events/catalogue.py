"""The events of sandkeep: every fact that can stand in a log.

A change to the world outside takes two of them: an `Intent` before it, an `Outcome` naming that intent after it. An
intent without an outcome is how a crash shows, and what reconciliation looks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from sandkeep.events.schema import Event, event

INLINE_BYTES = 16 * 1024
"""Output up to this size stands in the event itself; more is a blob."""


class Output(msgspec.Struct, frozen=True):
    """A captured stream: its bytes in `data`, or under the digest `blob` when there are more than `INLINE_BYTES`."""

    size: int
    data: bytes | None = None
    blob: str | None = None
    truncated: bool = False


class Limits(msgspec.Struct, frozen=True):
    """What a sandbox may use at most."""

    memory_bytes: int
    nano_cpus: int
    pids: int
    tmp_bytes: int


class Span(msgspec.Struct, frozen=True):
    """The positions from `first` to `last`."""

    first: int
    last: int


class Lease(msgspec.Struct, frozen=True):
    """How long a claim on a lock lives: until `deadline_ns` of CLOCK_BOOTTIME, in the machine's boot called `boot`."""

    boot: str
    deadline_ns: int


class Wait(msgspec.Struct, frozen=True):
    """An agent that waits for the lock of a task."""

    agent: str
    task: str


class Intent(Event, frozen=True):
    """Something is about to be done outside the log; `intent` is its id."""

    intent: str


class Outcome(Event, frozen=True):
    """What came of the intent with this id."""

    intent: str


class Failure(Outcome, frozen=True):
    """The intent failed: an error's stable code, and its message."""

    code: str
    message: str


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
class TaskCreated(Intent, frozen=True):
    """A task exists; its workspace is about to be prepared from `source`, a git repository, or from nothing.

    Whoever acted owns it unless `owner` names another; `parent` is the id of the task that it is a part of.
    """

    title: str
    source: str | None
    image: str
    owner: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None


@event(version=1)
class TaskTagged(Event, frozen=True):
    """The task was given the tags `added`, and those in `removed` were taken from it."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


@event(version=1)
class WorkspacePrepared(Outcome, frozen=True):
    """The workspace is there, at `commit` of its source unless that has none."""

    commit: str | None


@event(version=1)
class WorkspaceFailed(Failure, frozen=True):
    """There is no workspace; the task fails with it."""


@event(version=1)
class TaskCompleted(Event, frozen=True):
    """The work was done."""

    summary: str


@event(version=1)
class TaskFailed(Event, frozen=True):
    """The work was given up, or never began."""

    reason: str


@event(version=1)
class PauseRequested(Intent, frozen=True):
    """The task's sandbox is about to be frozen."""


@event(version=1)
class TaskPaused(Outcome, frozen=True):
    """The task's sandbox is frozen; no command runs."""


@event(version=1)
class ResumeRequested(Intent, frozen=True):
    """The task's sandbox is about to be thawed."""


@event(version=1)
class TaskResumed(Outcome, frozen=True):
    """The task goes on."""


@event(version=1)
class SandboxRequested(Intent, frozen=True):
    """A container is about to be started from the image with the id `image`."""

    image: str
    limits: Limits


@event(version=1)
class SandboxStarted(Outcome, frozen=True):
    """The container runs."""

    container: str


@event(version=1)
class SandboxFailed(Failure, frozen=True):
    """No container runs for this intent."""


@event(version=1)
class SandboxLost(Event, frozen=True):
    """The container ended or vanished without our doing."""

    container: str
    reason: str


@event(version=1)
class SandboxRemoved(Event, frozen=True):
    """The container was removed, because the task has no more use for it."""

    container: str


@event(version=1)
class CommandRequested(Intent, frozen=True):
    """A command is about to run. Of its environment only the names are kept, because values may be secrets."""

    argv: tuple[str, ...]
    cwd: str
    env: tuple[str, ...]
    timeout_ns: int


@event(version=1)
class CommandExecuted(Outcome, frozen=True):
    """The command ran and ended, or was ended with all that ran beside it when its time was up.

    `cpu_ns` is the processor time that it and the children it waited for used; 0 if that is not known.
    """

    exit_code: int
    duration_ns: int
    timed_out: bool
    stdout: Output
    stderr: Output
    cpu_ns: int = 0


@event(version=1)
class CommandFailed(Failure, frozen=True):
    """The command could not be started, or what became of it is not known."""


@event(version=1)
class CheckpointCreated(Event, frozen=True):
    """The workspace was recorded; `digest` is that of its root manifest, `torn` names what would not hold still."""

    checkpoint: str
    digest: str
    files: int
    bytes: int
    label: str
    torn: tuple[str, ...] = ()


@event(version=1)
class RestoreRequested(Intent, frozen=True):
    """The workspace is about to be set back to `checkpoint`; `undo` is the checkpoint of what it was before."""

    checkpoint: str
    undo: str


@event(version=1)
class CheckpointRestored(Outcome, frozen=True):
    """The workspace is what `digest` says."""

    checkpoint: str
    digest: str


@event(version=1)
class RestoreFailed(Failure, frozen=True):
    """The workspace was not, or only in part, set back."""


@event(version=1)
class DecisionRecorded(Event, frozen=True):
    """Whoever acted decided `text`, for `reason` and against `alternatives`."""

    text: str
    reason: str = ""
    alternatives: tuple[str, ...] = ()


@event(version=1)
class MemoryRepaired(Event, frozen=True):
    """Pages of the task's memory folder were not what had been written there, and were made anew from the log.

    `damage` has a line for each; what was there lies in the folder `quarantine` of that name, if anything was.
    """

    damage: tuple[str, ...]
    quarantine: str | None


@event(version=1)
class CleanupRequested(Intent, frozen=True):
    """The task's container and workspace are about to be removed."""


@event(version=1)
class TaskCleaned(Outcome, frozen=True):
    """Nothing is left of the task but its record and its checkpoints."""


@event(version=1)
class PauseFailed(Failure, frozen=True):
    """The sandbox could not be frozen."""


@event(version=1)
class ResumeFailed(Failure, frozen=True):
    """The sandbox could not be thawed."""


@event(version=1)
class CleanupFailed(Failure, frozen=True):
    """Something of the task could not be removed."""


@event(version=1)
class HandlerFailed(Event, frozen=True):
    """The handler of a durable subscription failed on the record at `position`, for the last time; `error` is why."""

    subscription: str
    position: int
    error: str
    halted: bool


class Claimed(Event, frozen=True):
    """An agent asked for the lock of a task, under the id `claim`: for itself, or for who else waits as `session`."""

    claim: str
    agent: str
    session: str
    mode: str
    lease_ns: int
    lease: Lease


@event(version=1)
class LockRequested(Claimed, frozen=True):
    """The claim cannot be granted yet, and is the last in the queue."""


@event(version=1)
class LockGranted(Claimed, frozen=True):
    """The claim holds the lock; the position of this event is its fencing token."""


@event(version=1)
class LockRenewed(Event, frozen=True):
    """Who holds the lock, or waits for it, is alive."""

    claim: str
    lease: Lease


@event(version=1)
class LockReleased(Event, frozen=True):
    """The holder has given the lock back."""

    claim: str


@event(version=1)
class LockExpired(Event, frozen=True):
    """The claim's lease had run out, whether it held the lock or waited for it."""

    claim: str


@event(version=1)
class LockBroken(Event, frozen=True):
    """The lock was taken from its holder, who did not agree, for a `reason`."""

    claim: str
    reason: str


@event(version=1)
class LockTimedOut(Event, frozen=True):
    """Who waited for the lock gave up."""

    claim: str


@event(version=1)
class DeadlockDetected(Event, frozen=True):
    """A request was refused, because all in `cycle` would have waited for each other: each for a lock that the next one
    holds or waits for, and the last for the first."""

    claim: str
    cycle: tuple[Wait, ...]


class Reference(NamedTuple):
    """Content that something vouches for: a blob of `size` bytes, or (`tree`) a manifest and all that it refers to."""

    digest: str
    size: int
    tree: bool = False


def references(event: Event) -> Iterator[Reference]:
    """The content that an event vouches for."""
    match event:
        case CommandExecuted():
            for output in (event.stdout, event.stderr):
                if output.blob is not None:
                    yield Reference(output.blob, output.size)
        case CheckpointCreated():
            yield Reference(event.digest, 0, tree=True)
