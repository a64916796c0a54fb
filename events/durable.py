"""Small steps on the way to a durable file that several modules take."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
from pathlib import Path

_WAIT_BEFORE, _WRITE = 1, 2
_GET_FLAGS, _SET_FLAGS, _TOP_OF_HIERARCHIES = 0x80086601, 0x40086602, 0x20000
_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(descriptor: int) -> None:
    """Make all durable that was written to the file system of an open file, by anybody. Raises `OSError`."""
    if _libc.syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def private(path: str, flags: int) -> int:
    """An opener, for `open`, of a file that only its owner may read."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def write_out(descriptor: int) -> None:
    """Begin to write what an open file holds to the disk, so that a later store through a memory map changes its times.

    A store to a page that is dirty already changes no time; one to a page that was given to the disk does
    (sync_file_range(2)). Nothing is durable by this, and where it cannot be done, nothing is.
    """
    _sync_file_range(descriptor, 0, 0, _WAIT_BEFORE | _WRITE)


def spread(descriptor: int) -> None:
    """Ask that what is made in each new folder of an open folder lies in a part of the disk of its own.

    ext4 looks for room for new files beside their folder's, and passes one by one over what was removed there in the
    last minutes: after a large removal a new file takes ten times as long. A folder that is the top of a hierarchy
    (chattr(1), T) begins elsewhere. Only a hint: where it cannot be given, nothing is done.
    """
    with contextlib.suppress(OSError):
        flags = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, struct.pack("l", 0)))[0]
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags | _TOP_OF_HIERARCHIES))
