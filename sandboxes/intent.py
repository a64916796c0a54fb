"""Who is still at work on an intent.

A process that stores an intent holds a `flock` on a file named like it until the outcome is stored. The kernel
releases the lock when the process ends, however it ends, so an intent whose file can be locked, or is gone, was
abandoned. Process ids are not used: they are reused. A program that is started to do a part of the work inherits the
lock (`inherited`), for it goes on when who started it is killed, and nothing it still works on may be settled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_mine = threading.local()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[str]:
    """A new intent's id, held until the end of the block."""
    intent = secrets.token_hex(8)
    path = folder / intent
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        mine: set[int] = _mine.__dict__.setdefault("descriptors", set())
        mine.add(descriptor)
        try:
            yield intent
        finally:
            mine.discard(descriptor)  # in whatever order blocks end, and on whatever thread
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def taken_over(folder: Path, intent: str) -> Iterator[bool]:
    """Hold an intent that was abandoned, as who began it did, until the end of the block; false if it was not, or is
    settled."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder / intent, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            yield False
            return
        yield _is_at(descriptor, folder / intent)
        (folder / intent).unlink(missing_ok=True)


def inherited() -> tuple[int, ...]:
    """The locks of the intents that this thread is in the block of: for a program that does a part of their work."""
    return tuple(getattr(_mine, "descriptors", ()))


def abandoned(folder: Path, intent: str) -> bool:
    """Whether nobody works on this intent any more."""
    try:
        descriptor = os.open(folder / intent, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path` alone, among all threads and processes; waits for it. Who holds it may remove it, as
    the last thing that is done in the block: others who wait for it then make another."""
    with _locked(path, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def attempted(path: Path) -> Iterator[bool]:
    """As `exclusive`, without waiting: false if somebody else holds it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    while True:
        with open(path, "ab") as file:
            fcntl.flock(file, how)
            if _is_at(file.fileno(), path):
                yield
                return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether it is still this file: who held it may have removed it, and others may hold a new one by that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def sweep(folder: Path, grace_seconds: float) -> int:
    """Remove the files that processes which were killed have left; returns how many. One that is younger than
    `grace_seconds` stays: who has just made it may not have locked it yet."""
    swept = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > grace_seconds and abandoned(folder, path.name):
                path.unlink()
                swept += 1
    return swept
