"""The bus: records after their commit, in position order, as RxPY observables.

One dispatcher thread a process reads the log behind its own position, so records of every process arrive, and in the
log's order. A commit of this process wakes it at once; those of others are seen by polling. It is the only producer,
which is what RxPY needs, since its subjects are not thread-safe.

Delivery here is for composition and display: at most once, in memory, from the time of subscription (or, for
`catch_up`, from a position). An exception in a subscriber neither reaches the dispatcher nor disturbs another
subscriber: it is logged and published on `faults`. A slow subscriber of `live` delays the others of this process.
"""

from __future__ import annotations

import logging
import threading
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

_logger = logging.getLogger(__name__)
_JOIN_SECONDS = 5.0


class Fault(msgspec.Struct, frozen=True):
    """An exception that a subscriber raised, and the position of the record it was given."""

    position: int
    error: Exception


class _Subscriber:
    """One observer and how far it has come."""

    def __init__(self, observer: ObserverBase[Record], position: int) -> None:
        self.observer = observer
        self.position = position
        self.ended = threading.Event()


@final
class Bus:
    """Publishes the records of one log. Threads start with the first subscription and end with `close`."""

    def __init__(self, log: EventLog[View], *, poll_seconds: float = 0.05) -> None:
        """`poll_seconds` bounds how late a commit of another process is seen."""
        self._log = log
        self._poll = poll_seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._subscribers: list[_Subscriber] = []
        self._threads: list[threading.Thread] = []
        self._position: int | None = None
        self._failure: SandkeepError | None = None
        self._faults: Subject[Fault] = Subject()
        self._unlisten = log.listen(self._wake.set)

    @property
    def faults(self) -> Observable[Fault]:
        """What subscribers raised. An exception raised by a subscriber of this observable is only logged."""
        return self._faults

    def live(self) -> Observable[Record]:
        """The records committed after each subscription, of all processes, without end until `close`."""
        return self._observable(None)

    def catch_up(self, after: int = 0) -> Observable[Record]:
        """All records behind position `after`, then the live ones, with neither gap nor repeat between them.

        History is read on a thread of the subscription's own, so that it delays nobody.
        """
        return self._observable(after)

    def close(self) -> None:
        """Complete every subscription and end the threads. Safe to call twice."""
        if self._closed.is_set():
            return
        self._unlisten()
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)
        with self._lock:
            subscribers, self._subscribers = self._subscribers, []
        for subscriber in subscribers:
            self._end(subscriber.observer)
        self._end(self._faults)

    def _observable(self, after: int | None) -> Observable[Record]:
        def subscribe(observer: ObserverBase[Record], scheduler: SchedulerBase | None = None) -> DisposableBase:
            return self._subscribe(observer, self._log.head().position if after is None else after)

        return reactivex.create(subscribe)

    def _subscribe(self, observer: ObserverBase[Record], after: int) -> DisposableBase:
        subscriber = _Subscriber(observer, after)
        with self._lock:
            ended = self._closed.is_set() or self._failure is not None
            if not ended:
                self._add(subscriber)
        if ended:
            self._end(observer, self._failure)
            return Disposable()
        return Disposable(lambda: self._unsubscribe(subscriber))

    def _add(self, subscriber: _Subscriber) -> None:
        if self._position is None:
            self._position = self._log.head().position
            self._start("sandkeep-bus", self._dispatch)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if subscriber.position >= self._position:
            self._subscribers.append(subscriber)
        else:
            self._start("sandkeep-catch-up", lambda: self._read_history(subscriber))

    def _start(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _unsubscribe(self, subscriber: _Subscriber) -> None:
        subscriber.ended.set()
        with self._lock:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

    def _dispatch(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(self._poll)
            self._wake.clear()
            assert self._position is not None
            try:
                for record in self._log.read(self._position):
                    if self._closed.is_set():
                        return
                    with self._lock:
                        subscribers = tuple(self._subscribers)
                        self._position = record.position
                    for subscriber in subscribers:
                        self._deliver(subscriber, record)
            except SandkeepError as error:
                self._fail(error)
                return

    def _read_history(self, subscriber: _Subscriber) -> None:
        try:
            while not self._closed.is_set():
                for record in self._log.read(subscriber.position):
                    if self._closed.is_set() or subscriber.ended.is_set():
                        break
                    self._deliver(subscriber, record)
                with self._lock:
                    assert self._position is not None
                    if subscriber.ended.is_set():
                        return
                    if subscriber.position >= self._position and not self._closed.is_set():
                        self._subscribers.append(subscriber)
                        return
            self._end(subscriber.observer)
        except SandkeepError as error:
            self._end(subscriber.observer, error)

    def _deliver(self, subscriber: _Subscriber, record: Record) -> None:
        if record.position <= subscriber.position:
            return
        subscriber.position = record.position
        try:
            subscriber.observer.on_next(record)
        except Exception as error:  # a subscriber is foreign code; whatever it raises is reported
            _logger.exception("a subscriber failed on position %d", record.position)
            self._report(Fault(record.position, error))

    def _report(self, fault: Fault) -> None:
        try:
            self._faults.on_next(fault)
        except Exception:  # as above; there is nobody left to tell but the logger
            _logger.exception("a subscriber of the faults failed on position %d", fault.position)

    def _fail(self, error: SandkeepError) -> None:
        """The log can no longer be read: say so to every subscriber, each of which ends."""
        with self._lock:
            self._failure = error
            subscribers, self._subscribers = self._subscribers, []
        for subscriber in subscribers:
            self._end(subscriber.observer, error)

    def _end(self, observer: ObserverBase[Record] | ObserverBase[Fault], error: SandkeepError | None = None) -> None:
        """Tell `observer` that no more will come, because the bus is closed or for an `error`."""
        try:
            if error is None:
                observer.on_completed()
            else:
                observer.on_error(error)
        except Exception:  # as above; an observer without on_error raises its argument
            _logger.exception("a subscriber could not be told of the end")
