"""Setting a workspace back to what a manifest says.

Two trees are compared by their digests, and only what differs is written, each file under a temporary name and then
renamed; what the target lacks is deleted; modes and times are set last, folders after their contents. Interrupted at
any point it can be run again to the same result. The root folder itself stays: the sandbox's mount holds on to it.

The workspace is hostile: every step goes through the descriptor of the folder above, and no link is followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import final

import msgspec

from sandkeep.events import BlobStore
from sandkeep.events.durable import sync_file_system
from sandkeep.projections import Checkpoint
from sandkeep.sandboxes import snapshot
from sandkeep.sandboxes.errors import BadId, CheckpointGone, CheckpointNotFound, RestoreIncomplete
from sandkeep.sandboxes.manifest import Entry, Kind, Manifest, blobs_of, load, load_root, store
from sandkeep.sandboxes.workspace import descend

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_SYNCED_EACH = 100
"""How many entries are synced one by one; if there are more, the file system is synced once instead."""


class Restored(msgspec.Struct, frozen=True):
    """What a restore did: the checkpoint and digest the workspace has now, and the checkpoint that undoes it."""

    checkpoint: str
    digest: str
    undo: str


def find(taken: Sequence[Checkpoint], prefix: str, task: str) -> Checkpoint:
    """The one of a task's checkpoints whose id begins with `prefix`.

    Raises `BadId`, `CheckpointNotFound`, and `CheckpointGone` for one that has expired.
    """
    if not prefix or len(prefix) > 12 or not set(prefix) <= set("0123456789abcdef"):
        raise BadId(f"{prefix[:40]!r} is no checkpoint id; an id has 12 hexadecimal digits")
    found = [each for each in taken if each.id.startswith(prefix)]
    if len(found) != 1:
        raise CheckpointNotFound(
            f"{len(found) or 'no'} checkpoints of task {task} have the id {prefix};"
            f" 'sandkeep list-checkpoints {task}' lists them"
        )
    if found[0].expired_ns:
        raise CheckpointGone(
            f"checkpoint {found[0].id} of task {task} has expired ({found[0].expired}), and its content may be gone;"
            f" 'sandkeep list-checkpoints {task}' lists those there are"
        )
    return found[0]


def check(target: str, blobs: BlobStore) -> None:
    """Read all of the tree `target` before anything is touched. Raises `BlobMissing`, `BlobDamaged`."""
    for digest in blobs_of(target, blobs):
        for _ in blobs.chunks(digest):
            pass


def apply(root: int, present: str, target: str, blobs: BlobStore) -> None:
    """Make the folder open as descriptor `root`, whose tree is `present` now, into the tree `target`, durably.

    Raises `BlobMissing`, `BlobDamaged` and `OSError`; what was done until then stays, and another run completes it.
    """
    if present != target:
        restoring = _Restore(blobs)
        restoring.folder(root, load(present, blobs), load(target, blobs))
        folder = load_root(target, blobs).folder
        if folder.uid >= 0:
            _finish(os.dup(root), folder)
        restoring.sync(root)


def fill(folder: Path, target: str, blobs: BlobStore) -> None:
    """Make the empty `folder` the tree `target`, and see that it is. Raises as `check` and `apply` do, and
    `RestoreIncomplete`."""
    check(target, blobs)
    root = os.open(folder, _FOLDER)
    try:
        apply(root, store({}, blobs), target, blobs)
        found = snapshot.take(root, blobs).digest
    finally:
        os.close(root)
    if found != target:
        raise RestoreIncomplete(f"the new workspace is not what was recorded, but {found}; try again")


def put(root: int, path: bytes, entry: Entry | None, blobs: BlobStore) -> None:
    """Put one file or link where `path` leads below the folder open as `root`, with the folders that it lacks; None
    removes what is there. Owners are the workspace's.

    Raises `BlobMissing`, `BlobDamaged` and `OSError`: a folder at the path is never removed.
    """
    *parents, name = path.split(b"/")
    folder = descend(root, parents, make=entry is not None)
    try:
        if entry is None:
            os.unlink(name, dir_fd=folder)
            return
        _replace(folder, msgspec.structs.replace(entry, name=name), blobs)
    finally:
        os.close(folder)


def put_folder(root: int, path: bytes, entry: Entry | None) -> None:
    """See that a folder is where `path` leads below the folder open as `root`, with the mode of `entry`; None removes
    it, if it is there and empty.

    Raises `OSError`: what is no folder is never removed.
    """
    *parents, name = path.split(b"/")
    if entry is not None:
        _finish(descend(root, [*parents, name], make=True), entry)
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


def _replace(folder: int, entry: Entry, blobs: BlobStore, *, synced: bool = True) -> None:
    """Put `entry`, which is no folder, in the place of whatever but a folder has its name."""
    temporary = f".sandkeep-{secrets.token_hex(8)}".encode()
    try:
        _make(folder, temporary, entry, blobs, synced)
        os.rename(temporary, entry.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        _delete(folder, temporary)
        raise


@final
class _Restore:
    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._written = 0

    def sync(self, root: int) -> None:
        """Make durable what was not synced by itself, and the names in the root."""
        if self._written > _SYNCED_EACH:
            sync_file_system(root)
        else:
            os.fsync(root)

    def _synced(self) -> bool:
        """Whether one more entry is synced by itself."""
        self._written += 1
        return self._written <= _SYNCED_EACH

    def folder(self, folder: int, present: Manifest, target: Manifest) -> None:
        """Make one folder's entries those of `target`."""
        for name in present.keys() - target.keys():
            _delete(folder, name)
        for name in sorted(target):
            if present.get(name) != target[name]:
                self._entry(folder, present.get(name), target[name])

    def _entry(self, folder: int, old: Entry | None, new: Entry) -> None:
        if old is not None and old.kind is not new.kind and Kind.FOLDER in (old.kind, new.kind):
            _delete(folder, new.name)
            old = None
        if new.kind is Kind.FOLDER:
            self._subfolder(folder, old, new)
        elif new.kind is Kind.FILE and old is not None and old.content == new.content and old.kind is new.kind:
            descriptor = os.open(new.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            _finish(descriptor, new, synced=self._synced())
        else:
            _replace(folder, new, self._blobs, synced=self._synced())

    def _subfolder(self, folder: int, old: Entry | None, new: Entry) -> None:
        if old is None:
            os.mkdir(new.name, 0o700, dir_fd=folder)
        descriptor = os.open(new.name, _FOLDER, dir_fd=folder)
        if os.getuid() != 0:
            # Its owner may have taken the permission to change it away; root needs none.
            os.fchmod(descriptor, stat.S_IRWXU)
        try:
            if old is None or old.content != new.content:
                present = load(old.content, self._blobs) if old is not None else {}
                self.folder(descriptor, present, load(new.content, self._blobs))
        except BaseException:
            os.close(descriptor)
            raise
        _finish(descriptor, new, synced=self._synced())


def _make(folder: int, name: bytes, entry: Entry, blobs: BlobStore, synced: bool) -> None:
    if entry.kind is Kind.FILE:
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
        with open(descriptor, "wb", closefd=False) as file:
            for chunk in blobs.chunks(entry.content):
                file.write(chunk)
        _finish(descriptor, entry, synced=synced)
        return
    if entry.kind is Kind.LINK:
        os.symlink(entry.target, name, dir_fd=folder)
    else:
        os.mknod(name, (stat.S_IFIFO if entry.kind is Kind.FIFO else stat.S_IFSOCK) | entry.mode, dir_fd=folder)
        # The umask may have taken bits away; the name is ours and new, so it is no link.
        os.chmod(name, entry.mode, dir_fd=folder)
    if os.getuid() == 0:
        os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)


def _finish(descriptor: int, entry: Entry, *, synced: bool = True) -> None:
    """Set owner, mode and time of an open file or folder, make it durable unless not `synced`, and close it."""
    try:
        if os.getuid() == 0:
            os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        if synced:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(folder: int, name: bytes) -> None:
    """Remove whatever is called `name`, if anything is."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
        try:
            if os.getuid() != 0:
                os.fchmod(descriptor, stat.S_IRWXU)
            for inner in os.listdir(descriptor):
                _delete(descriptor, os.fsencode(inner))
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=folder)
