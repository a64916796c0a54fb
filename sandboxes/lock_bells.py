"""The bells of locks: how who waits for one is woken, here and in other processes, when it may have been granted.

Each lock that is waited for has doorbells of its own (see `events.doorbell`) in `run/locks/<task>`: with those of the
log every commit in the keep would wake all who wait for any lock. A ring says only "look at the log", and one may be
lost with the process that should have rung, so waiters look by themselves too, only seldom.

Safe to call from any thread. Nothing is kept when the process ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import final

from sandkeep.events.doorbell import Doorbell

MOST = 64
"""How many locks' doorbells are kept open. One that is waited for is never closed."""


@final
class Bells:
    """The doorbells of a keep's locks, as far as this process has to do with them."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when somebody waits."""
        self._folder = folder
        self._lock = threading.Lock()
        self._bells: dict[str, _Bell] = {}

    def ring(self, task_id: str) -> None:
        """Wake all who wait for the lock of this task."""
        with self._lock:
            bell = self._open(task_id)
            bell.wake()
            bell.doorbell.ring()

    @contextlib.contextmanager
    def heard(self, task_id: str) -> Iterator[threading.Event]:
        """An event that is set whenever the lock's bell is rung, until the end of the block."""
        woken = threading.Event()
        with self._lock:
            bell = self._open(task_id)
            bell.waiters.append(woken)
            if not bell.listening:
                # It stays when we have what we waited for: every new socket makes all others list theirs again.
                (self._folder / task_id).mkdir(mode=0o700, parents=True, exist_ok=True)
                bell.doorbell.listen(bell.wake)
                bell.listening = True
        try:
            yield woken
        finally:
            with self._lock:
                bell.waiters.remove(woken)

    def close(self) -> None:
        """Close all. Safe to call twice."""
        with self._lock:
            bells, self._bells = self._bells, {}
        for bell in bells.values():
            bell.doorbell.close()

    def _open(self, task_id: str) -> _Bell:
        """The lock's bell, now the one that was used last. Under the lock."""
        bell = self._bells.pop(task_id, None) or _Bell(self._folder / task_id)
        self._bells[task_id] = bell
        if len(self._bells) > MOST:
            unused = next((name for name, each in self._bells.items() if not each.waiters and each is not bell), None)
            if unused is not None:
                self._bells.pop(unused).doorbell.close()
        return bell


@final
class _Bell:
    def __init__(self, folder: Path) -> None:
        self.doorbell = Doorbell(folder)
        self.waiters: list[threading.Event] = []
        self.listening = False

    def wake(self) -> None:
        for each in tuple(self.waiters):
            each.set()
