"""A task's workspace compared with its checkpoints: what differs, and what setting it back would do. Nothing is
changed, and no checkpoint taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandkeep.projections import Checkpoint
from sandkeep.sandboxes import chosen, preview, recording, restore, workspace_diff
from sandkeep.sandboxes.errors import CheckpointNotFound
from sandkeep.sandboxes.restore import Restored
from sandkeep.sandboxes.workspace_diff import FileDiff

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_Known = Sequence[Checkpoint]


def diff(
    keep: Keep, task: str, known: _Known, old: str, new: str, paths: Sequence[bytes], *, text: bool
) -> list[FileDiff]:
    """What differs between checkpoints that are `known`, or one and the workspace; see `Task.diff`."""
    if not old and not known:
        raise CheckpointNotFound(f"task {task} has no checkpoint yet; 'sandkeep checkpoint {task}' makes one")
    before, after = (restore.find(known, each, task).digest if each else "" for each in (old, new))
    before, after = before or known[-1].digest, after or _present(keep, task)
    return list(workspace_diff.diff(before, after, keep.blobs, paths, text=text))


def dry_run(keep: Keep, target: Checkpoint, paths: Sequence[bytes], *, privileges: bool) -> Restored:
    """What setting the checkpoint's task back to it would do; see `Task.restore_checkpoint`."""
    present = _present(keep, target.task)
    wanted = chosen.graft(present, target.digest, paths, keep.blobs)
    return Restored(target.id, wanted, "", (), preview.outline(present, wanted, keep.blobs, privileges=privileges))


def _present(keep: Keep, task: str) -> str:
    """The digest of what the workspace holds."""
    with keep.working(task), recording.opened(keep.task(task).workspace, task) as root:
        return recording.record(keep, task, root).digest
