"""What verbs answer with about restores, locks and own workspaces; see `documents`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from sandkeep.sandboxes import documents
from sandkeep.sandboxes.documents import Conflict
from sandkeep.sandboxes.preview import Planned

if TYPE_CHECKING:
    from sandkeep.sandboxes import merging, restore


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


class Detached(msgspec.Struct, frozen=True):
    """An agent that holds a lock no more, and what became of its own workspace, if it had one."""

    task: str
    token: int
    merged: Merged | UnsetType = UNSET


def restored(task: str, done: restore.Restored) -> Restored:
    """The document of a restore."""
    return Restored(task, done.checkpoint, done.digest, done.undo, done.stripped, done.planned)


def merged(done: merging.Merged) -> Merged:
    """The document of what became of an own workspace."""
    collided = [documents.conflict(each) for each in done.conflicts]
    return Merged(done.task, done.own, done.agent, done.checkpoint, done.undo, done.written, collided)
