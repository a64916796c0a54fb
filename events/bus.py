"""The bus: records after their commit, in position order, as RxPY observables.

One reader thread a process follows the log and keeps the last `WINDOW` records, at most twice as many, in memory; each
subscription has a thread of its own that walks through them. So records of every process arrive in the log's order,
also when a handler appends; each chain of operators is called by one thread only, which is what RxPY needs; and a slow
subscriber delays nobody and costs no memory. Threads run, and the doorbell is there, only while something subscribes.

Overtaking. A subscriber that has a whole window before it is waited for once, `PATIENCE_SECONDS` at most; then the
window goes on. One of `catch_up` reads what it has not had from the log; one of `live` goes on where the window begins,
and is told in between, on its own thread, what it missed.

Errors. What a subscriber's handler raises is logged and published on `faults`, and it is given the next record. What
an *operator* raises (the function of a `map`, say) ends that chain, as RxPY has it: `on_error` is called, `faults` is
told, and nobody else disturbed. The bus cannot revive it, because the operators' state is lost and because some of
them, like `timeout`, mean to end. Who wants that adds `ops.retry()`: an observable that is subscribed to anew on such
an error goes on behind the record that caused it, and misses nothing. A log that can no longer be read is an
`on_error` for all.

Delivery here is for composition and display: at most once, in memory. What must not be missed is a `Subscription`.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar, final

import msgspec
import reactivex
from reactivex import Observable, Subject
from reactivex.abc import DisposableBase, ObserverBase, SchedulerBase
from reactivex.disposable import Disposable

from sandkeep.events.codec import Record
from sandkeep.events.errors import SandkeepError
from sandkeep.events.log import EventLog

View = TypeVar("View")

WINDOW = 16_384
"""How many records a live subscriber may be behind before it misses some."""

PATIENCE_SECONDS = 0.25
"""How long the window waits for a subscriber that it is about to overtake."""

_logger = logging.getLogger(__name__)
_PAGE = 512
_JOIN_SECONDS = 5.0


class Fault(msgspec.Struct, frozen=True):
    """An exception that a subscriber raised, and the position of the record it was given.

    `ended` says that it came from an operator and has ended that chain.
    """

    position: int
    error: Exception
    ended: bool = False


class Missed(msgspec.Struct, frozen=True):
    """The positions that a live subscriber was not given, because it was too slow."""

    count: int
    first: int
    last: int


Told = Callable[[Missed], None]
"""Called with what was missed."""


@final
class _Subscriber:
    """One observer and how far it has come."""

    def __init__(
        self, observer: ObserverBase[Record], source: object, position: int, missed: Told | None, *, live: bool
    ) -> None:
        self.observer = observer
        self.source = source
        self.position = position
        self.missed = missed
        self.live = live
        self.late = False
        self.ended = False
        self.error: Exception | None = None


@final
class Bus:
    """Publishes the records of one log. `close` ends it."""

    def __init__(self, log: EventLog[View], *, poll_seconds: float = 0.25) -> None:
        """`poll_seconds` bounds how late a commit of another process is seen if its doorbell does not ring here."""
        self._log = log
        self._poll = poll_seconds
        self._pid = os.getpid()
        self._wake = threading.Event()
        self._closed = False
        self._failure: SandkeepError | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        # The records behind position `_base`, while a reader runs; all of this and the above under `_lock`.
        self._base = 0
        self._window: list[Record] = []
        self._reader: threading.Thread | None = None
        self._subscribers: list[_Subscriber] = []
        self._threads: list[threading.Thread] = []
        self._serving = threading.local()
        self._faults: Subject[Fault] = Subject()
        self._reports: deque[Fault] = deque()
        self._reporting = threading.Lock()

    @property
    def faults(self) -> Observable[Fault]:
        """What subscribers raised. An exception raised by a subscriber of this observable is only logged."""
        return self._faults

    def live(self, missed: Told | None = None) -> Observable[Record]:
        """The records committed after each subscription, of all processes, without end until `close`.

        A subscriber that is too slow loses records; `missed` is called between those before and those behind them. If
        it is not given, the loss is logged.
        """
        return self._observable(None, missed)

    def catch_up(self, after: int = 0) -> Observable[Record]:
        """All records behind position `after`, then the live ones, with neither gap nor repeat however slow one is."""
        return self._observable(after, None)

    def close(self) -> None:
        """Complete every subscription and end the threads, waiting a few seconds for handlers. Safe to call twice."""
        if os.getpid() != self._pid:
            return  # in a fork: the threads and locks are our parent's
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            self._room.notify_all()
            threads = [*self._threads, *([self._reader] if self._reader is not None else [])]
        self._wake.set()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._end(self._faults)

    def _observable(self, after: int | None, missed: Told | None) -> Observable[Record]:
        source = object()

        def subscribe(observer: ObserverBase[Record], scheduler: SchedulerBase | None = None) -> DisposableBase:
            failed = self._failed()
            if failed is not None and failed.source is source:
                begin = failed.position + 1
            else:
                begin = self._log.head().position if after is None else after
            return self._subscribe(_Subscriber(observer, source, begin, missed, live=after is None))

        return reactivex.create(subscribe)

    def _subscribe(self, subscriber: _Subscriber) -> DisposableBase:
        with self._lock:
            ended = self._closed or self._failure is not None
            if not ended:
                self._add(subscriber)
        if ended:
            self._end(subscriber.observer, self._failure)
            return Disposable()
        return Disposable(lambda: self._unsubscribe(subscriber))

    def _add(self, subscriber: _Subscriber) -> None:
        if self._reader is None:
            self._base = subscriber.position if subscriber.live else self._log.head().position
            self._window = []
            self._reader = threading.Thread(target=self._follow, name="sandkeep-bus", daemon=True)
            self._reader.start()
        self._subscribers.append(subscriber)
        thread = threading.Thread(target=self._serve, args=(subscriber,), name="sandkeep-subscriber", daemon=True)
        self._threads = [thread, *(each for each in self._threads if each.is_alive())]
        thread.start()

    def _unsubscribe(self, subscriber: _Subscriber) -> None:
        failed = self._failed()
        with self._lock:
            subscriber.ended = True
            if failed is subscriber:
                error = sys.exc_info()[1]
                subscriber.error = error if isinstance(error, Exception) else None
            self._forget(subscriber)

    def _failed(self) -> _Subscriber | None:
        """The subscriber that this thread gave a record to and that raised on it, while that is being dealt with.

        An operator tells its chain of an exception from within its `except`; nothing else tells that from a `dispose`.
        """
        return getattr(self._serving, "subscriber", None) if sys.exc_info()[1] is not None else None

    def _forget(self, subscriber: _Subscriber) -> None:
        """Count it no more. Under the lock."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)
            self._changed.notify_all()
            self._room.notify_all()
            if not self._subscribers:
                self._wake.set()

    # The reader's thread.

    def _follow(self) -> None:
        unlisten = self._log.listen(self._wake.set)
        try:
            while True:
                self._wake.clear()
                records = self._log.read(self._base + len(self._window))
                while page := list(itertools.islice(records, _PAGE)):
                    with self._lock:
                        if self._leaving():
                            return
                        self._window += page
                        self._changed.notify_all()
                        if len(self._window) >= 2 * WINDOW:
                            self._shorten()
                with self._lock:
                    if self._leaving():
                        return
                self._wake.wait(self._poll)
        except SandkeepError as error:
            with self._lock:
                self._failure = error
                self._changed.notify_all()
        finally:
            unlisten()

    def _leaving(self) -> bool:
        """Whether the reader is no longer needed, and then it is gone for all others. Under the lock."""
        if not self._closed and self._subscribers:
            return False
        self._reader, self._window = None, []
        return True

    def _shorten(self) -> None:
        """Let go of the older half of the window, when all have had it or have had their time. Under the lock."""
        begin = self._base + len(self._window) - WINDOW
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._closed:
            behind = [each for each in self._subscribers if each.live and not each.late and each.position < begin]
            left = deadline - time.monotonic()
            if not behind or left <= 0:
                for each in behind:
                    each.late = True
                break
            self._room.wait(left)
        del self._window[:-WINDOW]
        self._base = begin

    # The threads of the subscribers.

    def _serve(self, subscriber: _Subscriber) -> None:
        try:
            while (page := self._next(subscriber)) is not None:
                self._deliver(subscriber, page)
            if not subscriber.ended:
                self._end(subscriber.observer, self._failure)
        except SandkeepError as error:
            self._end(subscriber.observer, error)
        finally:
            with self._lock:
                self._forget(subscriber)

    def _next(self, subscriber: _Subscriber) -> list[Record] | None:
        """What to give it next, waiting for it; None when there will be no more. Raises what reading the log does."""
        with self._lock:
            while not (subscriber.ended or self._closed):
                begin = subscriber.position - self._base
                if begin < 0:
                    break
                if begin < len(self._window):
                    return self._window[begin : begin + _PAGE]
                if self._failure is not None:
                    return None
                subscriber.late = False
                self._room.notify()
                self._changed.wait()
            else:
                return None
            base = self._base
        if subscriber.live:
            missed = Missed(base - subscriber.position, subscriber.position + 1, base)
            subscriber.position = base
            self._tell(subscriber, missed)
            return []
        return list(itertools.islice(self._log.read(subscriber.position), _PAGE))

    def _deliver(self, subscriber: _Subscriber, page: list[Record]) -> None:
        on_next = subscriber.observer.on_next
        self._serving.subscriber = subscriber
        for record in page:
            if subscriber.ended or self._closed:
                return
            try:
                on_next(record)
            except Exception as error:  # a subscriber is foreign code; whatever it raises is reported
                _logger.exception("a subscriber failed on position %d", record.position)
                self._report(Fault(record.position, error, subscriber.ended))
            else:
                if subscriber.error is not None:
                    _logger.error(
                        "an operator failed on position %d, which ended its chain",
                        record.position,
                        exc_info=subscriber.error,
                    )
                    self._report(Fault(record.position, subscriber.error, ended=True))
            subscriber.position = record.position
        self._serving.subscriber = None

    def _tell(self, subscriber: _Subscriber, missed: Missed) -> None:
        if subscriber.missed is None:
            _logger.warning(
                "a subscriber was too slow and missed %d records, %d to %d", missed.count, missed.first, missed.last
            )
            return
        try:
            subscriber.missed(missed)
        except Exception as error:  # as above
            _logger.exception("a subscriber failed on what it missed, up to position %d", missed.last)
            self._report(Fault(missed.last, error))

    def _report(self, fault: Fault) -> None:
        """Publish `fault`. One thread at a time does so, for all: RxPY's subjects are not thread-safe."""
        self._reports.append(fault)
        while self._reports and self._reporting.acquire(blocking=False):
            try:
                while self._reports:
                    fault = self._reports.popleft()
                    try:
                        self._faults.on_next(fault)
                    except Exception:  # as above; there is nobody left to tell but the logger
                        _logger.exception("a subscriber of the faults failed on position %d", fault.position)
            finally:
                self._reporting.release()

    def _end(self, observer: ObserverBase[Record] | ObserverBase[Fault], error: SandkeepError | None = None) -> None:
        """Tell `observer` that no more will come, because the bus is closed or for an `error`."""
        try:
            if error is None:
                observer.on_completed()
            else:
                observer.on_error(error)
        except Exception:  # as above; an observer without on_error raises its argument
            _logger.exception("a subscriber could not be told of the end")
