"""A place in a queue of processes that needs no daemon: a numbered file, locked (`flock`) until its owner is done or
dead.

Only the owner of the lowest live ticket is served, so whoever comes first is, and a process that dies holds up nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sandkeep.sandboxes import intent


@contextlib.contextmanager
def taken(folder: Path) -> Iterator[Callable[[], bool]]:
    """Take the next number, until the end of the block; gives what tells whether it is the lowest live one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with intent.exclusive(folder / "counter"):
        # Those who hold a number are in the folder; when nobody does, numbers may begin anew.
        number = max((int(path.name) for path in folder.glob("[0-9]*")), default=0) + 1
        path = folder / f"{number:012}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def first() -> bool:
        for other in sorted(folder.glob("[0-9]*")):
            if other.name >= path.name:
                break
            if not intent.abandoned(folder, other.name):
                return False
            other.unlink(missing_ok=True)
        return True

    try:
        yield first
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def waiting(folder: Path, seconds: float) -> bool:
    """Whether somebody has stood in the queue for so long."""
    for path in folder.glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= seconds and not intent.abandoned(folder, path.name):
                return True
    return False
