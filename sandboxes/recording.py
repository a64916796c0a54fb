"""Recording the workspace of a task as it is now, in the time of what has changed since it was last recorded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sandkeep.sandboxes import snapshot
from sandkeep.sandboxes.descent import FOLDER
from sandkeep.sandboxes.errors import CheckpointRefused
from sandkeep.sandboxes.snapshot_walk import Names, Progress, Snapshot

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


@contextlib.contextmanager
def opened(workspace: Path, task: str) -> Iterator[int]:
    """A task's workspace, open as a descriptor. Raises `CheckpointRefused` if there is none."""
    try:
        root = os.open(workspace, FOLDER)
    except OSError as error:
        raise CheckpointRefused(
            f"task {task} has no workspace ({error.strerror}); it is gone once a task is cleaned up"
        ) from error
    try:
        yield root
    finally:
        os.close(root)


def record(
    keep: Keep,
    task: str,
    root: int,
    progress: Progress = lambda files: None,
    still: contextlib.AbstractContextManager[bool] | None = None,
    touched: Names | None = None,
) -> Snapshot:
    """Store what the workspace open as `root` holds; see `snapshot.take_since`, and `take_touched` for what `touched`
    is. No event refers to it yet. Raises `CheckpointRefused`."""
    before = keep.seen.of(task)
    if touched is not None and before is not None:
        found = snapshot.take_touched(root, keep.blobs, before, touched)
    else:
        found = snapshot.take_since(root, keep.blobs, before, progress, still)
    keep.seen.keep(task, found.seen, found.read)
    return found.snapshot
