"""What setting a workspace back would do, path by path, without doing it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sandkeep.events import BlobStore
from sandkeep.sandboxes.manifest import Entry, Kind
from sandkeep.sandboxes.place import granted
from sandkeep.sandboxes.restore_plan import Step, plan
from sandkeep.sandboxes.snapshot_walk import readable
from sandkeep.sandboxes.tree import Tree

CREATE, REPLACE, ADJUST, DELETE, STRIP = "create", "replace", "adjust", "delete", "strip"


class Planned(msgspec.Struct, frozen=True):
    """What would be done to a path: "create", "replace" or "delete" it, "adjust" no more than its mode, owner, times or
    attributes, or "strip" what gives privileges of it. `kind` is what it would be, or was."""

    path: str
    action: str
    kind: str


def outline(present: str, target: str, blobs: BlobStore, *, privileges: bool = False) -> tuple[Planned, ...]:
    """What making the tree `present` into `target` would do, in the order of the paths; what is not named stays.

    A folder of which only the time changes is not named. Raises `BlobMissing` and `BlobDamaged`.
    """
    return tuple(
        Planned(readable(path), action, entry.kind)
        for path, action, entry in _found(present, target, blobs, privileges)
    )


def _found(present: str, target: str, blobs: BlobStore, privileges: bool) -> Iterator[tuple[bytes, str, Entry]]:
    old, new = Tree(present, blobs), Tree(target, blobs)
    for path, move in plan(present, target, blobs).paths():
        if not isinstance(move, Step):
            if _itself(move.old) != _itself(move.new):
                yield path, ADJUST, move.new
            continue
        was, now = move.old, move.new
        made = None if now is None else granted(now, privileges=privileges)
        if was is not None and made is None:
            yield path, DELETE, was
            yield from _below(old, path, was, DELETE)
        elif made is not None:
            yield path, CREATE if was is None else ADJUST if move.is_adjusting else REPLACE, made
            if was is not None:
                yield from _below(old, path, was, DELETE)
            yield from _below(new, path, made, CREATE)
        if now is not None and made != now:
            yield path, STRIP, now


def _itself(folder: Entry) -> Entry:
    return msgspec.structs.replace(folder, content="", mtime_ns=0)


def _below(tree: Tree, path: bytes, entry: Entry, action: str) -> Iterator[tuple[bytes, str, Entry]]:
    if entry.kind is Kind.FOLDER:
        yield from ((below, action, found) for below, found in tree.below(path))
