"""The record of what sandboxes reached for: an event for each connection, and a bound on how many.

A sandbox may ask for connections as fast as it can, and must not fill the log with them. So each task has
`MOST_EVENTS` connections recorded one by one in `WINDOW_SECONDS`; those beyond are counted, and one event tells of them
when the time is up, or the proxy ends. What is let through is on record before any of it passes, unless it is
beyond that bound.

Runs on one asyncio event loop; the log is written by threads, so that its syncing holds up only who waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import final

from sandkeep.events import Event, SandkeepError
from sandkeep.events import catalogue as ev

MOST_EVENTS = 60
WINDOW_SECONDS = 60.0

_MAX_HOSTS = 10
_HOSTS_KEPT = 200
_THREADS = 4
_logger = logging.getLogger(__name__)

Store = Callable[[str, Event], object]
"""Puts an event on the record of a task, durably."""


class _Window:
    """What a task has asked for since `begun`."""

    def __init__(self) -> None:
        self.begun = time.monotonic_ns()
        self.recorded = 0
        self.allowed = self.denied = self.sent = self.received = 0
        self.hosts: Counter[str] = Counter()


@final
class EgressRecord:
    """The record of all tasks of a proxy."""

    def __init__(self, store: Store, *, window_seconds: float = WINDOW_SECONDS, most: int = MOST_EVENTS) -> None:
        self._store = store
        self._window_seconds, self._most = window_seconds, most
        self._windows: dict[str, _Window] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="egress-record")
        self._summaries: set[asyncio.Task[None]] = set()

    async def allowed(self, task: str, host: str, port: int, address: str) -> str | None:
        """A connection is about to be let through. Returns its id; None if it is only counted.

        Raises `SandkeepError` if it cannot be put on record; then it must not be let through.
        """
        if (window := self._beyond(task, host, port)) is not None:
            window.allowed += 1
            return None
        connection = secrets.token_hex(6)
        await self._write(task, ev.ConnectionAllowed(connection, host, port, address))
        return connection

    async def denied(self, task: str, host: str, port: int, reason: str) -> None:
        """A connection is not let through."""
        if (window := self._beyond(task, host, port)) is not None:
            window.denied += 1
            return
        await self._write_or_log(task, ev.ConnectionDenied(host, port, reason))

    async def closed(self, task: str, event: ev.ConnectionClosed) -> None:
        """An allowed connection has ended; one without an id is only counted."""
        if event.connection:
            await self._write_or_log(task, event)
        else:
            window = self._window(task)
            window.sent += event.sent
            window.received += event.received

    async def close(self) -> None:
        """Record what was only counted so far. Nothing may be recorded after."""
        for task in list(self._windows):
            await self._summarise(task)
        if self._summaries:
            await asyncio.wait(self._summaries)
        self._pool.shutdown()

    def _beyond(self, task: str, host: str, port: int) -> _Window | None:
        """The window to count a connection in, if it is not to be recorded by itself."""
        window = self._window(task)
        if window.recorded < self._most:
            window.recorded += 1
            return None
        if len(window.hosts) < _HOSTS_KEPT:
            window.hosts[f"{host}:{port}"] += 1
        return window

    def _window(self, task: str) -> _Window:
        if task not in self._windows:
            self._windows[task] = _Window()
            asyncio.get_running_loop().call_later(self._window_seconds, self._end, task)
        return self._windows[task]

    def _end(self, task: str) -> None:
        summary = asyncio.ensure_future(self._summarise(task))
        self._summaries.add(summary)
        summary.add_done_callback(self._summaries.discard)

    async def _summarise(self, task: str) -> None:
        window = self._windows.pop(task, None)
        if window is None or not (window.allowed or window.denied or window.sent or window.received):
            return
        hosts = tuple(host for host, _ in window.hosts.most_common(_MAX_HOSTS))
        counts = (window.allowed, window.denied, window.sent, window.received)
        lasted = time.monotonic_ns() - window.begun
        await self._write_or_log(task, ev.ConnectionsSummarised(*counts, hosts, lasted))

    async def _write_or_log(self, task: str, event: Event) -> None:
        try:
            await self._write(task, event)
        except SandkeepError as error:
            _logger.error("%s of task %s is not on record: %s", type(event).__name__, task, error)

    async def _write(self, task: str, event: Event) -> None:
        # Not cut off with whoever waits: what has been decided stays decided.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._pool, self._store, task, event))
