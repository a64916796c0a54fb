"""What an agent's session has taken up in a keep, so that it is put in order when the agent is gone, however it went.

A server notes in `run/sessions/ID` which locks its agent holds and in which tasks it has done something since their
last checkpoint, and holds the note's `flock` while it lives. At an orderly end it records the workspaces, gives the
locks back and removes the note. The kernel frees the note of one that was killed: the steward does the same for it once
no other server has taken the session up again for a while. What the owner of the keep wants of this stands in
keep.toml; see `settings`.

Nothing here is synced: what a power loss takes away, leases end.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import SandkeepError
from sandkeep.sandboxes import settings

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

GRACE_SECONDS = 60.0
"""How long a note may be nobody's before its agent is taken to be gone: its server may be on its way back."""

_RENEWALS = 3
_MOST_BYTES = 1 << 20
_logger = logging.getLogger(__name__)


class Note(msgspec.Struct):
    """What is noted of a session: its agent, the task of each token that it holds, and the tasks it has worked in."""

    agent: str
    held: dict[int, str] = {}
    touched: list[str] = []


@final
class Attendance:
    """The session of one server. Several threads may use it."""

    def __init__(self, keep: Keep, session: str) -> None:
        """Take the session up, or up again if another server of it died."""
        self._keep = keep
        self._changing = threading.Lock()
        self._renewed: dict[int, int] = {}
        folder = keep.path / "run" / "sessions"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / session
        self._file = _taken(self._path)
        self._note = _read(self._file) or Note(keep.actor)
        self._write()
        self._living = keep.locking.heartbeat.add(GRACE_SECONDS / _RENEWALS, self._live)
        for token, task in list(self._note.held.items()):
            self._renew(task, token)

    def attached(self, task: str, token: int) -> None:
        """The agent holds a lock; its lease is renewed from now on."""
        with self._changing:
            self._note.held[token] = task
            self._write()
        self._renew(task, token)

    def detached(self, token: int) -> None:
        """It holds it no more."""
        with self._changing:
            self._note.held.pop(token, None)
            self._keep.locking.heartbeat.remove(self._renewed.pop(token, -1))
            self._write()

    def worked(self, task: str) -> None:
        """It is about to do something in a task."""
        with self._changing:
            if task not in self._note.touched:
                self._note.touched.append(task)
                self._write()

    def recorded(self, task: str) -> None:
        """It has recorded all that it did in a task."""
        with self._changing:
            if task in self._note.touched:
                self._note.touched.remove(task)
                self._write()

    def leave(self) -> None:
        """Put everything in order: the agent is gone."""
        with self._changing:
            for number in (self._living, *self._renewed.values()):
                self._keep.locking.heartbeat.remove(number)
            for line in _leave(self._keep, self._note):
                _logger.warning("%s", line)
            self._path.unlink(missing_ok=True)
            os.close(self._file)

    def _renew(self, task: str, token: int) -> None:
        try:
            claim = self._keep.locking.check(task, token)
        except SandkeepError:  # it ran out, or was broken
            return
        if claim is not None:
            renew = partial(self._keep.locking.renew, task, claim.id)
            self._renewed[token] = self._keep.locking.heartbeat.add(claim.lease_ns / 1e9 / _RENEWALS, renew)

    def _live(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._file)

    def _write(self) -> None:
        data = msgspec.json.encode(self._note)
        # Blanks over what stood there: a kill before it is cut leaves a note that can be read.
        os.pwrite(self._file, data.ljust(os.fstat(self._file).st_size), 0)
        os.ftruncate(self._file, len(data))


def tick(keep: Keep) -> list[str]:
    """Put in order what agents that are gone have left, and tell what was done. The steward does this."""
    done: list[str] = []
    folder = keep.path / "run" / "sessions"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with _abandoned(path) as note:
            if note is not None:
                done += [f"the agent {note.agent} is gone", *_leave(keep, note)]
                path.unlink(missing_ok=True)
    return done


def agent(path: Path) -> str | None:
    """Whose note it is that lies there, if it is one. Raises `OSError`."""
    with open(path, "rb") as file:
        found = _read(file.fileno())
    return None if found is None else found.agent


def _taken(path: Path) -> int:
    """The note, which is ours from now on; a new one, if there was none or another has just removed it."""
    while True:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[Note | None]:
    """The note there, if it is nobody's and has been so for a while; it is ours until the end of the block."""
    with contextlib.ExitStack() as stack:
        note = None
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file).st_mtime >= GRACE_SECONDS:
                note = _read(file) or Note("unknown")
        yield note


def _read(file: int) -> Note | None:
    try:
        return msgspec.json.decode(os.pread(file, _MOST_BYTES, 0), type=Note)
    except (msgspec.DecodeError, UnicodeDecodeError):  # nothing was noted, or half of it
        return None


def _leave(keep: Keep, note: Note) -> list[str]:
    wanted = settings.load(keep.path).sessions
    done: list[str] = []
    for task in note.touched if wanted.checkpoint else ():
        with _told(done, f"task {task} was not recorded"):
            taken = keep.task(task).checkpoint(f"when {note.agent} left"[:200])
            done.append(f"task {task}: recorded as {taken.id}")
    for token, task in note.held.items() if wanted.detach else ():
        with _told(done, f"the lock of task {task} is left to its lease"):
            keep.locking.release(task, token)
            done.append(f"task {task}: {note.agent} was detached")
    return done


@contextlib.contextmanager
def _told(done: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except (SandkeepError, OSError) as error:
        done.append(f"{what}: {error}")
