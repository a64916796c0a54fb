"""Trees of manifests, read by path, and compared in the time of their difference.

Two entries are the same when kind, mode and content are: times and owners are no change of anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from blake3 import blake3

from sandkeep.events import BlobStore
from sandkeep.events.catalogue import Version
from sandkeep.sandboxes.manifest import MODE_BITS, Entry, Kind, Manifest, differing, load

Difference = tuple[bytes, Entry | None, Entry | None]
"""A path, and what was and is there: folders on both sides, or on neither; None for nothing."""


@final
class Tree:
    """The tree whose root manifest is `digest`. Reading it raises `BlobMissing` and `BlobDamaged`."""

    def __init__(self, digest: str, blobs: BlobStore) -> None:
        self.digest = digest
        self._blobs = blobs
        self._known: dict[str, Manifest] = {}

    def folder(self, digest: str) -> Manifest:
        """The manifest of one of its folders."""
        if digest not in self._known:
            self._known[digest] = load(digest, self._blobs)
        return self._known[digest]

    def differing(self, one: str, other: str) -> tuple[Manifest, Manifest]:
        """The entries of two folders that may differ."""
        return differing(one, other, self._blobs)

    def entry(self, path: bytes) -> Entry | None:
        """What is at `path`; None if nothing is, or something above it is no folder."""
        found: Entry | None = None
        content = self.digest
        for name in path.split(b"/"):
            if found is not None and found.kind is not Kind.FOLDER:
                return None
            found = self.folder(content).get(name)
            if found is None:
                return None
            content = found.content
        return found

    def below(self, path: bytes) -> Iterator[tuple[bytes, Entry]]:
        """All that is in the folder at `path`, however deep; nothing if it is none."""
        found = self.entry(path)
        if found is not None and found.kind is Kind.FOLDER:
            yield from self._walk(found.content, path + b"/")

    def content(self, path: bytes, most: int) -> bytes:
        """The content of the file at `path`; empty if it is none, or larger than `most`."""
        found = self.entry(path)
        if found is None or found.kind is not Kind.FILE or found.size > most:
            return b""
        return self._blobs.get(found.content)

    def _walk(self, digest: str, prefix: bytes) -> Iterator[tuple[bytes, Entry]]:
        waiting = [(prefix, iter(self.folder(digest).items()))]
        while waiting:
            prefix, entries = waiting[-1]
            for name, entry in entries:
                yield prefix + name, entry
                if entry.kind is Kind.FOLDER:
                    waiting.append((prefix + name + b"/", iter(self.folder(entry.content).items())))
                    break
            else:
                waiting.pop()


def version(entry: Entry | None) -> Version | None:
    """What a survey would say of the entry; None for a folder, which it does not list."""
    if entry is None or entry.kind is Kind.FOLDER:
        return None
    if entry.kind is Kind.LINK:
        return Version(entry.kind, blake3(entry.target).hexdigest(), len(entry.target), 0)
    return Version(entry.kind, entry.content, entry.size, entry.mode & MODE_BITS)


def differences(old: Tree, new: Tree) -> Iterator[Difference]:
    """What differs, folders before what is in them. A folder in the place of a file, or the reverse, is two."""
    waiting = [(b"", _pairs(old, new, old.digest, new.digest))]
    while waiting:
        prefix, pairs = waiting[-1]
        for name, was, now in pairs:
            path = prefix + name
            if version(was) != version(now):
                yield path, _no_folder(was), _no_folder(now)
            folder, other = _folder(was), _folder(now)
            if folder is None and other is None:
                continue
            if folder is None or other is None or folder.mode != other.mode:
                yield path, folder, other
            before, after = "" if folder is None else folder.content, "" if other is None else other.content
            if before != after:
                waiting.append((path + b"/", _pairs(old, new, before, after)))
                break
        else:
            waiting.pop()


def _pairs(old: Tree, new: Tree, before: str, after: str) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    """The names that differ in two folders, of which one may not be there."""
    if before and after:
        was, now = old.differing(before, after)
    else:
        was, now = old.folder(before) if before else {}, new.folder(after) if after else {}
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            yield name, was.get(name), now.get(name)


def _folder(entry: Entry | None) -> Entry | None:
    return entry if entry is not None and entry.kind is Kind.FOLDER else None


def _no_folder(entry: Entry | None) -> Entry | None:
    return entry if entry is not None and entry.kind is not Kind.FOLDER else None
