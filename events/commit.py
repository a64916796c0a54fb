"""Group commit: callers that arrive while a commit is under way share the next one.

A commit costs two flushes of the disk, whatever it holds. So requests wait in a queue, and one caller, the leader,
commits all that are there as one frame: its own, and those of other threads and of asyncio callers. Then it wakes them,
and the first that has come meanwhile leads next. A caller alone leads at once, and is not delayed. Each request is
checked for itself inside the transaction, seeing those before it in its group; one that is refused, or whose decider
raises, fails alone and leaves nothing.

Deciders run on the thread that commits, which may be another caller's.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, final

import lmdb

from sandkeep.events.errors import LimitReached, LogDamaged, LogUnavailable, SandkeepError
from sandkeep.events.group import FollowerFailed, FrameFull, Group, Request
from sandkeep.events.journal import Journal
from sandkeep.events.lmdb_layout import Layout
from sandkeep.events.log import Follower, Receipt, View

if TYPE_CHECKING:
    import asyncio

_logger = logging.getLogger(__name__)


@final
class Committer(Generic[View]):
    """The writer of one open log. Used by all its callers."""

    def __init__(
        self,
        layout: Layout,
        follower: Follower[View] | None,
        clock: Callable[[], int],
        committed: Callable[[], None],
        journal: Journal | None,
    ) -> None:
        """`committed` is called after each commit, on the committing thread."""
        self._layout = layout
        self._follower = follower
        self._clock = clock
        self._committed = committed
        self._journal = journal
        self._mutex = threading.Lock()
        self._lock = threading.Lock()
        self._queue: deque[Request[View]] = deque()
        self._led = False
        self._executor = ThreadPoolExecutor(1, "sandkeep-commit")
        self.failure: str | None = None

    def submit(self, request: Request[View]) -> Receipt:
        """Commit `request`, with whatever else waits, and return its receipt or raise its error."""
        request.wake = threading.Lock()
        request.wake.acquire()
        if not self._enqueue(request):
            self._wait(request, request.wake)
        if not request.settled:
            try:
                while not request.settled:
                    self._commit_group()
            except BaseException:  # as in `_wait`
                self._withdraw(request)
                raise
            finally:
                self._pass_on()
        if request.error is not None:
            raise request.error
        assert request.receipt is not None
        return request.receipt

    def submit_async(self, request: Request[View]) -> asyncio.Future[Receipt]:
        """As `submit`, for a caller on an event loop. Cancelling the future does not take the request back."""
        import asyncio  # who calls this has loaded it

        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        request.future = future
        if self._enqueue(request):
            self._drain_elsewhere()
        return future

    def _enqueue(self, request: Request[View]) -> bool:
        """Add to the queue; true if nobody leads, so that the caller has to."""
        with self._lock:
            self._queue.append(request)
            leads = not self._led
            self._led = True
        return leads

    def _wait(self, request: Request[View], wake: threading.Lock) -> None:
        """Until `request` is settled, or its caller is to lead."""
        try:
            wake.acquire()
        except BaseException:  # the caller is interrupted: what it asked for is not done behind its back
            self._withdraw(request)
            if request.leads:
                self._pass_on()
            raise

    def _withdraw(self, request: Request[View]) -> None:
        """Nobody waits for `request` any more, so it is not begun."""
        with self._lock:
            request.withdrawn = True
            if request in self._queue:
                self._queue.remove(request)

    def _pass_on(self) -> None:
        """End this thread's lead: the first thread that waits leads next, or the executor for asyncio callers."""
        with self._lock:
            successor = next((request for request in self._queue if request.wake is not None), None)
            if successor is not None:
                successor.leads = True
            self._led = bool(self._queue)
            left = self._led and successor is None
        if successor is not None and successor.wake is not None:
            successor.wake.release()
        elif left:
            self._drain_elsewhere()

    def _drain_elsewhere(self) -> None:
        try:
            self._executor.submit(self._drain)
        except RuntimeError:  # closed meanwhile, so there is nothing to do but to tell them
            self._drain()

    def _drain(self) -> None:
        """Lead, for asyncio callers."""
        try:
            self._commit_group()
        finally:
            self._pass_on()

    def close(self) -> None:
        """Commit what waits, and refuse what comes. Safe to call twice."""
        with self._mutex:
            self.failure = self.failure or "it was closed"
        self._executor.shutdown()

    def refuse_after_failure(self) -> None:
        """Raise `LogUnavailable` once a write has failed or the log is closed."""
        if self.failure is not None:
            raise LogUnavailable(f"the log is closed: {self.failure}; open the keep again")

    def put(self, database: lmdb._Database | None, key: bytes, value: bytes) -> None:
        """Store `value` durably beside the log's frames, unless something is stored under `key` already.

        Raises `LogUnavailable` and `LimitReached`.
        """
        with self._mutex:
            while True:
                self.refuse_after_failure()
                try:
                    with self._layout.writing() as txn:
                        if self._journal is not None:
                            # A line that was never committed is told by its transaction, which this one takes.
                            head = self._layout.head(txn)
                            self._journal.follow(self._layout, txn, head.position, head.checksum)
                        if txn.put(key, value, db=database, overwrite=False):
                            txn.commit()
                    return
                except lmdb.MapFullError:
                    self._layout.grow()
                except (lmdb.Error, OSError) as error:
                    raise self._failed(error) from error

    def _commit_group(self) -> None:
        """Take what waits, commit it and tell its callers. Only the leader calls this."""
        taken: list[Request[View]] = []
        try:
            with self._mutex:
                self._commit(taken)
        except (LimitReached, LogDamaged, LogUnavailable) as error:
            taken.extend(() if taken else self._waiting())
            _refuse(taken, error)
        except FollowerFailed as failed:
            _refuse(taken, failed.error)
        finally:
            self._tell([request for request in taken if request.settled])
            with self._lock:  # if this thread was interrupted before the commit, another begins anew
                left = [request for request in taken if not (request.settled or request.withdrawn)]
                self._queue.extendleft(reversed(left))

    def _commit(self, taken: list[Request[View]]) -> None:
        """Move requests from the queue to `taken`, write them, and settle each once it is durable."""
        self._refuse_all_after_failure(taken)
        while True:
            try:
                with self._layout.writing() as txn:
                    group = Group(self._layout, self._follower, self._clock(), txn)
                    try:
                        self._fill(group, taken)
                        group.commit(self._committed, self._journal)
                        return
                    except BaseException:
                        group.abort()
                        raise
            except lmdb.MapFullError:
                self._layout.grow()
            except (lmdb.Error, OSError) as error:
                raise self._failed(error) from error

    def _failed(self, error: lmdb.Error | OSError) -> LogUnavailable:
        """Refuse all that comes: after a failed write nobody knows what is on the disk."""
        self.failure = f"a write failed: {error}"
        return LogUnavailable(
            f"the log could not be written ({error}) and is closed; check the disk, then open the keep again"
        )

    def _refuse_all_after_failure(self, taken: list[Request[View]]) -> None:
        """As `refuse_after_failure`, for everyone who waits."""
        if self.failure is not None:
            taken.extend(self._waiting())
            self.refuse_after_failure()

    def _fill(self, group: Group[View], taken: list[Request[View]]) -> None:
        for request in tuple(taken):  # again, after the map has grown
            group.add(request)
        for request in self._waiting():
            taken.append(request)  # before anything can fail: it is in the queue no more
            try:
                group.add(request)
            except FrameFull:
                self._queue.appendleft(taken.pop())
                return

    def _waiting(self) -> Iterator[Request[View]]:
        while self._queue:
            yield self._queue.popleft()

    def _tell(self, settled: Sequence[Request[View]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[Request[View]]] = {}
        for request in settled:
            if request.wake is not None and not request.leads:
                request.wake.release()
            if request.future is not None:
                loops.setdefault(request.future.get_loop(), []).append(request)
        for loop, requests in loops.items():
            try:
                loop.call_soon_threadsafe(_resolve, requests)
            except RuntimeError:
                _logger.warning("an event loop ended before %d of its appends did", len(requests))


def _refuse(taken: Sequence[Request[View]], error: SandkeepError) -> None:
    for request in taken:
        if not request.settled:
            request.settle(error)


def _resolve(requests: Sequence[Request[View]]) -> None:
    """Tell asyncio callers what came of their requests. Runs on their loop."""
    for request in requests:
        future, error = request.future, request.error
        if future is None or future.done():
            continue
        if isinstance(error, StopIteration):  # a future refuses it, because it would end the coroutine that waits
            wrapped = RuntimeError("a decider raised StopIteration")
            wrapped.__cause__ = error
            future.set_exception(wrapped)
        elif error is not None:
            future.set_exception(error)
        elif request.receipt is not None:
            future.set_result(request.receipt)
