"""What verbs answer with about restores, locks and own workspaces; see `documents`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from sandkeep.sandboxes import documents
from sandkeep.sandboxes.documents import Checkpoint, Conflict
from sandkeep.sandboxes.preview import Planned
from sandkeep.sandboxes.text import moment

if TYPE_CHECKING:
    from sandkeep import projections
    from sandkeep.sandboxes import merging, restore, task_checkpoints
    from sandkeep.sandboxes.clock import BootTime


class Restored(msgspec.Struct, frozen=True):
    """What a restore did, or would do: `undo` is the checkpoint that sets back what was there, `stripped` are the paths
    that were given less than was recorded; of a dry run, `planned` is what would be done."""

    task: str
    checkpoint: str
    digest: str
    undo: str
    stripped: tuple[str, ...]
    planned: tuple[Planned, ...]


class Attached(msgspec.Struct, frozen=True):
    """An agent that holds a task's lock, for `lease_s` seconds from its last sign of life on, by its `token`."""

    task: str
    agent: str
    mode: str
    token: int
    lease_s: float


class Merged(msgspec.Struct, frozen=True):
    """What became of the own workspace of an agent: how many paths were `written`, what collided, and the checkpoint
    that undoes it; or, if it was discarded and `undo` is empty, the last `checkpoint` of it alone."""

    task: str
    own: str
    agent: str
    checkpoint: str
    undo: str
    written: int
    conflicts: list[Conflict]


class Published(msgspec.Struct, frozen=True):
    """A branch of the `repository` that has a task's commits up to `commit`; `before` is where it was, empty if it is
    new. `uncommitted` are paths that differ from that commit in the workspace, and are not in the branch."""

    task: str
    repository: str
    branch: str
    commit: str
    before: str
    uncommitted: tuple[str, ...]


class Detached(msgspec.Struct, frozen=True):
    """An agent that holds a lock no more, and what became of its own workspace, if it had one."""

    task: str
    token: int
    merged: Merged | UnsetType = UNSET


class Written(msgspec.Struct, frozen=True):
    """What a command in the background has written to one stream behind the first `after` bytes, exactly; `next` is
    where to go on."""

    command: str
    after: int
    next: int
    output_base64: bytes


class Ended(msgspec.Struct, frozen=True):
    """How a command ended that was shown as it ran."""

    command: str
    exit_code: int


class ListedCheckpoint(Checkpoint, frozen=True):
    """A checkpoint, and how many bytes it adds to the one before it, before compression."""

    added: int


class ExpiredCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint that has expired or is to, and why."""

    task: str
    checkpoint: str
    reason: str


class LockCounts(msgspec.Struct, frozen=True):
    """What a lock has seen. `contended` requests found it taken; times are from request to grant, and grant to end."""

    requests: int
    contended: int
    grants: int
    released: int
    expired: int
    broken: int
    timed_out: int
    deadlocks: int
    waited_s: float
    longest_wait_s: float
    held_s: float


class Waiter(msgspec.Struct, frozen=True):
    """An agent that waits for a lock, as long as its lease lasts."""

    agent: str
    mode: str
    since: str
    left_s: float


class Holder(Waiter, frozen=True):
    """An agent that holds a lock, by its `token`."""

    token: int


class Lock(msgspec.Struct, frozen=True):
    """The lock of a task. `waiting` is in the order in which it will be granted."""

    task: str
    holding: list[Holder]
    waiting: list[Waiter]
    counts: LockCounts


class TakenFrom(msgspec.Struct, frozen=True):
    """An agent that a lock was taken from, and the token that is stale now."""

    agent: str
    token: int


class Broken(msgspec.Struct, frozen=True):
    """A lock that was taken from those who held it."""

    task: str
    broken: list[TakenFrom]


def restored(task: str, done: restore.Restored) -> Restored:
    """The document of a restore."""
    return Restored(task, done.checkpoint, done.digest, done.undo, done.stripped, done.planned)


def merged(done: merging.Merged) -> Merged:
    """The document of what became of an own workspace."""
    collided = [documents.conflict(each) for each in done.conflicts]
    return Merged(done.task, done.own, done.agent, done.checkpoint, done.undo, done.written, collided)


def listed_checkpoint(found: task_checkpoints.Listed) -> ListedCheckpoint:
    """The document of a checkpoint, and what it adds."""
    return ListedCheckpoint(**documents.checkpoint_fields(found.checkpoint), added=found.added)


def expired_checkpoint(found: projections.Checkpoint, reason: str) -> ExpiredCheckpoint:
    """The document of a checkpoint that expires."""
    return ExpiredCheckpoint(found.task, found.id, reason)


def lock(found: projections.Lock, now: BootTime) -> Lock:
    """The document of a lock."""
    same = ("requests", "contended", "grants", "released", "expired", "broken", "timed_out", "deadlocks")
    counts = found.counts
    return Lock(
        found.task,
        [Holder(**_claim(each, now), token=each.token) for each in found.holding],
        [Waiter(**_claim(each, now)) for each in found.waiting],
        LockCounts(
            **{name: getattr(counts, name) for name in same},
            waited_s=counts.waited_ns / 1e9,
            longest_wait_s=counts.longest_wait_ns / 1e9,
            held_s=counts.held_ns / 1e9,
        ),
    )


def _claim(claim: projections.Claim, now: BootTime) -> dict[str, Any]:
    return {
        "agent": claim.agent,
        "mode": claim.mode,
        "since": moment(claim.since_ns),
        "left_s": round(now.left_ns(claim.lease) / 1e9, 3),
    }
