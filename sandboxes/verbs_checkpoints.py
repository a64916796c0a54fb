"""What the verbs for checkpoints do: calls of the library, and documents of what it gave. They hold no logic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sandkeep.events import BadInput
from sandkeep.sandboxes import documents, documents_work, expiry, repair
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.repair import Repaired
from sandkeep.sandboxes.workspace_diff import FileDiff


def checkpoint(
    door: Door,
    *,
    task: str,
    label: str = "",
    pin: bool = False,
    tag: Sequence[str] = (),
    with_system: bool = False,
    token: int | None = None,
) -> documents.Checkpoint:
    """Record a workspace; see `Task.checkpoint`."""
    taken = door.keep.task(task, token).checkpoint(
        label, pin=pin, tags=tag, with_system=with_system, progress=door.counting("recording files")
    )
    for path in taken.torn:
        door.note(f"torn: {path}")
    return documents.checkpoint(taken)


def restore_checkpoint(
    door: Door,
    *,
    task: str,
    checkpoint: str,
    paths: Sequence[str] = (),
    dry_run: bool = False,
    privileges: bool = False,
    files_only: bool = False,
    token: int | None = None,
) -> documents_work.Restored:
    """Set a task back; see `Task.restore_checkpoint`."""
    found = door.keep.task(task, token)
    done = found.restore_checkpoint(
        checkpoint,
        paths=paths,
        dry_run=dry_run,
        privileges=privileges,
        files_only=files_only,
        progress=door.counting("recording files"),
    )
    for path in done.stripped:
        door.note(f"without its privileges: {path}")
    return documents_work.restored(found.id, done)


def list_checkpoints(door: Door, *, task: str, every: bool = False) -> list[documents_work.ListedCheckpoint]:
    """The checkpoints of a task; see `TaskCheckpoints.list`."""
    return [documents_work.listed_checkpoint(each) for each in door.keep.checkpoints(task).list(expired=every)]


def pin_checkpoint(door: Door, *, task: str, checkpoint: str) -> documents.Checkpoint:
    """Keep a checkpoint; see `TaskCheckpoints.pin`."""
    return documents.checkpoint(door.keep.checkpoints(task).pin(checkpoint))


def unpin_checkpoint(door: Door, *, task: str, checkpoint: str) -> documents.Checkpoint:
    """Keep a checkpoint no longer than the rules do; see `TaskCheckpoints.unpin`."""
    return documents.checkpoint(door.keep.checkpoints(task).unpin(checkpoint))


def tag_checkpoint(
    door: Door, *, task: str, checkpoint: str, add: Sequence[str] = (), remove: Sequence[str] = ()
) -> documents.Checkpoint:
    """Give a checkpoint tags, and take tags from it; see `TaskCheckpoints.tag`."""
    return documents.checkpoint(door.keep.checkpoints(task).tag(checkpoint, add=add, remove=remove))


def expire_checkpoints(
    door: Door, *, task: str | None = None, checkpoint: Sequence[str] = (), reason: str = "", dry_run: bool = False
) -> list[documents_work.ExpiredCheckpoint]:
    """Let checkpoints go, those that are named or those that no rule keeps; see `expiry`."""
    found = None if task is None else door.keep.task(task).id
    if found is not None and checkpoint:
        if dry_run:
            raise BadInput("--dry-run is for what the rules let go; leave out the checkpoints")
        mine = door.keep.checkpoints(found)
        named = [mine.expire(each, reason) for each in checkpoint]
        return [documents_work.expired_checkpoint(each, each.expired) for each in named]
    surplus = expiry.surplus(door.keep, found)
    done = surplus if dry_run else expiry.expire(door.keep, surplus)
    return [documents_work.expired_checkpoint(each.checkpoint, each.reason) for each in done]


def repair_checkpoints(door: Door, *, source: Sequence[str] = ()) -> Repaired:
    """Look for another copy of what is damaged or gone; see `repair`."""
    return repair.repair(door.keep, [Path(each) for each in source], door.progress)


def diff(
    door: Door,
    *,
    task: str,
    old: str = "",
    new: str = "",
    path: Sequence[str] = (),
    stat: bool = False,
    token: int | None = None,
) -> list[FileDiff]:
    """What differs between two checkpoints, or one and the workspace; see `Task.diff`."""
    return list(door.keep.task(task, token).diff(old, new, path, text=not stat))
