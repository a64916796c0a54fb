"""Where a durable subscription has come to: a small file of its own, held by one consumer at a time.

A file and not a database of the log: to lose the last position costs repeats, which at-least-once allows, while a
commit of the log costs two flushes and the lock that every writer waits for.

The file has two slots, a page apart, written in turn and each with a checksum: a write that a crash cuts short damages
one, and the other still holds the position before. Both name the log and its record at that position, so that a
position is never taken for one of another log, or of one that lost its end and has grown past it since.

The file itself is locked (`flock`) for as long as it is open; the kernel frees it when its holder dies.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import final

import msgspec
from blake3 import blake3

from sandkeep.events.codec import Record
from sandkeep.events.durable import sync_folder
from sandkeep.events.errors import LogUnavailable, SubscriptionBusy, SubscriptionDamaged

_SLOT = struct.Struct(">4s16sQQ16s")
_MAGIC = b"sks2"
_DIGEST = 32
_APART = 4096
_NO_RECORD = bytes(16)
_encode = msgspec.msgpack.Encoder().encode


@final
class Bookmark:
    """The open, locked file `path`. Used by one thread at a time."""

    def __init__(self, path: Path, log_id: bytes, begin: int) -> None:
        """Take up the stored position; a new file has `begin`.

        Raises `SubscriptionBusy` if another has it open, `SubscriptionDamaged` if it holds no position of this log, and
        `LogUnavailable` if it cannot be opened.
        """
        self._log_id = log_id
        self._path = path
        new = not path.exists()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LogUnavailable(f"the position in {path} cannot be opened: {error.strerror}") from error
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SubscriptionBusy(
                    f"the subscription {path.name!r} has a consumer; it is free when that one stops or dies"
                ) from error
            if new:
                sync_folder(path.parent)
            self._turn, self.position, self._record = self._read(path, begin)
        except BaseException:
            os.close(self._file)
            raise

    def move(self, record: Record) -> None:
        """Store the position of `record`, durably. Raises `LogUnavailable`."""
        digest = _digest(record)
        slot = _SLOT.pack(_MAGIC, self._log_id, self._turn + 1, record.position, digest)
        try:
            os.pwrite(self._file, slot + blake3(slot).digest(), (self._turn + 1) % 2 * _APART)
            os.fdatasync(self._file)
        except OSError as error:
            raise LogUnavailable(
                f"position {record.position} cannot be stored in {self._path}: {error.strerror}; check the disk"
            ) from error
        self._turn, self.position, self._record = self._turn + 1, record.position, digest

    def stands_at(self, record: Record | None) -> bool:
        """Whether `record` is the one whose position was stored. True if none was."""
        return self._record == _NO_RECORD or (record is not None and self._record == _digest(record))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)

    def _read(self, path: Path, begin: int) -> tuple[int, int, bytes]:
        found: list[tuple[int, int, bytes]] = []
        for number in range(2):
            stored = os.pread(self._file, _SLOT.size + _DIGEST, number * _APART)
            slot = stored[: _SLOT.size]
            if len(stored) == _SLOT.size + _DIGEST and blake3(slot).digest() == stored[_SLOT.size :]:
                magic, log_id, turn, position, record = _SLOT.unpack(slot)
                if magic != _MAGIC or log_id != self._log_id:
                    raise SubscriptionDamaged(f"{path} is of another log; remove it to begin anew")
                found.append((turn, position, record))
        # Before its first position is stored whole, a crash may leave the length of one slot and no content.
        if not found and os.fstat(self._file).st_size > _APART:
            raise SubscriptionDamaged(f"{path} is damaged; remove it to begin anew, or restore it from a copy")
        return max(found, default=(0, begin, _NO_RECORD))


def _digest(record: Record) -> bytes:
    return blake3(_encode(record)).digest(16)
