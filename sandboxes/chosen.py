"""Chosen paths: the tree that has them from one checkpoint, and all else from another.

A path that one of the trees lacks is chosen too: it is taken away, or made with the folders above it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import msgspec

from sandkeep.events import BlobStore
from sandkeep.sandboxes.errors import PathNotFound
from sandkeep.sandboxes.manifest import Entry, Kind, Manifest, Root, load, load_root, store, store_root
from sandkeep.sandboxes.snapshot_walk import readable
from sandkeep.sandboxes.tree import Tree
from sandkeep.sandboxes.workspace import MOUNT, inside

_Group = tuple[bytes, ...]


def parse(paths: Iterable[str]) -> tuple[bytes, ...]:
    """The paths in a workspace that a caller names, none of them below another; none for all of it. Raises
    `OutsideWorkspace`."""
    found = {os.fsencode(inside(path).relative_to(MOUNT)) for path in paths}
    if b"." in found:
        return ()
    return tuple(sorted(path for path in found if not any(_is_below(path, {other}) for other in found - {path})))


def graft(present: str, target: str, paths: Sequence[bytes], blobs: BlobStore) -> str:
    """Store the tree that `present` is with what lies at these paths as it is in `target`, and return its digest; it is
    `target` if there are none.

    Raises `PathNotFound` for what is in neither, `BlobMissing` and `BlobDamaged`.
    """
    if not paths:
        return target
    old, new = load_root(present, blobs), load_root(target, blobs)
    folder = old.folder
    for path in paths:
        folder = _grafted(folder, new.folder, path, blobs)
    with blobs.batch() as batch:
        return store_root(Root(folder, _links(old, new, Tree(present, blobs), Tree(target, blobs), paths)), batch)


def holds(paths: Sequence[bytes], path: bytes) -> bool:
    """Whether a path is among these, or below one of them; none are all."""
    return not paths or path in paths or _is_below(path, paths)


def _grafted(old: Entry, new: Entry, path: bytes, blobs: BlobStore) -> Entry:
    *above, last = path.split(b"/")
    way: list[tuple[Entry | None, Entry | None, Manifest]] = []
    was: Entry | None = old
    now: Entry | None = new
    for name in [*above, b""]:
        mine = load(was.content, blobs) if was is not None and was.kind is Kind.FOLDER else {}
        theirs = load(now.content, blobs) if now is not None and now.kind is Kind.FOLDER else {}
        way.append((was, now, mine))
        if name:
            was, now = mine.get(name), theirs.get(name)
    wanted = theirs.get(last)
    if wanted is None and last not in mine:
        raise PathNotFound(
            f"neither the checkpoint nor the workspace has {readable(path)!r}; name what one of them has"
        )
    with blobs.batch() as batch:
        for name, (was, now, entries) in zip([last, *reversed(above)], reversed(way), strict=True):
            entries.pop(name, None)
            if wanted is not None:
                entries[name] = wanted
            folder = was if was is not None and was.kind is Kind.FOLDER else now
            assert folder is not None  # it holds what was found
            wanted = msgspec.structs.replace(folder, content=store(entries, batch))
    assert wanted is not None
    return wanted


def _links(old: Root, new: Root, before: Tree, after: Tree, paths: Sequence[bytes]) -> tuple[_Group, ...]:
    """The names that are one file each: of what stays those that were, of what is chosen those that will be. A group
    of both trees stays whole if its file is the same."""
    shared = {group for group in set(old.links) & set(new.links) if before.entry(group[0]) == after.entry(group[0])}
    found = list(shared)
    for group in old.links:
        if group not in shared:
            # A path above a chosen one is a folder now.
            found.append(tuple(each for each in group if not holds(paths, each) and not _is_above(each, paths)))
    for group in new.links:
        if group not in shared:
            found.append(tuple(each for each in group if holds(paths, each)))
    return tuple(sorted(group for group in found if len(group) > 1))


def _is_below(path: bytes, paths: Iterable[bytes]) -> bool:
    return any(path.startswith(each + b"/") for each in paths)


def _is_above(path: bytes, paths: Iterable[bytes]) -> bool:
    return any(each.startswith(path + b"/") for each in paths)
