"""One file of a memory folder: compared with what it should hold, appended to, or written anew and given its name.

The folder's names are not trusted: every file is opened through the folder's descriptor, no link is followed, and what
is no regular file is not read. Each is used by one thread, within the `ExitStack` that it is given.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
from typing import final

TEMPORARY = ".sandkeep-"
"""How the names of files begin that are not whole yet."""

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o644
_CHUNK = 1 << 20


@final
class Compared:
    """A file of the folder, read once to be compared with what it should hold. What is no file is read as an empty one
    that is broken."""

    def __init__(self, stack: contextlib.ExitStack, folder: int, name: str) -> None:
        self.missing = self._broken = self._ended = False
        self.bytes = 0
        try:
            descriptor = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=folder)
        except FileNotFoundError:
            self.missing = True
            return
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise
            self._broken = True
            return
        stack.callback(os.close, descriptor)
        self._broken = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not self._broken:
            self._file = io.BufferedReader(io.FileIO(descriptor, closefd=False))

    def read(self, most: int) -> bytes:
        """The next `most` bytes, or as many as there are."""
        return b"" if self.missing or self._broken else self._file.read(most)

    def take(self, piece: bytes) -> None:
        """See whether the file goes on with `piece`, or ends within it."""
        if self._ended or self._broken:
            return
        found = self.read(len(piece))
        if found == piece:
            self.bytes += len(piece)
        elif piece.startswith(found):
            self._ended = True
        else:
            self._broken = True

    def broken(self) -> bool:
        """Whether it holds anything but the pieces that were taken, or the beginning of them."""
        return self._broken or (not self._ended and self.read(1) != b"")


@final
class Page:
    """A page being written: the end of one that is there, or (`anew`) one that takes its name when it is whole."""

    def __init__(self, stack: contextlib.ExitStack, folder: int, name: str, anew: bool) -> None:
        self._stack = stack
        self._folder = folder
        self._name = name
        self._temporary = f"{TEMPORARY}{secrets.token_hex(8)}" if anew else None
        self._waiting: list[bytes] = []
        self._size = 0
        self._descriptor: int | None = None
        if anew:
            self._open()

    def write(self, piece: bytes) -> None:
        """Add `piece`."""
        if piece:
            self._waiting.append(piece)
            self._size += len(piece)
            if self._size >= _CHUNK:
                self._flush()

    def finish(self) -> None:
        """Make durable what was written, and give the page its name."""
        self._flush()
        if self._descriptor is not None:
            os.fdatasync(self._descriptor)
        if self._temporary is not None:
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._temporary = None

    def _open(self) -> int:
        flags = os.O_CREAT | os.O_EXCL if self._temporary else os.O_APPEND
        name = self._temporary or self._name
        descriptor = os.open(name, os.O_WRONLY | flags | _FLAGS, 0o600, dir_fd=self._folder)
        self._descriptor = descriptor
        self._stack.callback(self._close, descriptor)
        if self._temporary:
            os.fchmod(descriptor, _MODE)  # whatever the umask: the sandbox's user must be able to read it
        return descriptor

    def _flush(self) -> None:
        if not self._waiting:
            return
        descriptor = self._open() if self._descriptor is None else self._descriptor
        data = memoryview(b"".join(self._waiting))
        while data:
            data = data[os.write(descriptor, data) :]
        self._waiting, self._size = [], 0

    def _close(self, descriptor: int) -> None:
        os.close(descriptor)
        if self._temporary is not None:
            os.unlink(self._temporary, dir_fd=self._folder)


def cut(folder: int, name: str, size: int) -> None:
    """Take from the file what is behind its first `size` bytes."""
    descriptor = os.open(name, os.O_WRONLY | _FLAGS, dir_fd=folder)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
