"""What this process writes below a folder, call by call, and calls that fail as they are told.

All calls are made one after the other, whatever thread they come from, so that their order is known.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, final

import msgspec

from .disk import ROOT, Begun, Call, Names, Resize, Special, Status, Sync, Write
from .interpose import INT, LONG, SIGNATURES, SIZE, TEXT, Real, Replacement, interposed

_AT_FDCWD = -100
_SYNCED = os.O_DSYNC | os.O_SYNC
# Not os.pwrite, which would come back here.
_pwrite = ctypes.CFUNCTYPE(LONG, INT, TEXT, SIZE, LONG)(("pwrite", ctypes.CDLL(None)))


Way = Literal["before", "after", "short"]


class Fault(msgspec.Struct, frozen=True):
    """Call number `at`, from 0, of those named in `only` fails with the error `number`; if `lasting`, all behind it
    do. It fails `before` anything is done, or `after` all was, or is `short`: a write of a part, which tells so."""

    at: int
    number: int = errno.EIO
    way: Way = "before"
    lasting: bool = False
    only: tuple[str, ...] = ()


@final
class Recorder:
    """Records the folder `root`, which may hold something already, and lets one `fault` happen in it.

    `calls` is what was done. `made` counts the calls that the fault is about, and `failed` names the first that failed.
    """

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self._root = os.fsencode(os.path.realpath(root))
        self._fault = fault
        self._lock = threading.RLock()
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._sizes: dict[int, int] = {}
        self._opened: dict[int, tuple[int, int]] = {}
        self._inodes: dict[tuple[int, int], int] = {}
        self._count = 0
        self.calls: list[Call] = []
        self.made = 0
        self.failed = ""
        self._take(self._root, ROOT)
        self.calls.append(Begun())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Meanwhile calls are recorded, and fail."""
        replacements = {name: self._one_at_a_time(name.removesuffix("64")) for name in SIGNATURES}
        with interposed(replacements) as places:
            assert places > 20, "these programs do not call the C library in the way that is known here"
            yield

    def _one_at_a_time(self, name: str) -> Replacement:
        function: Replacement = getattr(self, name)

        def called(real: Real, *arguments: int) -> int:
            with self._lock:
                return function(real, *arguments)

        return called

    def _take(self, path: bytes, folder: int) -> None:
        """What is there already."""
        for entry in os.scandir(path):
            is_folder = entry.is_dir(follow_symlinks=False)
            identity = self._new(is_folder)
            self._name((folder, os.fsdecode(entry.name), identity))
            self._status(identity, entry.stat(follow_symlinks=False))
            if is_folder:
                self._take(entry.path, identity)
            else:
                self._write(identity, 0, Path(os.fsdecode(entry.path)).read_bytes())
                self.calls.append(Sync(identity))
        self.calls.append(Sync(folder))

    def look(self, path: Path) -> None:
        """Record owners, modes and times of all that is in a folder, which writing changes too."""
        with self._lock:
            for each in (path, *path.rglob("*")):
                self._status(self._inodes[_inode(found := each.lstat())], found)

    def _status(self, identity: int, found: os.stat_result) -> None:
        self._inodes[_inode(found)] = identity
        self.calls.append(_given(identity, found))

    def _of(self, descriptor: int) -> int | None:
        """What a descriptor is of, which may be a duplicate."""
        if descriptor in self._opened:
            return self._opened[descriptor][0]
        with suppress(OSError):
            return self._inodes.get(_inode(os.fstat(descriptor)))
        return None

    def _new(self, folder: bool) -> int:
        """A number for a file, which is odd, or for a folder."""
        self._count += 2
        if folder:
            self._folders[self._count] = {}
            return self._count
        self._sizes[self._count + 1] = 0
        return self._count + 1

    def _fault_of(self, name: str) -> Fault | None:
        """Count a call. How it has to fail, if it does."""
        fault = self._fault
        if fault is None or (fault.only and name not in fault.only):
            return None
        self.made += 1
        if self.made - 1 != fault.at and not (fault.lasting and self.made - 1 > fault.at):
            return None
        self.failed = self.failed or name
        return fault

    def _tried(self, name: str, real: Real, *arguments: object) -> int:
        """Make a call that changes something, unless it has to fail."""
        fault = self._fault_of(name)
        if fault is None:
            return real(*arguments)
        ctypes.set_errno(fault.number)
        return -1

    def _find(self, path: bytes, at: int = _AT_FDCWD) -> tuple[int, str, int | None] | None:
        """The folder that a path is in, its name there, and what it leads to; None if that is not below the root."""
        if at != _AT_FDCWD and not path.startswith(b"/"):
            above = self._of(at)
            folder, parts = -1 if above is None else above, [os.fsdecode(path)]
        else:
            whole = os.path.join(os.path.realpath(os.path.dirname(path) or b"."), os.path.basename(path))
            if whole == self._root:
                return ROOT, "", ROOT
            if not whole.startswith(self._root + b"/"):
                return None
            folder, parts = ROOT, os.fsdecode(whole[len(self._root) + 1 :]).split("/")
        for part in parts[:-1]:
            folder = self._folders.get(folder, {}).get(part, -1)
        return (folder, parts[-1], self._folders[folder].get(parts[-1])) if folder in self._folders else None

    def _name(self, *changes: tuple[int, str, int | None]) -> None:
        for folder, name, identity in changes:
            if identity is None:
                self._folders[folder].pop(name, None)
            else:
                self._folders[folder][name] = identity
        self.calls.append(Names(changes))

    def _write(self, file: int, offset: int, data: bytes) -> None:
        self._sizes[file] = max(self._sizes[file], offset + len(data))
        self.calls.append(Write(file, offset, data))

    # The C library's functions, by their names.

    def open(self, real: Real, path: bytes, flags: int, mode: int) -> int:
        return self._open(real, (path, flags, mode), _AT_FDCWD, path, flags)

    def openat(self, real: Real, at: int, path: bytes, flags: int, mode: int) -> int:
        return self._open(real, (at, path, flags, mode), at, path, flags)

    def _open(self, real: Real, arguments: Sequence[object], at: int, path: bytes, flags: int) -> int:
        place = self._find(path, at)
        if place is None or place[1] in (".", ".."):
            return real(*arguments)
        folder, name, found = place
        made = found is None and flags & os.O_CREAT
        result = self._tried("open", real, *arguments) if made else real(*arguments)
        if result < 0:
            return result
        if found is None:
            found = self._new(False)
            self._name((folder, name, found))
            if not made:  # by another process
                self._write(found, 0, os.pread(result, 1 << 30, 0))
        elif flags & os.O_TRUNC:
            self._sizes[found] = 0
            self.calls.append(Resize(found, 0))
        self._opened[result] = (found, flags)
        self._inodes[_inode(os.fstat(result))] = found
        return result

    def close(self, real: Real, descriptor: int) -> int:
        self._opened.pop(descriptor, None)
        return real(descriptor)

    def write(self, real: Real, descriptor: int, address: int, size: int) -> int:
        file, flags = self._opened.get(descriptor, (0, 0))
        offset = self._sizes[file] if file and flags & os.O_APPEND else -1
        return self._written("write", descriptor, [(address, size)], offset, lambda: real(descriptor, address, size))

    def pwrite(self, real: Real, descriptor: int, address: int, size: int, offset: int) -> int:
        pieces = [(address, size)]
        return self._written("pwrite", descriptor, pieces, offset, lambda: real(descriptor, address, size, offset))

    def writev(self, real: Real, descriptor: int, vector: int, count: int) -> int:
        return self._written("writev", descriptor, _pieces(vector, count), -1, lambda: real(descriptor, vector, count))

    def pwritev(self, real: Real, descriptor: int, vector: int, count: int, offset: int) -> int:
        pieces = _pieces(vector, count)
        return self._written("pwritev", descriptor, pieces, offset, lambda: real(descriptor, vector, count, offset))

    def _written(self, name: str, descriptor: int, pieces: Sequence[tuple[int, int]], offset: int, real: Real) -> int:
        """Write at the offset, or where the descriptor stands if that is -1."""
        if descriptor not in self._opened:
            return real()
        file, flags = self._opened[descriptor]
        data = b"".join(ctypes.string_at(*piece) for piece in pieces)
        at = os.lseek(descriptor, 0, os.SEEK_CUR) if offset < 0 else offset
        fault = self._fault_of(name)
        if fault is not None and fault.way != "after":
            if fault.way == "short" and len(data) > 1:
                data = data[: len(data) // 2]
                self._write(file, at, data)
                written: int = _pwrite(descriptor, data, len(data), at)
                os.lseek(descriptor, at + written, os.SEEK_SET)
                return written
            ctypes.set_errno(fault.number)
            return -1
        self._write(file, at, data)
        result = real()
        assert result in (len(data), -1)
        if fault is not None:
            self.calls += [Sync(file, failed=True)]
            ctypes.set_errno(fault.number)
            return -1
        if flags & _SYNCED:
            self.calls.append(Write(file, at, data, synced=True))
        return result

    def fsync(self, real: Real, descriptor: int) -> int:
        return self._synced("fsync", real, descriptor)

    def fdatasync(self, real: Real, descriptor: int) -> int:
        return self._synced("fdatasync", real, descriptor)

    def _synced(self, name: str, real: Real, descriptor: int) -> int:
        target = self._of(descriptor)
        if target is None:
            return real(descriptor)
        result = self._tried(name, real, descriptor)
        self.calls.append(Sync(target, failed=result < 0, data=name == "fdatasync"))
        return result

    def ftruncate(self, real: Real, descriptor: int, size: int) -> int:
        if descriptor not in self._opened:
            return real(descriptor, size)
        result = self._tried("ftruncate", real, descriptor, size)
        if result == 0:
            self._sizes[self._opened[descriptor][0]] = size
            self.calls.append(Resize(self._opened[descriptor][0], size))
        return result

    def rename(self, real: Real, old: bytes, new: bytes) -> int:
        return self._renamed("rename", real, (old, new), self._find(old), self._find(new), moved=True)

    def renameat(self, real: Real, at: int, old: bytes, to: int, new: bytes) -> int:
        places = self._find(old, at), self._find(new, to)
        return self._renamed("rename", real, (at, old, to, new), *places, moved=True)

    def link(self, real: Real, old: bytes, new: bytes) -> int:
        return self._renamed("link", real, (old, new), self._find(old), self._find(new), moved=False)

    def linkat(self, real: Real, at: int, old: bytes, to: int, new: bytes, flags: int) -> int:
        places = self._find(old, at), self._find(new, to)
        return self._renamed("link", real, (at, old, to, new, flags), *places, moved=False)

    def _renamed(
        self,
        name: str,
        real: Real,
        arguments: Sequence[object],
        old: tuple[int, str, int | None] | None,
        new: tuple[int, str, int | None] | None,
        moved: bool,
    ) -> int:
        if old is None or new is None:
            return real(*arguments)
        result = self._tried(name, real, *arguments)
        if result == 0:
            taken: list[tuple[int, str, int | None]] = [(old[0], old[1], None)] if moved else []
            self._name(*taken, (new[0], new[1], old[2]))
        return result

    def unlink(self, real: Real, path: bytes) -> int:
        return self._removed("unlink", real, (path,), self._find(path))

    def unlinkat(self, real: Real, at: int, path: bytes, flags: int) -> int:
        return self._removed("unlink", real, (at, path, flags), self._find(path, at))

    def rmdir(self, real: Real, path: bytes) -> int:
        return self._removed("rmdir", real, (path,), self._find(path))

    def _removed(
        self, name: str, real: Real, arguments: Sequence[object], place: tuple[int, str, int | None] | None
    ) -> int:
        if place is None or place[2] is None:
            return real(*arguments)
        result = self._tried(name, real, *arguments)
        if result == 0:
            self._name((place[0], place[1], None))
        return result

    def mkdir(self, real: Real, path: bytes, mode: int) -> int:
        return self._made("mkdir", real, (path, mode), _AT_FDCWD, path)

    def mkdirat(self, real: Real, at: int, path: bytes, mode: int) -> int:
        return self._made("mkdir", real, (at, path, mode), at, path)

    def symlink(self, real: Real, target: bytes, path: bytes) -> int:
        return self._made("symlink", real, (target, path), _AT_FDCWD, path, target)

    def symlinkat(self, real: Real, target: bytes, at: int, path: bytes) -> int:
        return self._made("symlink", real, (target, at, path), at, path, target)

    def mkfifo(self, real: Real, path: bytes, mode: int) -> int:
        return self._made("mknod", real, (path, mode), _AT_FDCWD, path)

    def mknodat(self, real: Real, at: int, path: bytes, mode: int, device: int) -> int:
        return self._made("mknod", real, (at, path, mode, device), at, path)

    def _made(self, name: str, real: Real, arguments: Sequence[object], at: int, path: bytes, link: bytes = b"") -> int:
        place = self._find(path, at)
        if place is None or place[2] is not None:
            return real(*arguments)
        result = self._tried(name, real, *arguments)
        if result == 0:
            identity = self._new(name == "mkdir")
            self._inodes[_inode(found := _status(at, path))] = identity
            if not stat.S_ISDIR(found.st_mode):
                self.calls.append(Special(_given(identity, found), link))
            self._name((place[0], place[1], identity))
        return result

    def chmod(self, real: Real, path: bytes, mode: int) -> int:
        return self._changed(real, (path, mode), _AT_FDCWD, path)

    def fchmod(self, real: Real, descriptor: int, mode: int) -> int:
        return self._changed(real, (descriptor, mode), descriptor)

    def fchmodat(self, real: Real, at: int, path: bytes, mode: int, flags: int) -> int:
        return self._changed(real, (at, path, mode, flags), at, path)

    def chown(self, real: Real, path: bytes, uid: int, gid: int) -> int:
        return self._changed(real, (path, uid, gid), _AT_FDCWD, path)

    def fchown(self, real: Real, descriptor: int, uid: int, gid: int) -> int:
        return self._changed(real, (descriptor, uid, gid), descriptor)

    def fchownat(self, real: Real, at: int, path: bytes, uid: int, gid: int, flags: int) -> int:
        return self._changed(real, (at, path, uid, gid, flags), at, path)

    def futimens(self, real: Real, descriptor: int, times: int) -> int:
        return self._changed(real, (descriptor, times), descriptor)

    def utimensat(self, real: Real, at: int, path: bytes | None, times: int, flags: int) -> int:
        return self._changed(real, (at, path, times, flags), at, path)

    def _changed(self, real: Real, arguments: Sequence[object], at: int, path: bytes | None = None) -> int:
        """Owner, mode or time of what is at the path, or open as `at`."""
        result = real(*arguments)
        if result == 0:
            found = os.fstat(at) if path is None else _status(at, path)
            if _inode(found) in self._inodes:
                self._status(self._inodes[_inode(found)], found)
        return result


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _given(identity: int, found: os.stat_result) -> Status:
    return Status(identity, found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns)


def _status(at: int, path: bytes) -> os.stat_result:
    return os.stat(path, dir_fd=None if at == _AT_FDCWD else at, follow_symlinks=False)


def _pieces(vector: int, count: int) -> list[tuple[int, int]]:
    """What an array of `struct iovec` names."""
    words = (ctypes.c_uint64 * (2 * count)).from_address(vector)
    return [(words[2 * number], words[2 * number + 1]) for number in range(count)]
