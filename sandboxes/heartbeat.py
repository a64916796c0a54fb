"""The heartbeat: one thread that renews the leases of all that this process holds.

A renewal that is refused ends: the lease was lost, and the fence will say so to whoever relies on it. The thread is
started with the first lease and ends with `close`. Safe to call from any thread; a fork has no heartbeat.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import final

from sandkeep.events import SandkeepError

_logger = logging.getLogger(__name__)
_JOIN_SECONDS = 5.0


@final
class Heartbeat:
    """Calls what is added to it, each in its own period, until it is taken out."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._due: list[tuple[float, int, float]] = []
        self._renewals: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, period: float, renew: Callable[[], None]) -> int:
        """Call `renew` every `period` seconds; returns the number by which `remove` knows it."""
        with self._changed:
            number = next(self._numbers)
            self._renewals[number] = renew
            entry = (time.monotonic() + period, number, period)
            heapq.heappush(self._due, entry)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="sandkeep-heartbeat", daemon=True)
                self._thread.start()
            elif self._due[0] == entry:
                self._changed.notify()
        return number

    def remove(self, number: int) -> None:
        """Call it no more; a call that is under way may still end. Unknown numbers are no error."""
        with self._changed:
            self._renewals.pop(number, None)
            # Most are taken out long before they are due, and nothing else would clear those away.
            if len(self._due) > 64 and len(self._due) > 2 * len(self._renewals):
                self._due = [entry for entry in self._due if entry[1] in self._renewals]
                heapq.heapify(self._due)

    def close(self) -> None:
        """End the thread. Leases are left to run out. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._renewals.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            number, period, renew = taken
            try:
                renew()
            except SandkeepError as error:
                _logger.warning("a lease was not renewed: %s", error)
                self.remove(number)
                continue
            with self._changed:
                if number in self._renewals:
                    heapq.heappush(self._due, (time.monotonic() + period, number, period))

    def _next(self) -> tuple[int, float, Callable[[], None]] | None:
        """What is due, waiting for it; None once closed."""
        with self._changed:
            while not self._closed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    _, number, period = heapq.heappop(self._due)
                    if (renew := self._renewals.get(number)) is not None:
                        return number, period, renew
                    continue
                self._changed.wait(wait)
        return None
