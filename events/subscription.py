"""A durable subscription: every record to one handler, in order, at least once, whatever crashes.

It pulls records from its stored position, a page at a time, and gives them to its handler one after the other. The
next is read when the last is dealt with, so a slow handler costs no memory. Its position is stored when
`COMMIT_RECORDS` were dealt with, when `COMMIT_SECONDS` have passed, and when it stops: after a crash, what was dealt
with since is given again, so a handler must bear repeats. A handler that raises is tried again, after a pause that
doubles each time. After the last try `HandlerFailed` is appended to the stream `subscription/<name>`, once for each
record, and the subscription goes on with the next record or halts before this one, as it was told. A failure on a
`HandlerFailed` is only logged: two subscriptions that fail on each other's failures would else write for ever.

Concurrency. One consumer of a name at a time, over all processes (see `bookmark`). `start` runs it on a thread of its
own, `run` on the caller's, and `run_async` on the caller's event loop, where reading and handlers that are not `async`
go to worker threads. `stop` may be called from any thread and from the handler, which is let finish its record.
Cancelling `run_async` cancels an `async` handler; its record is given again.

Errors. `SubscriptionHalted`, and what reading and appending raise, end it: they come out of `run` and `run_async`, and
are in `failure` for who called `start`. Its position is stored whatever ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from sandkeep.events.bookmark import Bookmark
from sandkeep.events.catalogue import HandlerFailed
from sandkeep.events.codec import Record
from sandkeep.events.errors import BadInput, KeyReused, SandkeepError, SubscriptionDamaged, SubscriptionHalted
from sandkeep.events.log import EventLog

Handler = Callable[[Record], Awaitable[None] | None]
"""What is given each record, and returns or is awaited when it has dealt with it."""

PAGE = 256
"""How many records are read ahead of the handler, at most."""

COMMIT_RECORDS = 1000
COMMIT_SECONDS = 0.5
"""How much may be given again after a crash."""

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_MAX_WORDS = 2000


@final
class Subscription:
    """The subscription `name` on one log."""

    def __init__(
        self,
        log: EventLog[Any],
        folder: Path,
        name: str,
        handler: Handler,
        *,
        after: int = 0,
        on_failure: Literal["go-on", "halt"] = "halt",
        tries: int = 5,
        first_pause: float = 0.1,
        longest_pause: float = 30.0,
        poll_seconds: float = 0.25,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        """Its position lies in `folder`; a new one begins behind position `after`.

        `sleep` replaces the pause between two tries, which `stop` would cut short. Raises `BadInput`.
        """
        if not _NAME.fullmatch(name):
            raise BadInput(f"{name[:80]!r} is no subscription's name; use up to 64 letters, digits and . _ : -")
        if tries < 1 or after < 0:
            raise BadInput("a subscription tries each record once at least, and begins behind position 0 at least")
        self._log = log
        self._path = folder / name
        self.name = name
        self._handler = handler
        self._after = after
        self._halts = on_failure == "halt"
        self._tries = tries
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._poll = poll_seconds
        self._sleep = sleep or self._pause
        self._offload = False
        self._position: int | None = None
        self._last: Record | None = None
        self._stopping = threading.Event()
        self._running = threading.Lock()
        self._woken: asyncio.Event
        self._wake: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        self.failure: SandkeepError | None = None

    @property
    def position(self) -> int | None:
        """The last record dealt with, stored or not; None before it has first run."""
        return self._position

    @property
    def lag(self) -> int | None:
        """How many records of the log are still to be dealt with; None before it has first run."""
        return None if self._position is None else max(0, self._log.head().position - self._position)

    def start(self) -> None:
        """Run on a new thread. What stands in its way is raised here, on the caller's: `SubscriptionBusy`,
        `SubscriptionDamaged`, and what reading the log raises."""
        bookmark = self._open()
        self._thread = threading.Thread(
            target=self._run_thread, args=(bookmark,), name=f"sandkeep-subscription-{self.name}", daemon=True
        )
        self._thread.start()

    def run(self) -> None:
        """Run on this thread until `stop`."""
        asyncio.run(self._follow(self._open()))

    async def run_async(self) -> None:
        """Run on this event loop until `stop`."""
        self._offload = True
        await self._follow(self._open())

    def stop(self, timeout: float | None = None) -> bool:
        """End it behind the record that is being dealt with; whether the thread of `start` has ended in `timeout`.

        What is under way elsewhere ends soon after. Safe to call twice; it can be started again.
        """
        self._stopping.set()
        self._wake()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _open(self) -> Bookmark:
        if not self._running.acquire(blocking=False):
            raise BadInput(f"the subscription {self.name!r} runs already; stop it first")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            bookmark = Bookmark(self._path, self._log.log_id, self._after)
            try:
                self._refuse_if_lost(bookmark)
            except BaseException:
                bookmark.close()
                raise
        except BaseException:
            self._running.release()
            raise
        self._position, self._last, self.failure = bookmark.position, None, None
        self._stopping.clear()
        return bookmark

    def _refuse_if_lost(self, bookmark: Bookmark) -> None:
        """A log that was recovered may have lost its end, and may since have grown past where it was."""
        position, head = bookmark.position, self._log.head().position
        if position > max(head, self._after):
            what = f"the log ends at {head}"
        elif not bookmark.stands_at(next(self._log.read(max(0, position - 1), until=position), None)):
            what = "the log has another record there"
        else:
            return
        raise SubscriptionDamaged(
            f"{self._path} says position {position}, but {what}: it has lost its end; remove the file to begin anew"
        )

    def _run_thread(self, bookmark: Bookmark) -> None:
        try:
            asyncio.run(self._follow(bookmark))
        except SandkeepError as error:
            self.failure = error
            _logger.error("the subscription %r ended: %s", self.name, error)

    async def _follow(self, bookmark: Bookmark) -> None:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(woken.set)

        self._wake = wake
        self._woken = woken
        stored_at = time.monotonic()
        unlisten = self._log.listen(wake)
        try:
            while not self._stopping.is_set():
                woken.clear()
                records = self._log.read(bookmark.position if self._position is None else self._position)
                while page := await self._do(_page, records):
                    for record in page:
                        if not await self._deal_with(record):
                            return
                        self._position, self._last = record.position, record
                        behind = record.position - bookmark.position
                        if behind >= COMMIT_RECORDS or time.monotonic() - stored_at >= COMMIT_SECONDS:
                            await self._do(bookmark.move, record)
                            stored_at = time.monotonic()
                unstored = self._last if self._position != bookmark.position else None
                due = stored_at + COMMIT_SECONDS - time.monotonic()
                if unstored is not None and due <= 0:
                    await self._do(bookmark.move, unstored)
                    stored_at = time.monotonic()
                    continue
                await self._wait(self._poll if unstored is None else min(self._poll, due))
        finally:
            unlisten()
            self._wake = lambda: None
            try:
                if self._last is not None and self._position != bookmark.position:
                    bookmark.move(self._last)
            finally:
                bookmark.close()
                self._running.release()

    async def _deal_with(self, record: Record) -> bool:
        """Give `record` to the handler until it takes it; false if it is to stop. Raises `SubscriptionHalted`."""
        pause = self._first_pause
        attempt = 0
        while not self._stopping.is_set():
            attempt += 1
            try:
                if self._offload and not inspect.iscoroutinefunction(self._handler):
                    result = await asyncio.to_thread(self._handler, record)
                else:
                    result = self._handler(record)
                if inspect.isawaitable(result):
                    await result
                return True
            except Exception as error:  # noqa: BLE001 - a handler is foreign code; what it raises is recorded
                _logger.warning(
                    "the subscription %r failed on position %d, try %d of %d: %r",
                    self.name, record.position, attempt, self._tries, error,
                )  # fmt: skip
                if attempt == self._tries:
                    await self._give_up(record, error)
                    return True
            await self._sleep(pause)
            pause = min(pause * 2, self._longest_pause)
        return False

    async def _give_up(self, record: Record, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode()[:_MAX_WORDS]
        if record.type != HandlerFailed.__name__:
            with contextlib.suppress(KeyReused):  # recorded before a crash or a halt, in other words perhaps
                await self._do(self._record, record.position, words)
        if self._halts:
            raise SubscriptionHalted(
                f"the subscription {self.name!r} stands before position {record.position}: {words};"
                " mend its handler and start it again"
            ) from error

    def _record(self, position: int, words: str) -> None:
        self._log.append(
            f"subscription/{self.name}",
            [HandlerFailed(self.name, position, words, self._halts)],
            actor=f"subscription:{self.name}",
            key=f"failed-{position}",
            cause=position,
        )

    async def _do(self, action: Callable[..., T], *arguments: object) -> T:
        return await asyncio.to_thread(action, *arguments) if self._offload else action(*arguments)

    async def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := deadline - time.monotonic()) > 0:
            self._woken.clear()
            await self._wait(left)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds)


def _page(records: Iterator[Record]) -> list[Record]:
    return list(itertools.islice(records, PAGE))
