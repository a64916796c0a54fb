"""What the verbs for checkpoints do: calls of the library, and documents of what it gave. They hold no logic."""

from __future__ import annotations

from collections.abc import Sequence

from sandkeep.sandboxes import documents, documents_work
from sandkeep.sandboxes.door import Door


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
