"""The walk that a snapshot is: through all folders of a workspace, each after those in it.

Of a folder that is as it was seen before only the times of its names are asked for; see `seen`. What is listed or read
while it changes is looked at again, a few times; see `snapshot` for what comes of what still does.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias, final

import msgspec

from sandkeep.events import Batch, BlobStore
from sandkeep.sandboxes import content, seen
from sandkeep.sandboxes.content import Unsteady
from sandkeep.sandboxes.descent import FOLDER, Descent, OtherMount, WayLost
from sandkeep.sandboxes.errors import CheckpointRefused
from sandkeep.sandboxes.manifest import Entry, Kind, Manifest, Root, kind, load, store, store_root
from sandkeep.sandboxes.seen import Seen

MAX_DEPTH = 5_000
"""How many folders may lie within each other."""

MAX_LINKED_PATH = 1 << 16
"""The length of the longest path that is known to be another name of a file; behind that each is a file of its own."""

_TRIES = 3
COARSE = 5
"""CLOCK_REALTIME_COARSE (clock_gettime(2)): what file systems take their times from."""


class Snapshot(msgspec.Struct, frozen=True):
    """A recorded tree: the digest of its root, how many regular files of how many bytes, what is torn; and how long the
    workspace was held still for it."""

    digest: str
    files: int
    bytes: int
    torn: tuple[str, ...]
    frozen_ns: int = 0


class Taken(msgspec.Struct, frozen=True):
    """A snapshot, what was seen for it, and how many entries had to be read for that."""

    snapshot: Snapshot
    seen: Seen
    read: int


Progress = Callable[[int], None]
"""Is called with the number of files so far."""


Names: TypeAlias = dict[bytes, "Names | seen.Folder | None"]
"""Folders within folders by name; None for all that is in one, or what is known of it since it was made."""


@final
class Frame:
    """A folder that is being recorded. Nothing in it has changed so far as long as `entries` is None."""

    __slots__ = (
        *("above", "before", "entries", "found", "linked", "listed", "missing", "name", "now", "times", "torn"),
        *("touched", "trusted", "waiting"),
    )

    def __init__(self, name: bytes, above: Frame | None, found: os.stat_result, before: seen.Folder | None) -> None:
        self.name = name
        self.above = above
        self.found = found
        self.before = before
        self.now: dict[bytes, seen.Folder] = {}
        self.entries: Manifest | None = None
        self.times: dict[bytes, int] = {}
        self.linked: dict[bytes, int] = {}
        self.waiting: list[bytes] = []
        self.missing: list[bytes] = []
        self.torn: set[bytes] = set()
        self.listed = 0
        self.trusted = True
        self.touched: Names | None = None

    def at(self, name: bytes) -> bytes:
        """The path of what is called `name` in it."""
        names, frame = [name], self
        while frame.above is not None:
            names.append(frame.name)
            frame = frame.above
        return b"/".join(reversed(names))


@final
class Walk:
    """One walk through the folder that `descent` begins at, storing in a `batch` what has changed since `before`. Where
    only some names were `touched` since then, the others are taken as they were."""

    def __init__(
        self,
        blobs: BlobStore,
        batch: Batch,
        descent: Descent,
        before: Seen | None,
        epoch: bytes,
        touched: Names | None,
    ) -> None:
        self._blobs = blobs
        self._batch = batch
        self._descent = descent
        self.before = before
        self.touched = touched
        self._epoch = epoch
        self._files = self._bytes = self._read = 0
        self._torn: list[bytes] = []
        self._linked: dict[int, list[bytes]] = {}
        self._known: dict[tuple[int, int], Entry] = {}

    def take(self, progress: Progress) -> Taken:
        root = os.fstat(self._descent.folder)
        try:
            folder, entry = self._folders(root, progress)
        except WayLost:
            raise CheckpointRefused(
                "a folder far down was moved while it was read; stop what moves it, then try again"
            ) from None
        links = tuple(sorted(tuple(sorted(paths)) for paths in self._linked.values() if len(paths) > 1))
        digest = store_root(Root(entry, links), self._batch)
        torn = tuple(readable(path) for path in sorted(self._torn))
        seen_now = Seen(root.st_dev, root.st_ino, self._epoch, digest, self._files, folder)
        return Taken(Snapshot(digest, self._files, self._bytes, torn), seen_now, self._read)

    def _folders(self, root: os.stat_result, progress: Progress) -> tuple[seen.Folder, Entry]:
        """Go through all folders, each after those in it."""
        stack = [self._begin(b"", None, root, None if self.before is None else self.before.folder)]
        stack[0].touched = self.touched
        while True:
            frame = stack[-1]
            if frame.waiting:
                name = frame.waiting.pop()
                before = None if frame.before is None else frame.before.folders.get(name)
                touched = None if frame.touched is None else frame.touched.get(name)
                if isinstance(touched, seen.Folder):  # of no use if the store may have lost what was seen
                    before, touched = (touched if self.before else None), None
                if before is not None and frame.touched is not None and name not in frame.touched:
                    self._carry(frame, name, before)
                elif before is not None and not before.folders and self._is_same(name, before):
                    frame.now[name] = before
                    self._count(before, partial(_below, frame, name))
                elif (found := self._enter(frame, name)) is not None:
                    stack.append(self._begin(name, frame, found, before))
                    stack[-1].touched = touched
            elif self._is_done(frame):
                now, entry = self._end(frame)
                progress(self._files)
                stack.pop()
                if not stack:
                    return now, entry or content.folder_entry(b"", self._descent.folder, root, now.content)
                self._descent.leave()
                above = stack[-1]
                above.now[frame.name] = now
                if entry is not None:
                    self._open(above)[frame.name] = entry

    def _is_same(self, name: bytes, before: seen.Folder) -> bool:
        """Whether nothing has changed in a folder without folders. Most are such, and most of the time it is so."""
        try:
            folder = os.open(name, FOLDER, dir_fd=self._descent.folder)
        except OSError:
            return False  # it is looked at again, and told then
        try:
            found = os.fstat(folder)
            if found.st_ctime_ns != before.changed_ns or found.st_dev != self._descent.device:
                return False
            look = os.stat
            return before.times == [
                look(each, dir_fd=folder, follow_symlinks=False).st_ctime_ns for each in before.names
            ]
        except FileNotFoundError:
            return False
        finally:
            os.close(folder)

    def _carry(self, above: Frame, name: bytes, folder: seen.Folder) -> None:
        """Count all that is in an untouched folder."""
        above.now[name] = folder
        waiting: list[tuple[_Way, seen.Folder]] = [(((), above.at(name)), folder)]
        while waiting:
            way, folder = waiting.pop()
            self._count(folder, partial(_path, way) if folder.linked else above.at)
            waiting += [((way, inner), each) for inner, each in folder.folders.items()]

    def _count(self, folder: seen.Folder, at: Callable[[bytes], bytes]) -> None:
        self._files += folder.files
        self._bytes += folder.size
        for name, inode in folder.linked.items():
            if len(path := at(name)) <= MAX_LINKED_PATH:
                self._linked.setdefault(inode, []).append(path)

    def _enter(self, frame: Frame, name: bytes) -> os.stat_result | None:
        if self._descent.depth >= MAX_DEPTH:
            path = readable(frame.at(name)[:200])
            raise CheckpointRefused(f"{path!r}... lies more than {MAX_DEPTH} folders deep; move it further up")
        try:
            return self._descent.enter(name)
        except PermissionError as error:
            raise _unreadable(frame.at(name), error) from error
        except OtherMount:
            raise _mounted(frame.at(name)) from None
        except OSError as error:
            if error.errno not in content.SWAPPED:
                raise
            frame.missing.append(name)
            return None

    def _begin(self, name: bytes, above: Frame | None, found: os.stat_result, before: seen.Folder | None) -> Frame:
        frame = Frame(name, above, found, before)
        if before is None or before.changed_ns != found.st_ctime_ns:
            self._list(frame)
            return frame
        folder, look = self._descent.folder, os.stat
        try:
            times = [look(each, dir_fd=folder, follow_symlinks=False).st_ctime_ns for each in before.names]
        except FileNotFoundError:
            self._list(frame)
            return frame
        frame.waiting = list(before.folders)
        if times != before.times:
            self._open(frame)
            for each, now, then in zip(before.names, times, before.times, strict=True):
                if now != then and self._look(frame, each):
                    frame.missing.append(each)
        return frame

    def _open(self, frame: Frame) -> Manifest:
        """The entries of a folder in which something has changed."""
        if frame.entries is None:
            frame.entries = {}
            if frame.before is not None:
                frame.entries = load(frame.before.content, self._blobs)
                frame.times = dict(zip(frame.before.names, frame.before.times, strict=True))
                frame.linked = dict(frame.before.linked)
        return frame.entries

    def _list(self, frame: Frame) -> None:
        """Look at all that is in the folder; what was looked at before only if it has changed since."""
        old = self._open(frame)
        times, frame.times = frame.times, {}
        frame.entries, frame.linked, frame.missing = {}, {}, []
        frame.listed += 1
        folders = set()
        frame.trusted = seen.is_old(frame.found.st_ctime_ns, time.clock_gettime_ns(COARSE))
        listed = sorted(map(os.fsencode, os.listdir(self._descent.folder)))
        for name in listed:
            if self._look(frame, name, old.get(name), times.get(name, 0)):
                folders.add(name)
        for name in frame.now.keys() - folders:
            del frame.now[name]
        frame.waiting = sorted(folders - frame.now.keys(), reverse=True)
        for name in folders & old.keys():
            if old[name].kind is Kind.FOLDER:
                frame.entries[name] = old[name]

    def _look(self, frame: Frame, name: bytes, old: Entry | None = None, time_ns: int = 0) -> bool:
        """Look at what is called `name`, and read it unless it is as `old` at this time. Whether it is a folder."""
        assert frame.entries is not None
        last: Entry | None = None
        frame.linked.pop(name, None)
        frame.torn.discard(name)
        for _ in range(_TRIES):
            now_ns = time.clock_gettime_ns(COARSE)
            try:
                found = os.stat(name, dir_fd=self._descent.folder, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    return True
                entry = old if old is not None and _is_as(found, old, time_ns) else self._entry(frame, name, found)
            except FileNotFoundError:
                break
            except Unsteady as error:
                last = error.entry or last
                continue
            frame.entries[name] = entry
            frame.times[name] = found.st_ctime_ns if seen.is_old(found.st_ctime_ns, now_ns) else 0
            if found.st_nlink > 1 and entry.kind is Kind.FILE:
                frame.linked[name] = found.st_ino
            return False
        if last is None:
            frame.missing.append(name)
            frame.entries.pop(name, None)
            frame.times.pop(name, None)
        else:
            frame.torn.add(name)
            frame.entries[name], frame.times[name] = last, 0
        return False

    def _entry(self, frame: Frame, name: bytes, found: os.stat_result) -> Entry:
        if found.st_dev != self._descent.device:
            raise _mounted(frame.at(name))
        known = self._known.get((found.st_ino, found.st_ctime_ns))
        if known is not None:  # another name of what was just read
            return msgspec.structs.replace(known, name=name)
        self._read += 1
        try:
            entry = content.entry_of(self._descent.folder, name, found, self._batch)
        except PermissionError as error:
            raise _unreadable(frame.at(name), error) from error
        except CheckpointRefused as error:
            raise CheckpointRefused(f"{readable(frame.at(name))!r} {error}") from error
        if found.st_nlink > 1:
            self._known[found.st_ino, found.st_ctime_ns] = entry
        return entry

    def _is_done(self, frame: Frame) -> bool:
        """Whether what was listed is what is there; if not, it is listed again, until that was done often enough."""
        if not frame.listed and not frame.missing:
            return True
        now = os.fstat(self._descent.folder)
        if not frame.missing and now.st_ctime_ns == frame.found.st_ctime_ns:
            return True
        if frame.listed > _TRIES:
            frame.torn.update(frame.missing)
            return True
        frame.found = now
        self._list(frame)
        return not frame.waiting and self._is_done(frame)

    def _end(self, frame: Frame) -> tuple[seen.Folder, Entry | None]:
        """What was seen of the folder, and its entry if that is another than before."""
        before, found = frame.before, frame.found
        if frame.entries is None:
            assert before is not None
            now = before
            if len(frame.now) != len(before.folders) or any(
                each is not before.folders[name] for name, each in frame.now.items()
            ):
                now = msgspec.structs.replace(before, folders=frame.now)
        else:
            names = sorted(frame.times)
            sizes = [entry.size for entry in frame.entries.values() if entry.kind is Kind.FILE]
            now = seen.Folder(
                found.st_ctime_ns if frame.trusted else 0,
                names,
                [frame.times[name] for name in names],
                frame.linked,
                frame.now,
                store(frame.entries, self._batch),
                len(sizes),
                sum(sizes),
            )
        self._count(now, frame.at)
        self._torn += map(frame.at, frame.torn)
        if before is not None and (before.content, before.changed_ns) == (now.content, found.st_ctime_ns):
            return now, None
        return now, content.folder_entry(frame.name, self._descent.folder, found, now.content)


def _below(frame: Frame, inner: bytes, name: bytes) -> bytes:
    return frame.at(inner) + b"/" + name


_Way: TypeAlias = tuple[()] | tuple["_Way", bytes]


def _path(way: _Way, name: bytes) -> bytes:
    names = [name]
    while way:
        way, name = way
        names.append(name)
    return b"/".join(reversed(names))


def _is_as(found: os.stat_result, old: Entry, time_ns: int) -> bool:
    return (
        found.st_ctime_ns == time_ns
        and found.st_mtime_ns == old.mtime_ns
        and kind(found.st_mode) is old.kind
        and (old.kind is not Kind.FILE or found.st_size == old.size)
    )


def _unreadable(path: bytes, error: OSError) -> CheckpointRefused:
    return CheckpointRefused(
        f"{readable(path)!r} cannot be read ({error.strerror}); change its mode or owner, then try again"
    )


def _mounted(path: bytes) -> CheckpointRefused:
    return CheckpointRefused(f"{readable(path)!r} is another file system; unmount it, then try again")


def readable(path: bytes) -> str:
    """A path for people and JSON: what is not UTF-8 is escaped."""
    return path.decode("utf-8", "backslashreplace")
