"""Space on the disk that is set aside, and given up when the disk is full, so that what was begun can be completed.

It is one file of zeros, `blobs/reserve`, allocated (posix_fallocate) and never written to. Whoever meets a full disk
while he stores something removes it and goes on; it is made again later, once there is room (see `Reserve.make`).
Others may take what was given up, so it is a chance and no promise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, final

import lmdb

from sandkeep.events.durable import private
from sandkeep.events.errors import BlobsUnavailable

RESERVE_BYTES = 32 << 20
"""How much is set aside."""

ENOUGH = 4
"""How many times that must be free for it to be made."""

LAST_BYTES = 4 << 20
"""How much is left free by whoever has stored something, for the event that is to refer to it."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_Found = TypeVar("_Found")


@final
class Reserve:
    """The reserve at `path`, which need not be there. Any number of threads and processes may use it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self) -> bool:
        """Set it aside, unless it is there, or too little is free; whether it was made. Raises `OSError`."""
        if self._path.exists() or self._free() < ENOUGH * RESERVE_BYTES:
            return False
        temporary = self._path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}")
        try:
            with open(temporary, "xb", opener=private) as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
            temporary.rename(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def give_up(self) -> bool:
        """Let others have the space; whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def ease(self) -> None:
        """Give it up if next to nothing else is free."""
        with contextlib.suppress(OSError):
            if self._free() < LAST_BYTES:
                self.give_up()

    def through(self, act: Callable[[], _Found]) -> _Found:
        """Do something; once more, with the reserve given up, if the disk is full. Raises `BlobsUnavailable` if it
        still is."""
        try:
            try:
                return act()
            except (OSError, BlobsUnavailable) as error:
                if not is_full(error) or not self.give_up():
                    raise
            return act()
        except OSError as error:
            if not is_full(error):
                raise
            raise BlobsUnavailable(
                "the disk is full, so nothing of this was stored; remove something from it, or let checkpoints go"
                " ('sandkeep expire-checkpoints'), then try again"
            ) from error

    def _free(self) -> int:
        found = os.statvfs(self._path.parent)
        return found.f_bavail * found.f_frsize


def is_full(error: BaseException) -> bool:
    """Whether something failed since the disk, or somebody's share of it, is full."""
    cause = error.__cause__ if isinstance(error, BlobsUnavailable) else error
    return isinstance(cause, lmdb.DiskError) or (isinstance(cause, OSError) and cause.errno in _FULL)
