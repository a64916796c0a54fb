"""What has to be done in a repository so that it has what was done in another since both were one. Git is not run.

Objects are only ever added. Branches are compared by the commits they name, wherever git keeps these: one that only one
side moved goes there, one that goes on from the other's does too, and any other that both moved collides and stays.

What is checked out is one thing: HEAD, the index and the branch that HEAD names. A branch put under an index that knows
nothing of it would make the next commit take its changes back. So they are taken together, if the repository's own are
as they were in `base`, or the own branch goes on from them; else all three stay, and the branch and the submodules that
were changed collide. Anything else in there that both sides changed stays too: it is git's, and nobody's work. So
does a repository that was removed as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import final

from sandkeep.events import BlobStore
from sandkeep.events.catalogue import Version
from sandkeep.sandboxes import refs, survey
from sandkeep.sandboxes.manifest import Entry, Kind
from sandkeep.sandboxes.shadow import POINTER
from sandkeep.sandboxes.three_way import GIT, Overlap, Plan, Step, has_place, in_repository
from sandkeep.sandboxes.tree import Tree, differences, version
from sandkeep.sandboxes.workspace import owner

Follows = Callable[[bytes, bytes], bool]
"""Whether the first commit has the second among its forebears, as far as the repository asked can tell."""

_HEAD, _INDEX, _PACKED = b".git/HEAD", b".git/index", b".git/packed-refs"
_OBJECTS = b"objects"
_LOCK = b".lock"
_CHECKED_OUT = re.compile(rb"ref: (refs/heads/\S+)\n?")
_MAX_HEAD_BYTES = 4096


def plan(base: Tree, own: Tree, theirs: Tree, own_follows: Follows, their_follows: Follows, blobs: BlobStore) -> Plan:
    """What is to be done inside of repositories. The commits of branches that it names are put into `blobs`."""
    return _Repository(base, own, theirs, own_follows, their_follows, blobs).plan()


@final
class _Repository:
    """The three sides of the repository at the top of a workspace; those further down have files only."""

    def __init__(
        self, base: Tree, own: Tree, theirs: Tree, own_follows: Follows, their_follows: Follows, blobs: BlobStore
    ) -> None:
        self._base, self._own, self._theirs = base, own, theirs
        self._own_follows, self._their_follows = own_follows, their_follows
        self._blobs = blobs
        self._current = _checked_out(theirs)
        self._was, self._mine, self._there = (_branches(side) for side in (base, own, theirs))
        self._takes = self._takes_checked_out()

    def plan(self) -> Plan:
        objects: list[Step] = []
        folders: list[Step] = []
        files: list[Step] = []
        for path, old, new in differences(self._base, self._own):
            if not in_repository(path) or path.startswith(refs.HEADS) or path.endswith(_LOCK):
                continue
            there, parts = self._theirs.entry(path), path.split(b"/")
            if new is None and not _has_repository(self._own, parts):
                continue
            if new is not None and new.kind is Kind.FOLDER:
                folders += [Step(path, new, True)] if there is None else []
            elif (old is not None and old.kind is Kind.FOLDER) or not has_place(path, self._theirs, set()):
                continue
            elif _OBJECTS in parts[parts.index(GIT) :]:
                objects += [Step(path, new)] if there is None and new is not None else []
            elif path in (_HEAD, _INDEX):
                files += [Step(path, new)] if self._takes else []
            elif version(there) == version(old) and version(new) != version(there):
                files.append(Step(path, new))
        if not _has_repository(self._own, [GIT]):
            return Plan((*folders[::-1], *objects, *files), ())
        steps, overlaps = self._moved()
        return Plan((*folders[::-1], *objects, *files, *steps), (*overlaps, *self._submodules()))

    def _takes_checked_out(self) -> bool:
        """Whether what is checked out becomes what it is in the own workspace."""
        if version(self._base.entry(_HEAD)) != version(self._theirs.entry(_HEAD)):
            return False
        was, mine, there = (side.get(self._current) for side in (self._was, self._mine, self._there))
        if was != there:
            return mine is not None and there is not None and self._own_follows(mine, there)
        return _same_index(self._base, self._theirs)

    def _moved(self) -> tuple[list[Step], list[Overlap]]:
        """The branches to be set, and those that collide."""
        steps: list[Step] = []
        overlaps: list[Overlap] = []
        left = self._current if self._kept_index() else b""
        leaving = {(name, False) for name in self._was.keys() - self._mine.keys()}
        for name in sorted(self._was.keys() | self._mine.keys()):
            was, mine, there = self._was.get(name), self._mine.get(name), self._there.get(name)
            if mine in (was, there):
                continue
            if mine is not None and there is not None and self._their_follows(there, mine):
                continue
            goes_on = mine is not None and there is not None and self._own_follows(mine, there)
            stuck = self._stays_packed(name) if mine is None else not has_place(name, self._theirs, leaving)
            if (there == was or goes_on) and name != left and not stuck:
                steps.append(Step(name, None if mine is None else self._file(mine)))
            else:
                overlaps.append(self._overlap(name, was, mine, there))
        return steps, overlaps

    def _submodules(self) -> Iterator[Overlap]:
        """The submodules that were set to other commits, if the index that says so stays behind."""
        if self._kept_index():
            was, mine, there = (
                refs.submodules(side.content(_INDEX, refs.MAX_BYTES)) for side in (self._base, self._own, self._theirs)
            )
            for name in sorted(was.keys() | mine.keys()):
                if mine.get(name) not in (was.get(name), there.get(name)):
                    yield self._overlap(name, was.get(name), mine.get(name), there.get(name))

    def _kept_index(self) -> bool:
        """Whether an index that the own workspace has changed stays behind."""
        return not self._takes and not _same_index(self._base, self._own)

    def _stays_packed(self, name: bytes) -> bool:
        """Whether git's packed list will name the branch whatever becomes of its own file."""
        before, there = self._base.entry(_PACKED), self._theirs.entry(_PACKED)
        kept = self._own if version(before) == version(there) else self._theirs
        return name in refs.branches(kept.content(_PACKED, refs.MAX_BYTES), ())

    def _file(self, commit: bytes) -> Entry:
        content = commit + b"\n"
        return Entry(b"-", Kind.FILE, 0o644, *owner(), 0, len(content), self._blobs.put(content))

    def _overlap(self, name: bytes, was: bytes | None, mine: bytes | None, there: bytes | None) -> Overlap:
        return Overlap(survey.text(name), self._version(was), self._version(mine), self._version(there))

    def _version(self, commit: bytes | None) -> Version | None:
        if commit is None:
            return None
        content = commit + b"\n"
        return Version(POINTER, self._blobs.put(content), len(content), 0o644)


def _has_repository(tree: Tree, path: list[bytes]) -> bool:
    """Whether the repository that a path lies in is there."""
    found = tree.entry(b"/".join(path[: path.index(GIT) + 1]))
    return found is not None and found.kind is Kind.FOLDER


def _branches(tree: Tree) -> dict[bytes, bytes]:
    loose = (
        (path, tree.content(path, _MAX_HEAD_BYTES))
        for path, entry in tree.below(refs.HEADS.rstrip(b"/"))
        if entry.kind is Kind.FILE
    )
    return refs.branches(tree.content(_PACKED, refs.MAX_BYTES), loose)


def _checked_out(tree: Tree) -> bytes:
    """The branch that HEAD names, as `refs` lists it; empty if it names none."""
    found = _CHECKED_OUT.fullmatch(tree.content(_HEAD, _MAX_HEAD_BYTES))
    return b".git/" + found[1] if found else b""


def _same_index(one: Tree, other: Tree) -> bool:
    """Whether both have the same staged. What only the times of files have changed, git changes by itself."""
    if version(one.entry(_INDEX)) == version(other.entry(_INDEX)):
        return True
    first, second = (refs.entries(side.content(_INDEX, refs.MAX_BYTES)) for side in (one, other))
    return first is not None and first == second
