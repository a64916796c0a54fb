"""The doorbell: how a process that commits wakes the others that wait for its records.

Each process that listens has a datagram socket in one folder; whoever commits sends an empty datagram to every socket
there but its own. A datagram says only "look at the log", so that one which is lost, repeated or forged does no harm:
listeners poll the log too, only less often than they would have to without this.

Concurrency. `ring` is called by one thread at a time, that of the commit, never blocks and never raises. `listen` may
be called from any thread; callbacks run on a thread of the doorbell's own, which lives, with its socket, from the first
`listen` until the last is ended. After a fork only the parent is served.

Durability. Nothing is kept. A process that was killed leaves its socket file; the next to ring finds nobody behind it
and removes it. Files that are not sockets are never touched, links are not followed, and beyond `MOST` sockets the
others are left to their polling. The addresses lead through /proc/self/fd, because a socket's may have 107 bytes only;
where there is no /proc, everybody polls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import final

MOST = 256
"""How many listeners are rung at most."""

_logger = logging.getLogger(__name__)
_RACY_NS = 50_000_000
_STALE_SECONDS = 5.0
_CHECK_SECONDS = 2.0
_JOIN_SECONDS = 5.0
_DRAIN = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@final
class Doorbell:
    """The sockets in `folder`, one of them ours while something listens here."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made with the first listener."""
        self._folder = os.fspath(folder)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._ear: _Ear | None = None
        self._sender: socket.socket | None = None
        self._descriptor: int | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._names: list[str] = []

    def ring(self) -> None:
        """Wake every other process that listens."""
        mine = self._ear.name if self._ear is not None else None
        for name in self._listed():
            if name != mine:
                self._send(name)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback`, which must neither block nor raise, when another process has rung; returns what ends this.

        It may be called without reason, and several rings may become one call.
        """
        with self._lock:
            self._callbacks.append(callback)
            if self._ear is None:
                self._ear = _Ear(self._folder, self._heard)
        return lambda: self._unlisten(callback)

    def close(self) -> None:
        """Stop listening and release everything. Safe to call twice."""
        if os.getpid() != self._pid:
            return  # the socket is our parent's
        with self._lock:
            self._callbacks.clear()
            ear, self._ear = self._ear, None
        if ear is not None:
            ear.close()
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._forget()

    def _unlisten(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)
            ear = None if self._callbacks else self._ear
            if ear is not None:
                self._ear = None
        if ear is not None and os.getpid() == self._pid:
            ear.close()

    def _heard(self) -> None:
        for callback in tuple(self._callbacks):
            callback()

    def _listed(self) -> list[str]:
        """The names of the sockets in the folder, listed anew only when it has changed: a commit pays one `stat`."""
        try:
            found = os.stat(self._folder, follow_symlinks=False)
            stamp = (found.st_dev, found.st_ino, found.st_mtime_ns)
            if stamp != self._stamp:
                self._forget()
                self._descriptor = os.open(self._folder, _FOLDER)
                with os.scandir(self._descriptor) as entries:
                    sockets = [e.name for e in entries if stat.S_ISSOCK(e.stat(follow_symlinks=False).st_mode)]
                self._names = sockets[:MOST]
                # Two changes within one tick of the file system's clock leave the same time.
                self._stamp = stamp if abs(time.time_ns() - found.st_mtime_ns) > _RACY_NS else None
        except FileNotFoundError:  # nobody has ever listened, or somebody went while we looked
            self._forget()
        except OSError as error:  # no folder, or not ours: as said above, they poll
            _logger.debug("the doorbells in %s cannot be listed: %s", self._folder, error)
            self._forget()
        return self._names

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._stamp, self._names = None, None, []

    def _send(self, name: str) -> None:
        try:
            if self._sender is None:
                self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._sender.setblocking(False)
            self._sender.sendto(b"", f"/proc/self/fd/{self._descriptor}/{name}")
        except BlockingIOError:
            return  # its buffer is full: it has been rung often enough to wake
        except ConnectionRefusedError:
            self._remove(name)
        except FileNotFoundError:
            self._stamp = None  # it has gone, so the listing is out of date
        except OSError as error:  # another user's, or no datagram socket
            _logger.debug("the doorbell %s cannot be rung: %s", name, error)

    def _remove(self, name: str) -> None:
        """Remove a socket behind which nobody is, unless it is so new that its owner may still be about to be there."""
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            if stat.S_ISSOCK(found.st_mode) and time.time() - found.st_mtime > _STALE_SECONDS:
                os.unlink(name, dir_fd=self._descriptor)
        except OSError as error:  # another process was quicker, or it is another user's
            _logger.debug("the stale doorbell %s was not removed: %s", name, error)


@final
class _Ear:
    """Our socket, and the thread that waits on it."""

    def __init__(self, folder: str, heard: Callable[[], None]) -> None:
        self.name = ""
        self._folder = folder
        self._heard = heard
        self._closed = False
        self._socket = self._bind()
        self._thread = threading.Thread(target=self._run, name="sandkeep-doorbell", daemon=True)
        if self._socket is not None:
            self._thread.start()

    def close(self) -> None:
        """Remove the socket and end the thread. A callback may call this."""
        self._closed = True
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # Linux wakes the thread although it calls the socket unconnected
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)
        self._release()

    def _release(self) -> None:
        with contextlib.suppress(OSError):  # gone with its folder, or out of reach: the next to ring removes it
            os.unlink(os.path.join(self._folder, self.name))
        if self._socket is not None:
            self._socket.close()

    def _bind(self) -> socket.socket | None:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            descriptor = os.open(self._folder, _FOLDER)
            try:
                self.name = secrets.token_hex(8)
                ours.bind(f"/proc/self/fd/{descriptor}/{self.name}")
                os.chmod(self.name, 0o600, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            ours.setblocking(False)
        except OSError as error:
            _logger.warning("no doorbell in %s (%s): other processes' commits are seen by polling", self._folder, error)
            ours.close()
            return None
        return ours

    def _run(self) -> None:
        while not self._closed and self._socket is not None:
            waiting = select.poll()
            waiting.register(self._socket, select.POLLIN)
            if waiting.poll(_CHECK_SECONDS * 1000):
                self._drain(self._socket)
            elif os.path.lexists(os.path.join(self._folder, self.name)):
                continue
            else:  # somebody tidied up; without this we would be deaf until the end
                self._socket.close()
                self._socket = self._bind()
            if not self._closed:
                self._heard()

    def _drain(self, ours: socket.socket) -> None:
        try:
            for _ in range(_DRAIN):
                ours.recv(1)
        except BlockingIOError:
            return  # all that had been sent is taken
