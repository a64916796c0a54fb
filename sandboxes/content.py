"""One thing in a workspace as an entry of a manifest: what it is, and, of a file, its content.

Nothing but regular files is opened, and no link is followed. What changes while it is read is told by its times: they
are looked at before and after, and a file is given to the disk before it is read, since a further store through a
memory map changes no time as long as a page is dirty (sync_file_range(2)). Files are read with bounds, never mapped: a
mapped file that somebody cuts ends its reader.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from typing import Protocol, final

import msgspec

from sandkeep.events.durable import write_out
from sandkeep.sandboxes.errors import CheckpointRefused
from sandkeep.sandboxes.manifest import DEVICES, Entry, Kind, kind

MAX_FILE_BYTES = 16 << 30
"""How much data a file may hold to be recorded, at most. Holes do not count."""

AT_ONCE_BYTES = 1 << 20
"""The size up to which a file is read into memory whole."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ACL = ("system.posix_acl_access", "system.posix_acl_default")
_BLOCK = 512
SWAPPED = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.EISDIR)
"""The errors of opening what has gone, or has become something else."""


class Unsteady(Exception):
    """Something changed while it was looked at. `entry` is what was read of it, if that is better than nothing."""

    def __init__(self, entry: Entry | None = None) -> None:
        super().__init__()
        self.entry = entry


class Putting(Protocol):
    """Where content is stored."""

    def put(self, data: bytes, /) -> str:
        """Store this and return its digest."""

    def put_stream(self, source: io.BufferedReader | Extents, /) -> tuple[str, int]:
        """Store all that the source gives; returns its digest and size."""


def entry_of(folder: int, name: bytes, found: os.stat_result, put: Putting) -> Entry:
    """The entry of what is called `name` in the open `folder` and is no folder; `found` is its status.

    Raises `Unsteady`, `FileNotFoundError`, `PermissionError`, and `CheckpointRefused` for what cannot be recorded.
    """
    what = kind(found.st_mode)
    if not -(2**63) <= found.st_mtime_ns < 2**64:
        raise CheckpointRefused("has a time that cannot be kept; set another with touch")
    if what is Kind.FILE:
        return _file(folder, name, found, put)
    try:
        target = os.readlink(name, dir_fd=folder) if what is Kind.LINK else b""
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is a link no more
            raise
        raise Unsteady from error
    device = found.st_rdev if what in DEVICES else 0
    return Entry(
        name,
        what,
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_mtime_ns,
        target=target,
        device=device,
    )


def attributes(descriptor: int) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes of an open file or folder that are its user's: `user.*` and its access control lists.

    Others give privileges, or belong to the system that holds the file.
    """
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return ()
    kept = []
    for name in names:
        if name.startswith("user.") or name in _ACL:
            with contextlib.suppress(OSError):  # it is gone, which its file's times tell
                kept.append((os.fsencode(name), os.getxattr(descriptor, name)))
    return tuple(sorted(kept))


def _file(folder: int, name: bytes, found: os.stat_result, put: Putting) -> Entry:
    try:
        descriptor = os.open(name, _OPEN, dir_fd=folder)
    except OSError as error:
        if error.errno not in SWAPPED:
            raise
        raise Unsteady from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode) or before.st_dev != found.st_dev:
            raise Unsteady
        if before.st_size:
            write_out(descriptor)
        size, digest, extents = _read(descriptor, before, put)
        entry = Entry(
            name,
            Kind.FILE,
            stat.S_IMODE(before.st_mode),
            before.st_uid,
            before.st_gid,
            before.st_mtime_ns,
            size,
            digest,
            attributes=attributes(descriptor),
            extents=extents,
        )
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if size != found.st_size or not _same(after, found):
        raise Unsteady(entry)
    return entry


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_ctime_ns, one.st_ino, one.st_mtime_ns, one.st_size, one.st_dev) == (
        other.st_ctime_ns,
        other.st_ino,
        other.st_mtime_ns,
        other.st_size,
        other.st_dev,
    )


def _read(descriptor: int, found: os.stat_result, put: Putting) -> tuple[int, str, tuple[tuple[int, int], ...] | None]:
    """The size, the digest and, of a sparse file, the extents of what is stored."""
    size = found.st_size
    if found.st_blocks * _BLOCK < size and (extents := _extents(descriptor, size)) is not None:
        held = sum(length for _, length in extents)
        _bound(held)
        digest, stored = put.put_stream(Extents(descriptor, extents))
        if stored != held:
            raise Unsteady  # it was cut
        return size, digest, extents
    if size < AT_ONCE_BYTES:
        # One byte beyond the size would show that the file has grown; the times do.
        data = os.read(descriptor, size) if size else b""
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
        return len(data), put.put(data), None
    _bound(size)
    digest, stored = put.put_stream(Extents(descriptor, ((0, size),)))
    return stored, digest, None


def _bound(held: int) -> None:
    if held > MAX_FILE_BYTES:
        raise CheckpointRefused(f"has {held} bytes, more than {MAX_FILE_BYTES}; remove it")


def _extents(descriptor: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """Where the data of a file lies; None if it has no holes, or its file system cannot tell."""
    found: list[tuple[int, int]] = []
    end = 0
    try:
        while end < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            if start >= size:
                break
            end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
            found.append((start, end - start))
    except OSError as error:
        if error.errno != errno.ENXIO:  # there is no data behind `end`
            return None
    return None if found == [(0, size)] else tuple(found)


@final
class Extents:
    """The data in these extents of an open file, one behind the other."""

    def __init__(self, descriptor: int, extents: tuple[tuple[int, int], ...]) -> None:
        self._descriptor = descriptor
        self._left = list(reversed(extents))

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end, or where the file ends now."""
        while self._left:
            offset, length = self._left.pop()
            data = os.pread(self._descriptor, min(size, length), offset)
            if not data:
                self._left = []
                return b""
            if len(data) < length:
                self._left.append((offset + len(data), length - len(data)))
            return data
        return b""


def folder_entry(name: bytes, descriptor: int, found: os.stat_result, content: str) -> Entry:
    """The entry of an open folder whose status is `found` and whose manifest is `content`."""
    return msgspec.structs.replace(
        Entry(name, Kind.FOLDER, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns),
        content=content,
        attributes=attributes(descriptor),
    )
