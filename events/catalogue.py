"""The events of sandkeep: every fact that can stand in a log.

A change to the world outside takes two of them: an `Intent` before it, an `Outcome` naming that intent after it. An
intent without an outcome is how a crash shows, and what reconciliation looks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    """A task exists; its workspace is about to be prepared from `source`, a git repository, or from nothing."""

    title: str
    source: str | None
    image: str


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
    """The command ran and ended, or was ended with all that ran beside it when its time was up."""

    exit_code: int
    duration_ns: int
    timed_out: bool
    stdout: Output
    stderr: Output


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


class Version(msgspec.Struct, frozen=True):
    """What is at a path. `digest` is of a file's content, a link's target or a branch's commit; empty if not kept."""

    kind: str
    digest: str
    size: int
    mode: int


class Change(msgspec.Struct, frozen=True):
    """A path and what was and is there; None for nothing. `renamed` is where the same content went to."""

    path: str
    before: Version | None
    after: Version | None
    renamed: str = ""


class Rule(msgspec.Struct, frozen=True):
    """How conflicts are settled at the paths that `pattern` matches."""

    pattern: str
    strategy: str


@event(version=1)
class PathsChanged(Event, frozen=True):
    """The workspace was found changed since position `since`, while the commands `intents` of `agents` ran in it.

    With several, it is not known which of them it was; with none, it was nobody's command. What was there before is
    kept.
    """

    agents: tuple[str, ...]
    intents: tuple[str, ...]
    since: int
    changes: tuple[Change, ...]


@event(version=1)
class ConflictDetected(Event, frozen=True):
    """`agents` wrote `ours` at `path` without having seen `theirs`, which `others` had written there.

    They knew it as `base`, unless not `based`: then that is not known any more.
    """

    conflict: str
    kind: str
    path: str
    agents: tuple[str, ...]
    others: tuple[str, ...]
    strategy: str
    base: Version | None
    ours: Version | None
    theirs: Version | None
    based: bool
    renamed: str = ""


@event(version=1)
class ConflictResolved(Event, frozen=True):
    """`before` gave way to `result`, by the strategy, or by whoever chose it."""

    conflict: str
    path: str
    strategy: str
    taken: str
    before: Version | None
    result: Version | None


@event(version=1)
class ConflictPolicySet(Event, frozen=True):
    """From now on the first of these rules that matches settles a conflict."""

    rules: tuple[Rule, ...]


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
