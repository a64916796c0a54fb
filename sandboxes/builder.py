"""Making what was not there: files, and folders with all that is in them, however deep and however many.

They are made beside the workspace, where nobody looks and nobody interferes, and are verified as they are read. What
they have in the workspace then is a name. The names of one file (hard links) are made once, and linked.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable
from typing import final

import msgspec

from sandkeep.events import BlobStore
from sandkeep.sandboxes import place
from sandkeep.sandboxes.crew import Crew
from sandkeep.sandboxes.descent import FOLDER, Descent
from sandkeep.sandboxes.manifest import Entry, Kind, leaf, nodes
from sandkeep.sandboxes.place import granted

SYNCED_EACH = 100
"""How many entries are synced one by one; if there are more, the file system is synced once instead."""


@final
class _Frame:
    """A folder that is being made: what it is to be, its folders that are still to be made, and where it is."""

    __slots__ = ("above", "entry", "folders")

    def __init__(self, entry: Entry, above: _Frame | None) -> None:
        self.entry = entry
        self.above = above
        self.folders: list[Entry] = []


class _Tree(msgspec.Struct, frozen=True):
    """A new folder, open, what it is to be, and its path in the workspace."""

    folder: int
    entry: Entry
    path: bytes


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
        self._linking = threading.Lock()
        self._made = itertools.count(1)
        self._crew: Crew[_Tree] = Crew(self._tree, lambda tree: os.close(tree.folder), lambda: self.synced_all)
        self.synced_all = True
        """Whether each entry was synced by itself so far."""

    def make(self, name: bytes, entry: Entry, path: bytes) -> bool:
        """Make, under a `name` in the stage, what is to be at `path` in the workspace; whether there is anything.

        Raises `BlobMissing`, `BlobDamaged` and `OSError`.
        """
        if entry.kind is not Kind.FOLDER:
            return self._one(self._stage, name, entry, path)
        self._crew.run(self._new(self._stage, entry, name, path))
        return True

    def _new(self, folder: int, entry: Entry, name: bytes, path: bytes) -> _Tree:
        os.mkdir(name, 0o700, dir_fd=folder)
        return _Tree(os.open(name, FOLDER, dir_fd=folder), entry, path)

    def _tree(self, tree: _Tree) -> None:
        """Make all that is in a new folder, however deep."""
        try:
            with Descent(tree.folder) as way:
                frames = [self._begin(way.folder, tree.entry, None, tree.path)]
                while frames:
                    frame = frames[-1]
                    if not frame.folders:
                        frames.pop()
                        if frames:
                            self.leave(way, frame.entry)
                        continue
                    inner = frame.folders.pop()
                    if self._crew.wants():
                        path = self._at(tree.path, frame, inner.name) if self._groups else b""
                        self._crew.give(self._new(way.folder, inner, inner.name, path))
                        continue
                    os.mkdir(inner.name, 0o700, dir_fd=way.folder)
                    way.enter(inner.name)
                    frames.append(self._begin(way.folder, inner, frame, tree.path))
            place.finish(tree.folder, tree.entry, synced=self.synced())
        finally:
            os.close(tree.folder)

    def leave(self, way: Descent, entry: Entry) -> None:
        """Leave the folder that was entered last, which is what `entry` says from then on."""
        done = os.dup(way.folder)
        try:
            way.leave()  # what the folder is to be may not let us pass any more
            place.finish(done, entry, synced=self.synced())
        finally:
            os.close(done)

    def synced(self) -> bool:
        """Whether one more entry is synced by itself."""
        if next(self._made) > SYNCED_EACH:
            self.synced_all = False
        return self.synced_all

    def _begin(self, folder: int, entry: Entry, above: _Frame | None, path: bytes) -> _Frame:
        """Make all that is in a new folder, but for its folders."""
        frame = _Frame(entry, above)
        for digest in nodes(entry.content, self._blobs):
            for inner in leaf(digest, self._blobs):
                if inner.kind is Kind.FOLDER:
                    frame.folders.append(inner)
                else:
                    self._one(folder, inner.name, inner, self._at(path, frame, inner.name) if self._groups else b"")
        return frame

    def _one(self, folder: int, name: bytes, entry: Entry, path: bytes) -> bool:
        made = granted(entry, privileges=self._privileges)
        if made is None:
            return False
        group = self._groups.get(path)
        if group is None:
            place.make(folder, name, made, self._blobs, synced=self.synced())
            return True
        first = f"linked-{group}".encode()
        with self._linking:
            if group not in self._linked:
                place.make(self._stage, first, made, self._blobs, synced=self.synced())
                self._linked.add(group)
        os.link(first, name, src_dir_fd=self._stage, dst_dir_fd=folder, follow_symlinks=False)
        return True

    @staticmethod
    def _at(path: bytes, frame: _Frame, name: bytes) -> bytes:
        names = [name]
        while frame.above is not None:
            names.append(frame.entry.name)
            frame = frame.above
        return b"/".join([path, *reversed(names)])
