"""What has to be done to a tree so that it has what was changed in another since both were one. Pure functions.

Path by path, over three trees: `base`, of which both were made; `own`, whose changes are wanted; and `theirs`, in which
they are to be made. What only `own` changed is taken; what both changed, and not alike, *collides*. Own content is
then put in place all the same, unless it has no place: a folder may be there now, or something that is none above it.
A strategy settles it afterwards (see `conflict_work`). Folders and their modes never collide: those of `theirs` stay.

What lies in a repository is `git_sides`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

import msgspec

from sandkeep.events.catalogue import Change, Version
from sandkeep.sandboxes import survey
from sandkeep.sandboxes.manifest import Entry, Kind
from sandkeep.sandboxes.survey import Seen
from sandkeep.sandboxes.tree import Difference, Tree, differences, version

GIT = b".git"

Leaving = Set[tuple[bytes, bool]]
"""Paths that will be free, each of a folder or of what is none."""


class Step(msgspec.Struct, frozen=True):
    """Put `entry` at `path`, or nothing: then remove what is there, a `folder` only if it is empty."""

    path: bytes
    entry: Entry | None
    folder: bool = False


class Overlap(msgspec.Struct, frozen=True):
    """A path that both sides changed, as text: what each has there, and where the same content went to, if anywhere."""

    path: str
    base: Version | None
    ours: Version | None
    theirs: Version | None
    renamed: str = ""


class Plan(msgspec.Struct, frozen=True):
    """The steps to be done, in order, and what collides."""

    steps: tuple[Step, ...]
    overlaps: tuple[Overlap, ...]


def in_repository(path: bytes) -> bool:
    """Whether a path lies in a git repository's own folder, or is that."""
    return GIT in path.split(b"/")


def plan(base: Tree, own: Tree, theirs: Tree) -> Plan:
    """What is to be done outside of repositories."""
    mine, other = ([each for each in differences(base, side) if not in_repository(each[0])] for side in (own, theirs))
    changes, changed = _changes(mine), _changes(other)
    files = {path: new for path, old, new in mine if not _is_folder(old, new)}
    folders = [(path, old, new) for path, old, new in mine if _is_folder(old, new)]
    leaving = {(path, False) for path, entry in files.items() if entry is None}
    leaving |= {(path, True) for path, _, entry in folders if entry is None}
    gone: list[Step] = []
    made: list[Step] = []
    overlaps: list[Overlap] = []
    for path, entry in files.items():
        change = changes[survey.text(path)]
        there = version(theirs.entry(path))
        if there == change.after:
            continue
        blocked = entry is not None and not has_place(path, theirs, leaving)
        if blocked or there != change.before:
            their = changed.get(change.path)
            renamed = change.renamed or (their.renamed if their is not None and there is None else "")
            overlaps.append(Overlap(change.path, change.before, change.after, there, renamed))
        if not blocked:
            (gone if entry is None else made).append(Step(path, entry))
    removed, kept = _folder_steps(folders, theirs, leaving)
    return Plan((*gone, *removed, *made, *kept), tuple(overlaps))


def _folder_steps(folders: Iterable[Difference], theirs: Tree, leaving: Leaving) -> tuple[list[Step], list[Step]]:
    """Folders to remove, and those to make or to give another mode; the deepest first."""
    removed: list[Step] = []
    kept: list[Step] = []
    for path, old, new in folders:
        there = theirs.entry(path)
        is_folder = there is not None and there.kind is Kind.FOLDER
        if new is None:
            removed += [Step(path, None, True)] if is_folder else []
        elif old is None:
            free = there is None or (path, False) in leaving
            kept += [Step(path, new, True)] if free and not is_folder and has_place(path, theirs, leaving) else []
        elif is_folder and there is not None and there.mode == old.mode:
            kept.append(Step(path, new, True))
    return removed[::-1], kept[::-1]


def has_place(path: bytes, theirs: Tree, leaving: Leaving) -> bool:
    """Whether something can be put at `path`, once all that is `leaving` has left."""
    parts = path.split(b"/")
    for number in range(1, len(parts)):
        above = b"/".join(parts[:number])
        found = theirs.entry(above)
        if found is None:
            break
        if found.kind is not Kind.FOLDER and (above, False) not in leaving:
            return False
    found = theirs.entry(path)
    if found is None or found.kind is not Kind.FOLDER:
        return True
    inner = ((each, entry.kind is Kind.FOLDER) for each, entry in theirs.below(path))
    return (path, True) in leaving and all(each in leaving for each in inner)


def _is_folder(old: Entry | None, new: Entry | None) -> bool:
    found = old or new
    return found is not None and found.kind is Kind.FOLDER


def _changes(found: Iterable[Difference]) -> dict[str, Change]:
    before: dict[str, Seen] = {}
    after: dict[str, Seen] = {}
    for path, old, new in found:
        for side, entry in ((before, old), (after, new)):
            if (what := version(entry)) is not None:
                side[survey.text(path)] = Seen((), what)
    return {change.path: change for change in survey.changes(before, after)}
