"""Putting one entry of a manifest where it belongs: a file with its content, a link, a pipe, a folder, by descriptors.

What is put where something may be is made under a temporary name first and renamed; no link is followed. Owners are set
by root only, others own what they make. What gives privileges is not made unless it is asked for: devices not at all,
files without their set-user-id and set-group-id.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable

import msgspec

from sandkeep.events import BlobStore
from sandkeep.sandboxes import content
from sandkeep.sandboxes.descent import FOLDER
from sandkeep.sandboxes.manifest import DEVICES, MODE_BITS, Entry, Kind
from sandkeep.sandboxes.workspace import descend

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
}


def granted(entry: Entry, *, privileges: bool) -> Entry | None:
    """What is made of an entry: all of it, or, without `privileges`, nothing that gives any; None for nothing."""
    if privileges or entry.kind is Kind.FOLDER:
        return entry
    if entry.kind in DEVICES:
        return None
    return entry if entry.mode & ~MODE_BITS == 0 else msgspec.structs.replace(entry, mode=entry.mode & MODE_BITS)


def make(folder: int, name: bytes, entry: Entry, blobs: BlobStore, *, synced: bool = True) -> int:
    """Make `entry`, which is no folder, under a `name` of the open `folder` that nothing has; if `synced`, durably.
    Returns its status change time, in ns.

    Raises `BlobMissing`, `BlobDamaged` and `OSError`: then what was made until then is there.
    """
    if entry.kind is Kind.FILE:
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
        try:
            _write(descriptor, entry, blobs.chunks(entry.content))
            finish(descriptor, entry, new=True, synced=synced)
            return os.fstat(descriptor).st_ctime_ns
        finally:
            os.close(descriptor)
    if entry.kind is Kind.LINK:
        os.symlink(entry.target, name, dir_fd=folder)
    else:
        os.mknod(name, _TYPES[entry.kind] | entry.mode, entry.device, dir_fd=folder)
    if os.getuid() == 0:
        os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
    if entry.kind is not Kind.LINK:
        # The umask may have taken bits away; the name is ours and new, so it is no link.
        os.chmod(name, entry.mode, dir_fd=folder)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)
    return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ctime_ns


def finish(descriptor: int, entry: Entry, *, new: bool = False, synced: bool = True) -> None:
    """Set owner, attributes, mode and time of an open file or folder; if `synced`, durably. A `new` one has no
    attributes yet. Raises `OSError`."""
    if os.getuid() == 0:
        os.fchown(descriptor, entry.uid, entry.gid)
    if entry.attributes or not new:
        _set_attributes(descriptor, entry)
    os.fchmod(descriptor, entry.mode)
    os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
    if synced:
        os.fsync(descriptor)


def put(root: int, path: bytes, entry: Entry | None, blobs: BlobStore) -> None:
    """Put one file or link where `path` leads below the folder open as `root`, with the folders that it lacks, durably;
    None removes what is there. Owners of those folders are the workspace's.

    Nothing that gives privileges is made. Raises `BlobMissing`, `BlobDamaged` and `OSError`: a folder at the path is
    never removed.
    """
    *parents, name = path.split(b"/")
    folder = descend(root, parents, make=entry is not None)
    try:
        if entry is None:
            os.unlink(name, dir_fd=folder)
            return
        made = granted(entry, privileges=False)
        if made is None:
            raise PermissionError(errno.EPERM, "devices are not made", path)
        temporary = f".sandkeep-{secrets.token_hex(8)}".encode()
        try:
            make(folder, temporary, made, blobs)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
    finally:
        os.close(folder)


def put_folder(root: int, path: bytes, entry: Entry | None) -> None:
    """See that a folder is where `path` leads below the folder open as `root`, with the mode of `entry`; None removes
    it, if it is there and empty.

    Raises `OSError`: what is no folder is never removed.
    """
    *parents, name = path.split(b"/")
    if entry is not None:
        folder = descend(root, [*parents, name], make=True)
        try:
            finish(folder, entry)
        finally:
            os.close(folder)
        return
    folder = descend(root, parents, make=False)
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise
    finally:
        os.close(folder)


def sync_folder(root: int, path: bytes) -> None:
    """Make the names in a folder durable, if it is there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder = descend(root, path.split(b"/") if path else [], make=False)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_folder(name: bytes, folder: int) -> int:
    """A folder, opened, and made changeable by us. Raises `OSError`."""
    descriptor = os.open(name, FOLDER, dir_fd=folder)
    seize(descriptor)
    return descriptor


def seize(descriptor: int) -> None:
    """Make an open folder changeable by us: its owner may have taken that permission away. Root needs none."""
    if os.getuid() != 0:
        os.fchmod(descriptor, stat.S_IRWXU)


def _write(descriptor: int, entry: Entry, chunks: Iterable[bytes]) -> None:
    if entry.extents is None:
        for chunk in chunks:
            _write_at(descriptor, chunk, -1)
        return
    os.ftruncate(descriptor, entry.size)
    waiting = iter(entry.extents)
    offset = left = 0
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            if not left:
                offset, left = next(waiting, (entry.size, len(view)))
            _write_at(descriptor, view[:left], offset)
            written = min(left, len(view))
            view, offset, left = view[written:], offset + written, left - written


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.write(descriptor, view) if offset < 0 else os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written if offset >= 0 else 0


def _set_attributes(descriptor: int, entry: Entry) -> None:
    there, wanted = dict(content.attributes(descriptor)), dict(entry.attributes)
    for name in there.keys() - wanted.keys():
        os.removexattr(descriptor, name)
    for name, value in wanted.items():
        if there.get(name) != value:
            os.setxattr(descriptor, name, value)
