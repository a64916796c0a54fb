"""Making what was not there: files, and folders with all that is in them, however deep and however many.

They are made beside the workspace, where nobody looks and nobody interferes, and are verified as they are read. What
they have in the workspace then is a name. The names of one file (hard links) are made once, and linked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import final

from sandkeep.events import BlobStore
from sandkeep.sandboxes import place, seen
from sandkeep.sandboxes.descent import FOLDER, Descent
from sandkeep.sandboxes.manifest import Entry, Kind, leaf, nodes
from sandkeep.sandboxes.place import granted
from sandkeep.sandboxes.snapshot_walk import COARSE

FEW = 100
"""So many new entries are looked at again sooner than it is known that nobody can have changed them."""


@final
class _Frame:
    """A folder that is being made: what it is to be, its folders that are still to be made, where it is, and what is
    known of it then."""

    __slots__ = ("above", "entry", "folders", "is_whole", "made")

    def __init__(self, entry: Entry, above: _Frame | None, made: seen.Folder) -> None:
        self.entry = entry
        self.above = above
        self.folders: list[Entry] = []
        self.made = made
        self.is_whole = _is_ours(entry)


@final
class Builder:
    """What makes new entries in the folder open as `stage`. `links` are groups of paths that are one file each."""

    def __init__(
        self, stage: int, blobs: BlobStore, links: Iterable[tuple[bytes, ...]], *, privileges: bool = False
    ) -> None:
        self._stage = stage
        self._blobs = blobs
        self._groups = {path: number for number, group in enumerate(links) for path in group}
        self._linked: set[int] = set()
        self._privileges = privileges
        self._count = 0
        self._folders: dict[bytes, seen.Folder] = {}

    def make(self, name: bytes, entry: Entry, path: bytes) -> bool:
        """Make, under a `name` in the stage, what is to be at `path` in the workspace; whether there is anything.

        Raises `BlobMissing`, `BlobDamaged` and `OSError`.
        """
        if entry.kind is not Kind.FOLDER:
            return self._one(self._stage, name, entry, path) is not None
        made = self._folders[name] = _unseen(entry)
        os.mkdir(name, 0o700, dir_fd=self._stage)
        folder = os.open(name, FOLDER, dir_fd=self._stage)
        try:
            self._tree(folder, entry, path, made)
        finally:
            os.close(folder)
        return True

    def known(self) -> dict[bytes, seen.Folder]:
        """What is known of the folders that were made, by their names in the stage: nobody else writes there, so what
        is in them is what was written, until their times change. Nothing, if there is little to be known.

        Whatever is done to them after this gives them other times.
        """
        if self._count <= FEW or not self._folders:
            return {}
        made_ns = time.clock_gettime_ns(COARSE)
        while time.clock_gettime_ns(COARSE) <= made_ns + seen.RACY_NS:
            time.sleep(seen.RACY_NS / 1e9)
        in_whole_seconds = os.fstat(self._stage).st_ctime_ns % 1_000_000_000 == 0
        return {} if in_whole_seconds else self._folders

    def _tree(self, folder: int, entry: Entry, path: bytes, made: seen.Folder) -> None:
        """Make all that is in a new folder, however deep."""
        with Descent(folder) as way:
            top = self._begin(way.folder, _Frame(entry, None, made), path)
            frames = [top]
            while frames:
                frame = frames[-1]
                if not frame.folders:
                    frames.pop()
                    if frames:
                        changed_ns = self.leave(way, frame.entry)
                        # What is not as it was recorded is looked at again.
                        frame.made.changed_ns = changed_ns if frame.is_whole else 0
                    continue
                inner = frame.folders.pop()
                below = frame.made.folders[inner.name] = _unseen(inner)
                os.mkdir(inner.name, 0o700, dir_fd=way.folder)
                way.enter(inner.name)
                frames.append(self._begin(way.folder, _Frame(inner, frame, below), path))
        place.finish(folder, entry, synced=False)
        made.changed_ns = os.fstat(folder).st_ctime_ns if top.is_whole else 0

    def leave(self, way: Descent, entry: Entry) -> int:
        """Leave the folder that was entered last, which is what `entry` says from then on; returns its status change
        time, in ns."""
        done = os.dup(way.folder)
        try:
            way.leave()  # what the folder is to be may not let us pass any more
            place.finish(done, entry, synced=False)
            return os.fstat(done).st_ctime_ns
        finally:
            os.close(done)

    def _begin(self, folder: int, frame: _Frame, path: bytes) -> _Frame:
        """Make all that is in a new folder, but for its folders."""
        made = frame.made
        for digest in nodes(frame.entry.content, self._blobs):
            for inner in leaf(digest, self._blobs):
                if inner.kind is Kind.FOLDER:
                    frame.folders.append(inner)
                    continue
                at = self._at(path, frame, inner.name) if self._groups else b""
                time_ns = self._one(folder, inner.name, inner, at)
                if time_ns is None:
                    frame.is_whole = False
                    continue
                made.names.append(inner.name)
                made.times.append(time_ns)
                if inner.kind is Kind.FILE:
                    made.files += 1
                    made.size += inner.size
        return frame

    def _one(self, folder: int, name: bytes, entry: Entry, path: bytes) -> int | None:
        """Make what is no folder. Returns its status change time, 0 if it is not to be relied on, or None if nothing
        was made."""
        made = granted(entry, privileges=self._privileges)
        if made is None:
            return None
        self._count += 1
        group = self._groups.get(path)
        if group is None:
            time_ns = place.make(folder, name, made, self._blobs, synced=False)
            return time_ns if made == entry and _is_ours(entry) else 0
        first = f"linked-{group}".encode()
        if group not in self._linked:
            place.make(self._stage, first, made, self._blobs, synced=False)
            self._linked.add(group)
        os.link(first, name, src_dir_fd=self._stage, dst_dir_fd=folder, follow_symlinks=False)
        return 0

    @staticmethod
    def _at(path: bytes, frame: _Frame, name: bytes) -> bytes:
        names = [name]
        while frame.above is not None:
            names.append(frame.entry.name)
            frame = frame.above
        return b"/".join([path, *reversed(names)])


def _unseen(entry: Entry) -> seen.Folder:
    return seen.Folder(0, [], [], {}, {}, entry.content, 0, 0)


def _is_ours(entry: Entry) -> bool:
    """Whether the owner is the one that was recorded: only root can see to that."""
    return os.getuid() == 0 or (entry.uid, entry.gid) == (os.getuid(), os.getgid())
