"""Recording a workspace: every file, folder and link in it becomes content-addressed.

A snapshot costs what has changed since the last. Of a folder whose status change time is what it was, the names are
known, and only the times of what is called by them are asked for; a name is read again if its time is another, or was
too young to be relied on. See `seen`.

The workspace is hostile and may change meanwhile. Every step goes through the descriptor of the folder above, and no
link or mount is followed. What changes while it is read is read again, and what then still does is named in `torn`,
with what was read of it last: nothing is passed over. What cannot be read refuses the snapshot. So that a task's
commands change nothing, they can be held `still`: then all is recorded while they run, and what changed meanwhile once
they stand still.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import final

import msgspec

from sandkeep.events import Batch, BlobDamaged, BlobMissing, BlobStore
from sandkeep.sandboxes import content, seen
from sandkeep.sandboxes.content import Unsteady
from sandkeep.sandboxes.descent import Descent, OtherMount, WayLost
from sandkeep.sandboxes.errors import CheckpointRefused
from sandkeep.sandboxes.manifest import Entry, Kind, Manifest, Root, blobs_of, kind, load, store, store_root
from sandkeep.sandboxes.seen import Seen

RACY_NS = 20_000_000
"""How old a change must be for the next one to have another time: more than a tick of any kernel's clock."""

MAX_DEPTH = 5_000
"""How many folders may lie within each other."""

MAX_LINKED_PATH = 1 << 16
"""The length of the longest path that is known to be another name of a file; behind that each is a file of its own."""

_TRIES = 3
_COARSE = 5  # CLOCK_REALTIME_COARSE (clock_gettime(2)): what file systems take their times from


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


def take(root: int, blobs: BlobStore, progress: Progress = lambda files: None) -> Snapshot:
    """Record the folder open as descriptor `root`. All of it is durable when this returns, and none of it is stored if
    this fails. Raises `CheckpointRefused`.
    """
    return take_since(root, blobs, None, progress).snapshot


def take_since(
    root: int,
    blobs: BlobStore,
    before: Seen | None,
    progress: Progress = lambda files: None,
    still: AbstractContextManager[None] | None = None,
) -> Taken:
    """As `take`, reading only what changed since something was seen of this workspace. If others write to it meanwhile,
    `still` holds them still: for no longer than it takes to find and read what they changed since it was all read.
    """
    with _beginning(root, blobs, before) as walk:
        taken = walk.take(progress)
    if still is None:
        return taken
    with _beginning(root, blobs, taken.seen) as walk:
        started = time.monotonic_ns()
        with still:
            again = walk.take(lambda files: None)
        frozen_ns = time.monotonic_ns() - started
    return Taken(msgspec.structs.replace(again.snapshot, frozen_ns=frozen_ns), again.seen, taken.read + again.read)


@contextlib.contextmanager
def _beginning(root: int, blobs: BlobStore, before: Seen | None) -> Iterator[_Walk]:
    epoch = blobs.epoch()
    found = os.fstat(root)
    if before is not None and (before.device, before.inode) != (found.st_dev, found.st_ino):
        before = None
    if before is not None and before.epoch != epoch and not _is_held(before.digest, blobs):
        before = None
    with blobs.batch() as batch, Descent(root) as descent:
        yield _Walk(blobs, batch, descent, before, epoch)


def _is_held(digest: str, blobs: BlobStore) -> bool:
    """Whether all of a tree is in the store, and stays there."""
    try:
        return all(map(blobs.renew, blobs_of(digest, blobs)))
    except (BlobMissing, BlobDamaged):
        return False


@final
class _Frame:
    """A folder that is being recorded. Nothing in it has changed so far as long as `entries` is None."""

    __slots__ = (
        *("above", "before", "entries", "found", "linked", "listed", "missing", "name", "now", "times", "torn"),
        *("trusted", "waiting"),
    )

    def __init__(self, name: bytes, above: _Frame | None, found: os.stat_result, before: seen.Folder | None) -> None:
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

    def at(self, name: bytes) -> bytes:
        """The path of what is called `name` in it."""
        names, frame = [name], self
        while frame.above is not None:
            names.append(frame.name)
            frame = frame.above
        return b"/".join(reversed(names))


@final
class _Walk:
    def __init__(self, blobs: BlobStore, batch: Batch, descent: Descent, before: Seen | None, epoch: bytes) -> None:
        self._blobs = blobs
        self._batch = batch
        self._descent = descent
        self._before = before
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
        seen_now = Seen(root.st_dev, root.st_ino, self._epoch, digest, folder)
        return Taken(Snapshot(digest, self._files, self._bytes, torn), seen_now, self._read)

    def _folders(self, root: os.stat_result, progress: Progress) -> tuple[seen.Folder, Entry]:
        """Go through all folders, each after those in it."""
        stack = [self._begin(b"", None, root, None if self._before is None else self._before.folder)]
        while True:
            frame = stack[-1]
            if frame.waiting:
                name = frame.waiting.pop()
                found = self._enter(frame, name)
                if found is not None:
                    before = None if frame.before is None else frame.before.folders.get(name)
                    stack.append(self._begin(name, frame, found, before))
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

    def _enter(self, frame: _Frame, name: bytes) -> os.stat_result | None:
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

    def _begin(self, name: bytes, above: _Frame | None, found: os.stat_result, before: seen.Folder | None) -> _Frame:
        frame = _Frame(name, above, found, before)
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

    def _open(self, frame: _Frame) -> Manifest:
        """The entries of a folder in which something has changed."""
        if frame.entries is None:
            frame.entries = {}
            if frame.before is not None:
                frame.entries = load(frame.before.content, self._blobs)
                frame.times = dict(zip(frame.before.names, frame.before.times, strict=True))
                frame.linked = dict(frame.before.linked)
        return frame.entries

    def _list(self, frame: _Frame) -> None:
        """Look at all that is in the folder; what was looked at before only if it has changed since."""
        old = self._open(frame)
        times, frame.times = frame.times, {}
        frame.entries, frame.linked, frame.missing = {}, {}, []
        frame.listed += 1
        folders = set()
        frame.trusted = frame.found.st_ctime_ns < time.clock_gettime_ns(_COARSE) - RACY_NS
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

    def _look(self, frame: _Frame, name: bytes, old: Entry | None = None, time_ns: int = 0) -> bool:
        """Look at what is called `name`, and read it unless it is as `old` at this time. Whether it is a folder."""
        assert frame.entries is not None
        last: Entry | None = None
        frame.linked.pop(name, None)
        frame.torn.discard(name)
        for _ in range(_TRIES):
            now_ns = time.clock_gettime_ns(_COARSE)
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
            frame.times[name] = found.st_ctime_ns if found.st_ctime_ns < now_ns - RACY_NS else 0
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

    def _entry(self, frame: _Frame, name: bytes, found: os.stat_result) -> Entry:
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

    def _is_done(self, frame: _Frame) -> bool:
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

    def _end(self, frame: _Frame) -> tuple[seen.Folder, Entry | None]:
        """What was seen of the folder, and its entry if that is another than before."""
        before, found = frame.before, frame.found
        if frame.entries is None:
            assert before is not None
            now = seen.Folder(
                before.changed_ns,
                before.names,
                before.times,
                before.linked,
                frame.now,
                before.content,
                before.files,
                before.size,
            )
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
        self._files += now.files
        self._bytes += now.size
        self._torn += map(frame.at, frame.torn)
        for name, inode in now.linked.items():
            if len(path := frame.at(name)) <= MAX_LINKED_PATH:
                self._linked.setdefault(inode, []).append(path)
        if before is not None and (before.content, before.changed_ns) == (now.content, found.st_ctime_ns):
            return now, None
        return now, content.folder_entry(frame.name, self._descent.folder, found, now.content)


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
