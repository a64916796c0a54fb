"""Who is a keep's steward: whoever holds `run/steward.lock`.

The kernel frees the lock (`flock`) when its holder ends, however it ends, and the next who tries takes over. What the
holder writes into the file is for people to read; that the lock is held is what counts.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import final

import msgspec

_MOST_BYTES = 1 << 16


class Incumbent(msgspec.Struct, frozen=True):
    """A running steward: its process, since when, and those of its duties that fail, with the reason."""

    pid: int = 0
    since_ns: int = 0
    failing: dict[str, str] = {}


@final
class Seat:
    """The lock of one keep's steward, from the side of who wants it. Used by one thread."""

    def __init__(self, keep: Path) -> None:
        self._path = keep / "run" / "steward.lock"
        self._descriptor: int | None = None
        self._since_ns = 0

    def take(self) -> bool:
        """Become the steward; false if another is."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor, self._since_ns = descriptor, time.time_ns()
        self.say({})
        return True

    def say(self, failing: dict[str, str]) -> None:
        """Leave word of what fails."""
        assert self._descriptor is not None
        word = msgspec.json.encode(Incumbent(os.getpid(), self._since_ns, failing))
        os.pwrite(self._descriptor, word.ljust(os.fstat(self._descriptor).st_size), 0)
        os.ftruncate(self._descriptor, len(word))

    def leave(self) -> None:
        """Be the steward no more. Safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def incumbent(keep: Path) -> Incumbent | None:
    """The steward of the keep in this folder, if one runs."""
    try:
        descriptor = os.open(keep / "run" / "steward.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            word = os.pread(descriptor, _MOST_BYTES, 0)
        else:
            return None
    finally:
        os.close(descriptor)
    try:
        return msgspec.json.decode(word, type=Incumbent)
    except (ValueError, UnicodeDecodeError):
        return Incumbent()  # it is about to write
