"""What differs between two recorded workspaces, path by path: text as unified hunks, all else in one line.

Kinds, contents and modes are compared; times, owners and attributes are nobody's work. What the files say may be
anything: whoever shows it must escape it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence

import msgspec

from sandkeep.events import BlobStore
from sandkeep.sandboxes import chosen, unified
from sandkeep.sandboxes.manifest import DEVICES, Entry, Kind
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.snapshot_walk import readable
from sandkeep.sandboxes.tree import Tree, differences

MOST_TEXT_BYTES = 1 << 20
"""The largest file that is shown line by line."""

MOST_LINES = 2_000
"""How many lines of one file are shown, at most."""

_SNIFFED_BYTES = 8_000
"""How much of a file is looked at to see whether it is text: git looks at as much."""


class FileDiff(msgspec.Struct, frozen=True):
    """What became of a path: `change` is "added", "removed" or "modified", and `note` says in a line what changed.

    `lines` are the unified hunks of a text, of which `added` and `removed` lines there are; `cut` if they are only the
    first of more.
    """

    path: str
    change: str
    note: str
    lines: tuple[str, ...] = ()
    added: int = 0
    removed: int = 0
    cut: bool = False


def diff(old: str, new: str, blobs: BlobStore, paths: Sequence[bytes] = (), *, text: bool = True) -> Iterator[FileDiff]:
    """What became of the tree `old` in `new`, in the order of the paths; of these `paths` and what is below them only,
    if there are any. Without `text` no lines are kept, only counted.

    Raises `BlobMissing` and `BlobDamaged`.
    """
    for path, was, now in differences(Tree(old, blobs), Tree(new, blobs)):
        if chosen.holds(paths, path):
            yield _file(readable(path), was, now, blobs, text=text)


def _file(path: str, was: Entry | None, now: Entry | None, blobs: BlobStore, *, text: bool) -> FileDiff:
    change = "added" if was is None else "removed" if now is None else "modified"
    note = _note(was, now)
    if not _is_shown(was) or not _is_shown(now) or _content(was) == _content(now):
        return FileDiff(path, change, note)
    before, after = (blobs.get(content) if content else b"" for content in (_content(was), _content(now)))
    if b"\0" in before[:_SNIFFED_BYTES] or b"\0" in after[:_SNIFFED_BYTES]:
        return FileDiff(path, change, f"{note}, binary")
    lines: list[str] = []
    counted = {"+": 0, "-": 0}
    total = 0
    for line in unified.hunks(before, after):
        total += 1
        if line[0] in counted:
            counted[line[0]] += 1
        if text and total <= MOST_LINES:
            lines.append(line)
    return FileDiff(path, change, note, tuple(lines), counted["+"], counted["-"], text and total > MOST_LINES)


def _is_shown(entry: Entry | None) -> bool:
    """Whether one side of a difference allows that it is shown line by line."""
    if entry is None:
        return True
    return entry.kind is Kind.FILE and entry.extents is None and entry.size <= MOST_TEXT_BYTES


def _content(entry: Entry | None) -> str:
    return "" if entry is None else entry.content


def _note(was: Entry | None, now: Entry | None) -> str:
    if was is None or now is None:
        entry = now or was
        assert entry is not None  # something differs
        return _what(entry)
    if was.kind is not now.kind:
        return f"{_what(was)} became {_what(now)}"
    told = [] if was.mode == now.mode else [f"mode {was.mode:04o} became {now.mode:04o}"]
    if was.kind is Kind.LINK:
        told.append(f"link to {readable(was.target)!r} became one to {readable(now.target)!r}")
    elif (was.content, was.size) != (now.content, now.size) and was.kind is Kind.FILE:
        told.append(f"{show_size(was.size)} became {show_size(now.size)}")
    elif was.kind in DEVICES and was.device != now.device:
        told.append("another device")
    return ", ".join(told) or was.kind


def _what(entry: Entry) -> str:
    if entry.kind is Kind.LINK:
        return f"link to {readable(entry.target)!r}"
    if entry.kind is Kind.FILE:
        executable = " executable" if entry.mode & stat.S_IXUSR else ""
        return f"{show_size(entry.size)}{executable} file"
    return entry.kind.replace("-", " ")
