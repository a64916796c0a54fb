"""What damage means: which paths of which checkpoints cannot be restored since blobs are damaged or gone.

Every manifest is read once, however many checkpoints share it; only those that lead to damage are looked at again for
each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import BlobDamaged, BlobMissing, BlobStore
from sandkeep.projections import checkpoints
from sandkeep.sandboxes.manifest import Kind, leaf, load_root, nodes, references

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


class Affected(msgspec.Struct, frozen=True):
    """A path of a checkpoint that cannot be restored, since of `digest` nothing whole is stored. A folder ends with a
    slash: nothing is known of what was in it."""

    task: str
    checkpoint: str
    path: str
    digest: str


def affected(keep: Keep, damaged: Collection[str]) -> Iterator[Affected]:
    """The paths that cannot be restored, of all checkpoints that have not expired, since these blobs are `damaged`."""
    if not damaged:
        return
    with keep.projections.reading() as state:
        live = [each for task in checkpoints.having(state) for each in checkpoints.checkpoints(state, task)]
    found = _Found(keep.blobs, damaged)
    found.look([each.digest for each in live])
    for each in live:
        for path, digest in found.paths(each.digest):
            yield Affected(each.task, each.id, path.decode("utf-8", "backslashreplace"), digest)


@final
class _Found:
    """Which manifests lead to damage."""

    def __init__(self, blobs: BlobStore, damaged: Collection[str]) -> None:
        self._blobs = blobs
        self._damaged = damaged
        self._unreadable: set[str] = set()
        self._leading: set[str] = set()

    def look(self, roots: list[str]) -> None:
        """Read all manifests of these trees."""
        above: defaultdict[str, set[str]] = defaultdict(set)
        seen, waiting = set(roots), list(roots)
        touched: list[str] = []
        while waiting:
            current = waiting.pop()
            try:
                data = self._blobs.get(current)
                for each in references(current, data):
                    if each.tree:
                        above[each.digest].add(current)
                        if each.digest not in seen:
                            seen.add(each.digest)
                            waiting.append(each.digest)
                    elif each.digest in self._damaged:
                        touched.append(current)
            except (BlobDamaged, BlobMissing):
                self._unreadable.add(current)
                touched.append(current)
        while touched:
            current = touched.pop()
            if current not in self._leading:
                self._leading.add(current)
                touched += above[current]

    def paths(self, root: str) -> Iterator[tuple[bytes, str]]:
        """The paths in a tree that are damaged, and what is."""
        waiting = [(b"", root)] if root in self._leading else []
        while waiting:
            path, digest = waiting.pop()
            try:
                parts = nodes(load_root(digest, self._blobs).folder.content, self._blobs)
            except (BlobDamaged, BlobMissing):  # the folder itself, or one of the nodes that it consists of
                yield path, digest
                continue
            for part in parts:
                if part in self._unreadable:
                    yield path, part
                    continue
                for entry in leaf(part, self._blobs) if part in self._leading else ():
                    if entry.kind is Kind.FOLDER and entry.content in self._leading:
                        waiting.append((path + entry.name + b"/", entry.content))
                    elif entry.kind is Kind.FILE and entry.content in self._damaged:
                        yield path + entry.name, entry.content
