"""Recording a workspace: every file, folder and link in it becomes content-addressed.

A snapshot costs what has changed since the last. Of a folder whose status change time is what it was, the names are
known, and only the times of what is called by them are asked for; a name is read again if its time is another, or was
too young to be relied on. See `seen`.

The workspace is hostile and may change meanwhile. Every step goes through the descriptor of the folder above, and no
link or mount is followed. What changes while it is read is read again, and what then still does is named in `torn`,
with what was read of it last: nothing is passed over. What cannot be read refuses the snapshot. So that a task's
commands change nothing, they can be held `still`: then all is recorded while they run, and what changed meanwhile once
they stand still.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import msgspec

from sandkeep.events import BlobDamaged, BlobMissing, BlobStore
from sandkeep.sandboxes import seen
from sandkeep.sandboxes.descent import Descent
from sandkeep.sandboxes.looking import Look, differing_twice
from sandkeep.sandboxes.manifest import blobs_of
from sandkeep.sandboxes.seen import Seen
from sandkeep.sandboxes.snapshot_walk import Names, Progress, Snapshot, Taken, Walk

LARGE = 20_000
"""From how many files on a workspace is looked at by two processes."""


def take(root: int, blobs: BlobStore, progress: Progress = lambda files: None) -> Snapshot:
    """Record the folder open as descriptor `root`. All of it is durable when this returns, and none of it is stored if
    this fails. Raises `CheckpointRefused`.
    """
    return take_since(root, blobs, None, progress).snapshot


def take_since(
    root: int,
    blobs: BlobStore,
    before: Seen | None,
    progress: Progress = lambda files: None,
    still: AbstractContextManager[bool] | None = None,
) -> Taken:
    """As `take`, reading only what changed since something was seen of this workspace. If others write to it meanwhile,
    `still` holds them still: for no longer than it takes to find and read what they changed since it was all read.
    """
    with _beginning(root, blobs, before) as walk:
        taken = _take(root, walk, progress)
    if still is None:
        return taken
    with _beginning(root, blobs, taken.seen) as walk:
        started = time.monotonic_ns()
        with still as stands:
            again = _take(root, walk, lambda files: None)
        frozen_ns = time.monotonic_ns() - started if stands else 0
    return Taken(msgspec.structs.replace(again.snapshot, frozen_ns=frozen_ns), again.seen, taken.read + again.read)


def take_touched(root: int, blobs: BlobStore, before: Seen, touched: Names) -> Taken:
    """As `take_since`, where what is not `touched` has not been since it was seen just before."""
    with _beginning(root, blobs, before, touched) as walk:
        return walk.take(lambda files: None)


@contextlib.contextmanager
def _beginning(root: int, blobs: BlobStore, before: Seen | None, touched: Names | None = None) -> Iterator[Walk]:
    epoch = blobs.epoch()
    found = os.fstat(root)
    if before is not None and (before.device, before.inode) != (found.st_dev, found.st_ino):
        before = None
    if before is not None and before.epoch != epoch and not _is_held(before.digest, blobs):
        before = None
    with blobs.batch() as batch, Descent(root) as descent:
        yield Walk(blobs, batch, descent, before, epoch, touched)


def _take(root: int, walk: Walk, progress: Progress) -> Taken:
    if walk.before is not None and walk.before.files >= LARGE:
        walk.touched = _differing(root, walk.before.folder)
    return walk.take(progress)


def _differing(root: int, folder: seen.Folder) -> Names:
    """The folders that are not as they were seen, found by two processes."""
    looks: list[Look] = []
    waiting = [(0, b"", folder)]
    while waiting:
        depth, name, folder = waiting.pop()
        looks.append((depth, name, folder.changed_ns, folder.names, folder.times))
        waiting += [(depth + 1, inner, each) for inner, each in folder.folders.items()]
    found = set(differing_twice(root, looks))
    touched: Names = {}
    way: list[bytes] = []
    for number, (depth, name, *_) in enumerate(looks):
        way[max(depth - 1, 0) :] = [name] if depth else []
        if number in found:
            inner = touched
            for each in way:
                below = inner.setdefault(each, {})
                assert isinstance(below, dict)
                inner = below
    return touched


def _is_held(digest: str, blobs: BlobStore) -> bool:
    """Whether all of a tree is in the store, and stays there."""
    try:
        return all(map(blobs.renew, blobs_of(digest, blobs)))
    except (BlobMissing, BlobDamaged):
        return False
