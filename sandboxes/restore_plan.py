"""What has to be done to make one recorded tree into another: only what differs, found in the time of the difference.

The plan is a walk through the folders that both trees have and that differ: a folder is entered, what is not as it
should be in it is named, and the folder is left. What is below a folder that only one of the trees has is one step.

Names of one file (hard links) belong together: if one of a group is to be made, all of the group are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import msgspec

from sandkeep.events import BlobStore
from sandkeep.sandboxes.manifest import Entry, Kind, Root, differing, load, load_root


class Enter(msgspec.Struct, frozen=True):
    """Go into a folder that was and will be there."""

    old: Entry
    new: Entry


class Leave(msgspec.Struct, frozen=True):
    """Nothing is left to be done in the folder that was entered last, which is to be `new` itself."""

    new: Entry


class Step(msgspec.Struct, frozen=True):
    """A name that is to be `new` and was `old`, None for nothing; one of them is no folder, and they are the same only
    if it is to be made `anew`: as another name of a file, or as one that shares no file any more."""

    name: bytes
    old: Entry | None
    new: Entry | None
    anew: bool = False

    @property
    def is_adjusting(self) -> bool:
        """Whether a file's content can stay as it is."""
        old, new = self.old, self.new
        if self.anew or old is None or new is None or not old.kind is new.kind is Kind.FILE:
            return False
        return (old.content, old.size, old.extents) == (new.content, new.size, new.extents)


Move: TypeAlias = Enter | Leave | Step


class Plan(msgspec.Struct, frozen=True):
    """The two roots, and the moves that lead from one to the other."""

    old: Root
    new: Root
    moves: list[Move]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return not self.moves and _is_as(self.old.folder, self.new.folder)

    def paths(self) -> Iterator[tuple[bytes, Enter | Step]]:
        """What is entered and what is done, each with its path."""
        names: list[bytes] = []
        for move in self.moves:
            match move:
                case Enter():
                    names.append(move.new.name)
                    yield b"/".join(names), move
                case Leave():
                    names.pop()
                case Step():
                    yield b"/".join([*names, move.name]), move

    def steps(self) -> Iterator[tuple[bytes, Step]]:
        """The steps, each with its path."""
        return ((path, move) for path, move in self.paths() if isinstance(move, Step))


_Anew: TypeAlias = dict[bytes, "_Anew"]


def plan(present: str, target: str, blobs: BlobStore) -> Plan:
    """How the tree `present` becomes `target`. Raises `BlobMissing` and `BlobDamaged`."""
    old, new = load_root(present, blobs), load_root(target, blobs)
    moves = list(_walk(old.folder, new.folder, blobs, {}))
    found = Plan(old, new, moves)
    anew = _regrouped(found)
    return msgspec.structs.replace(found, moves=list(_walk(old.folder, new.folder, blobs, anew))) if anew else found


def _regrouped(found: Plan) -> _Anew:
    """The names of files that are not, or will not be, the same files as others, as a tree."""
    if not (found.old.links or found.new.links):
        return {}
    old = {path: group for group in found.old.links for path in group}
    new = {path: group for group in found.new.links for path in group}
    steps = dict(found.steps())
    anew = {path for group in found.new.links if len({old.get(each) for each in group}) > 1 for path in group}
    anew.update(path for group in found.new.links if group[0] not in old for path in group)
    for group in found.old.links:
        # Of those that part, one may go on with the file, the others get one of their own.
        parts = {new.get(path, (path,)) for path in group if not _is_gone(path, steps)}
        stays = max((each for each in parts if not anew.intersection(each)), key=len, default=())
        anew.update(path for each in parts if each != stays for path in each)
    for path in steps:
        anew.update(new.get(path, ()))
    return _tree(anew)


def _is_gone(path: bytes, steps: dict[bytes, Step]) -> bool:
    names = path.split(b"/")
    above = (steps.get(b"/".join(names[:end])) for end in range(1, len(names) + 1))
    return any(step is not None and step.new is None for step in above)


def _tree(paths: Iterable[bytes]) -> _Anew:
    found: _Anew = {}
    for path in paths:
        inner = found
        for name in path.split(b"/"):
            inner = inner.setdefault(name, {})
    return found


def _walk(old: Entry, new: Entry, blobs: BlobStore, anew: _Anew) -> Iterator[Move]:
    waiting = [(new, anew, _pairs(old.content, new.content, blobs, anew))]
    while waiting:
        folder, names, pairs = waiting[-1]
        for name, was, now in pairs:
            if was is not None and now is not None and was.kind is now.kind is Kind.FOLDER:
                yield Enter(was, now)
                inner = names.get(name, {})
                waiting.append((now, inner, _pairs(was.content, now.content, blobs, inner)))
                break
            yield Step(name, was, now, name in names)
        else:
            waiting.pop()
            if waiting:
                yield Leave(folder)


def _pairs(old: str, new: str, blobs: BlobStore, anew: _Anew) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    """What is not as it should be in a folder, and what is to be made anew in it."""
    before, after = (load(old, blobs), load(new, blobs)) if anew else differing(old, new, blobs)
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was != now or name in anew:
            yield name, was, now


def _is_as(old: Entry, new: Entry) -> bool:
    """Whether a folder itself is what it should be, as far as that is known."""
    return new.uid < 0 or msgspec.structs.replace(old, content="") == msgspec.structs.replace(new, content="")
