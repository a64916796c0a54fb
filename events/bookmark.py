"""Where a durable subscription has come to: a small file of its own, held by one consumer at a time.

A file and not a database of the log: to lose the last position costs repeats, which at-least-once allows, while a
commit of the log costs two flushes and the lock that every writer waits for.

The file has two slots, a page apart, written in turn and each with a checksum: a write that a crash cuts short damages
one, and the other still holds the position before. Both name the log, so that a position is never taken for one of
another log. The file itself is locked (`flock`) for as long as it is open; the kernel frees it when its holder dies.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import final

from blake3 import blake3

from sandkeep.events.errors import SubscriptionBusy, SubscriptionDamaged

_SLOT = struct.Struct(">4s16sQQ")
_MAGIC = b"sks1"
_DIGEST = 32
_APART = 4096


@final
class Bookmark:
    """The open, locked file `path`. Used by one thread at a time."""

    def __init__(self, path: Path, log_id: bytes, begin: int) -> None:
        """Take up the stored position; a new file has `begin`.

        Raises `SubscriptionBusy` if another has it open, `SubscriptionDamaged` if it holds no position of this log.
        """
        self._log_id = log_id
        new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SubscriptionBusy(
                    f"the subscription {path.name!r} has a consumer; it is free when that one stops or dies"
                ) from error
            if new:
                _sync_folder(path.parent)
            self._turn, self.position = self._read(path, begin)
        except BaseException:
            os.close(self._file)
            raise

    def move(self, position: int) -> None:
        """Store `position`, durably."""
        self._turn += 1
        slot = _SLOT.pack(_MAGIC, self._log_id, self._turn, position)
        os.pwrite(self._file, slot + blake3(slot).digest(), self._turn % 2 * _APART)
        os.fdatasync(self._file)
        self.position = position

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)

    def _read(self, path: Path, begin: int) -> tuple[int, int]:
        found: list[tuple[int, int]] = []
        for number in range(2):
            stored = os.pread(self._file, _SLOT.size + _DIGEST, number * _APART)
            slot = stored[: _SLOT.size]
            if len(stored) == _SLOT.size + _DIGEST and blake3(slot).digest() == stored[_SLOT.size :]:
                magic, log_id, turn, position = _SLOT.unpack(slot)
                if magic != _MAGIC or log_id != self._log_id:
                    raise SubscriptionDamaged(f"{path} is of another log; remove it to begin anew")
                found.append((turn, position))
        # Before its first position is stored whole, a crash may leave the length of one slot and no content.
        if not found and os.fstat(self._file).st_size > _APART:
            raise SubscriptionDamaged(f"{path} is damaged; remove it to begin anew, or restore it from a copy")
        return max(found, default=(0, begin))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
