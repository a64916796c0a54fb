"""How much checkpoints hold: what each adds to the one before it.

Two trees are compared by their digests, so this costs what differs. What is counted is what the store keeps apart:
manifests, files, and of large files the chunks; each as long as it is before compression. Something that comes back
after it was gone counts again, and what other tasks hold as well counts for each: so it is what these checkpoints would
take alone, or a little more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from sandkeep.events import BlobDamaged, BlobMissing, BlobStore
from sandkeep.projections import Checkpoint
from sandkeep.sandboxes.manifest import Entry, Kind, Manifest, differing, load, nodes

_REMEMBERED = 65_536

Pieces = dict[str, int]
"""Digests of what is stored, and how long each is."""


@final
class Growth:
    """What the checkpoints of a keep add. What was found is remembered: it follows from digests, and never changes."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._known: dict[tuple[str, str], int] = {}

    def held(self, taken: Sequence[Checkpoint]) -> int:
        """How many bytes these checkpoints of one task hold together, given oldest first."""
        return sum(self.each(taken))

    def each(self, taken: Sequence[Checkpoint]) -> list[int]:
        """What each of these checkpoints of one task adds to the one before it; the first holds all of its files."""
        return [each.bytes for each in taken[:1]] + [self._added(*pair) for pair in pairwise(taken)]

    def _added(self, before: Checkpoint, after: Checkpoint) -> int:
        pair = (before.digest, after.digest)
        if pair not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            try:
                self._known[pair] = added(*pair, self._blobs)
            except (BlobMissing, BlobDamaged):  # 'verify' tells of it
                return after.bytes
        return self._known[pair]


def added(old: str, new: str, blobs: BlobStore) -> int:
    """How many bytes the tree `new` has that `old` has not. Raises `BlobMissing` and `BlobDamaged`."""
    mine, theirs = Pieces(), Pieces()
    waiting: list[tuple[str, str]] = [(old, new)]
    while waiting:
        before, after = waiting.pop()
        _manifests(before, theirs, blobs)
        _manifests(after, mine, blobs)
        was, now = _entries(before, after, blobs)
        for name in was.keys() | now.keys():
            one, other = was.get(name), now.get(name)
            if one == other:
                continue
            folders = _folder(one), _folder(other)
            if folders[0] != folders[1]:
                waiting.append(folders)
            for entry, found in ((one, theirs), (other, mine)):
                if entry is not None and entry.kind is Kind.FILE:
                    found.update(blobs.pieces(entry.content))
    return sum(size for digest, size in mine.items() if digest not in theirs)


def _entries(before: str, after: str, blobs: BlobStore) -> tuple[Manifest, Manifest]:
    """The entries of two folders that are not in nodes of both; of a folder that is not there, none."""
    if before and after:
        return differing(before, after, blobs)
    return (load(before, blobs) if before else {}), (load(after, blobs) if after else {})


def _folder(entry: Entry | None) -> str:
    return entry.content if entry is not None and entry.kind is Kind.FOLDER else ""


def _manifests(folder: str, found: Pieces, blobs: BlobStore) -> None:
    for node in nodes(folder, blobs) if folder else ():
        found.update(blobs.pieces(node))
