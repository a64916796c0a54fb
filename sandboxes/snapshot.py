"""Recording a workspace: every file, folder and link in it becomes content-addressed.

The workspace is hostile and may change meanwhile. Every step goes through the descriptor of the folder above; no link
is followed, nothing but regular files is opened, and a file is read again if it changed while it was read. What does
not hold still, and what cannot be kept (devices), is named in `torn`, never passed over. What cannot be read, or lies
too deep, refuses the snapshot.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import final

import msgspec

from sandkeep.events import Batch, BlobStore
from sandkeep.events.durable import write_out
from sandkeep.sandboxes.errors import CheckpointRefused
from sandkeep.sandboxes.manifest import Entry, Kind, Manifest, Root, kind, store, store_root

MAX_DEPTH = 200
"""How many folders may lie within each other; one descriptor is open for each."""

MAX_FILE_BYTES = 16 << 30
"""The apparent size of the largest file that is recorded; a sparse one may claim any size."""

_TRIES = 3


class Snapshot(msgspec.Struct, frozen=True):
    """A recorded tree: the digest of its root manifest, how many regular files of how many bytes, what is torn."""

    digest: str
    files: int
    bytes: int
    torn: tuple[str, ...]


def take(root: int, blobs: BlobStore, progress: Callable[[int], None] = lambda files: None) -> Snapshot:
    """Record the folder open as descriptor `root`. All of it is durable when this returns, and none of it is stored if
    this fails.

    `progress` is called with the number of files so far. Raises `CheckpointRefused`.
    """
    with blobs.batch() as batch:
        return _Walk(batch, progress).take(root)


@final
class _Walk:
    def __init__(self, batch: Batch, progress: Callable[[int], None]) -> None:
        self._batch = batch
        self._progress = progress
        self._files = 0
        self._bytes = 0
        self._torn: list[str] = []

    def take(self, root: int) -> Snapshot:
        found = os.fstat(root)
        mode = stat.S_IMODE(found.st_mode)
        content = self._folder(root, b"", 0)
        folder = Entry(b"", Kind.FOLDER, mode, found.st_uid, found.st_gid, found.st_mtime_ns, content=content)
        return Snapshot(store_root(Root(folder), self._batch), self._files, self._bytes, tuple(self._torn))

    def _folder(self, folder: int, path: bytes, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise CheckpointRefused(f"{readable(path)!r} lies more than {MAX_DEPTH} folders deep; move it further up")
        manifest: Manifest = {}
        for name in sorted(os.fsencode(name) for name in os.listdir(folder)):
            entry = self._entry(folder, name, path + b"/" + name if path else name, depth)
            if entry is not None:
                manifest[name] = entry
        return store(manifest, self._batch)

    def _entry(self, folder: int, name: bytes, path: bytes, depth: int) -> Entry | None:
        for _ in range(_TRIES):
            try:
                entry = self._try_entry(folder, name, path, depth)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                entry = None
            except PermissionError as error:
                raise CheckpointRefused(
                    f"{readable(path)!r} cannot be read ({error.strerror}); change its mode or owner, then try again"
                ) from error
            if entry is not None:
                return entry
        self._torn.append(readable(path))
        return None

    def _try_entry(self, folder: int, name: bytes, path: bytes, depth: int) -> Entry | None:
        """The entry, or None if it changed meanwhile or is none that can be kept."""
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        what = kind(found.st_mode)
        entry = Entry(name, what, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns)
        if what is Kind.FILE and found.st_size > MAX_FILE_BYTES:
            raise CheckpointRefused(
                f"{readable(path)!r} has {found.st_size} bytes, more than {MAX_FILE_BYTES}; remove it"
            )
        if not -(2**63) <= found.st_mtime_ns < 2**64:
            raise CheckpointRefused(f"{readable(path)!r} has a time that cannot be kept; set another with touch")
        if what is Kind.LINK:
            return msgspec.structs.replace(entry, target=os.readlink(name, dir_fd=folder))
        if what not in (Kind.FILE, Kind.FOLDER):
            return entry
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags | (os.O_DIRECTORY if what is Kind.FOLDER else 0), dir_fd=folder)
        except OSError as error:
            if isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)):
                raise
            return None  # a link took its place (ELOOP), or something that cannot be opened (ENXIO)
        try:
            if what is Kind.FOLDER:
                return msgspec.structs.replace(entry, content=self._folder(descriptor, path, depth + 1))
            return self._file(descriptor, entry, found)
        finally:
            os.close(descriptor)

    def _file(self, descriptor: int, entry: Entry, found: os.stat_result) -> Entry | None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        if found.st_size:
            write_out(descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            # One byte beyond the size shows that the file has grown, and bounds what is read of one that never ends.
            content, size = self._batch.put_stream(file, limit=found.st_size + 1)
        after = os.fstat(descriptor)
        if size != found.st_size or _identity(after) != _identity(found):
            return None
        self._files += 1
        self._bytes += size
        self._progress(self._files)
        return msgspec.structs.replace(entry, size=size, content=content)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def readable(path: bytes) -> str:
    """A path for people and JSON: what is not UTF-8 is escaped."""
    return path.decode("utf-8", "backslashreplace")
