"""The library for asyncio: `AsyncKeep`, and the tasks, commands and locks that it gives.

Each call is done by a thread, with the signature and the errors of the method that it is named after, while the event
loop goes on; what it calls back, like `on_output` and `progress`, is called on that thread. Calls that may wait long
(commands, locks) have threads of their own, so that what ends or releases something never waits behind them: at most
`THREADS`, behind which others queue.

Cancelling. A call that has not begun never does. One that has is waited for, so that nothing goes on behind the back of
who cancelled it: a command is ended with all that it started, who waits for a lock leaves the queue, and what else was
begun comes to its end. Then `CancelledError` goes on its way. That is what makes `asyncio.timeout` right here.

An `AsyncKeep` belongs to one event loop. What it does not offer, `sync` has: the object that is wrapped, for `call`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, final, overload

from sandkeep.events import Record
from sandkeep.projections import registry
from sandkeep.sandboxes.background import Running
from sandkeep.sandboxes.execution import Result
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.locks import Held
from sandkeep.sandboxes.task import Task

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

THREADS = 32
"""How many calls that may wait long are under way at a time."""

_QUICK_THREADS = 8
_PAGE = 256
_POLL_SECONDS = 1.0


@final
class _Threads:
    """The threads of one keep."""

    def __init__(self, most: int) -> None:
        self._quick = ThreadPoolExecutor(_QUICK_THREADS, "sandkeep-call")
        self._long = ThreadPoolExecutor(most, "sandkeep-wait")
        self._stops: set[threading.Event] = set()
        self.session = secrets.token_hex(8)
        self.keep: Keep

    async def run(self, work: Callable[[], T], stop: threading.Event | None = None) -> T:
        """What `work` returns. It may wait long if there is a `stop`, which ends it once it is set."""
        threads = self._quick if stop is None else self._long
        future = threads.submit(contextvars.copy_context().run, work)
        done = asyncio.wrap_future(future)
        if stop is not None:
            self._stops.add(stop)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not future.cancel():
                if stop is not None:
                    stop.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await _ended(done)
                done.exception()  # nobody else will ask
            raise
        finally:
            if stop is not None:
                self._stops.discard(stop)

    def close(self) -> None:
        """Stop what waits, and return when all has ended."""
        for stop in list(self._stops):
            stop.set()
        self._long.shutdown()
        self._quick.shutdown()


async def _ended(future: asyncio.Future[Any]) -> None:
    """Wait until it has ended, also if this is cancelled meanwhile, which is told then."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


class _Wrapped(Generic[T]):
    def __init__(self, threads: _Threads, sync: T) -> None:
        self._threads = threads
        self.sync = sync
        """What this stands for, whose methods wait."""


@final
class _Called(Generic[P, T, R]):
    """A method of what is wrapped, done by a thread; what it returns goes through `made` there."""

    def __init__(
        self, method: Callable[Concatenate[Any, P], T], made: Callable[[_Threads, T], R], *, stops: bool = False
    ) -> None:
        self._method = method
        self._made = made
        self._stops = stops
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: _Wrapped[Any], kind: type) -> Callable[P, Coroutine[Any, Any, R]]: ...

    def __get__(self, owner: _Wrapped[Any] | None, kind: type) -> Self | Callable[P, Coroutine[Any, Any, R]]:
        if owner is None:
            return self
        made, threads = self._made, owner._threads
        # As its own class has it: a task that acts in a workspace of its own does some of it otherwise.
        method: Callable[P, T] = getattr(owner.sync, self._method.__name__)

        @functools.wraps(method)
        async def call(*args: P.args, **options: P.kwargs) -> R:
            stop: threading.Event | None = None
            if self._stops:
                given = options.get("stop")
                options["stop"] = stop = given if isinstance(given, threading.Event) else threading.Event()
            return await threads.run(lambda: made(threads, method(*args, **options)), stop)

        return call


def _called(method: Callable[Concatenate[Any, P], T], *, stops: bool = False) -> _Called[P, T, T]:
    return _Called(method, lambda threads, found: found, stops=stops)


def _listed(method: Callable[Concatenate[Any, P], Iterable[T]]) -> _Called[P, Iterable[T], list[T]]:
    return _Called(method, lambda threads, found: list(found))


@final
class AsyncRunning(_Wrapped[Running]):
    """A command in the background; see `Running`."""

    output = _called(Running.output)
    stop = _called(Running.stop)

    @property
    def id(self) -> str:
        """The command's id."""
        return self.sync.id

    async def wait(self) -> Result:
        """Wait until it has ended, and return what it did. Who is cancelled waits no more, and it runs on."""
        found = None
        while found is None:
            found = await self._threads.run(partial(self.sync.wait, _POLL_SECONDS), threading.Event())
        return found


@final
class AsyncHeld(_Wrapped[Held]):
    """A lock that is held, for an `async with` that releases it; see `Held`."""

    renew = _called(Held.renew)
    release = _called(Held.release)

    @property
    def token(self) -> int:
        """The fencing token."""
        return self.sync.token

    async def task(self) -> AsyncTask:
        """The task, acting under the fencing token; see `Held.task`."""
        return AsyncTask(self._threads, await self._threads.run(lambda: self.sync.task))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._threads.run(partial(self.sync.__exit__, kind, error, trace))


@final
class AsyncTask(_Wrapped[Task]):
    """A task of an open keep; see `Task`. Cancelling `execute` ends the command with all that it started."""

    execute = _called(Task.execute, stops=True)
    start = _Called(Task.start, AsyncRunning)
    running = _Called(Task.running, lambda threads, found: [AsyncRunning(threads, each) for each in found])
    start_sandbox = _called(Task.start_sandbox)
    checkpoint = _called(Task.checkpoint)
    checkpoints = _called(Task.checkpoints)
    restore_checkpoint = _called(Task.restore_checkpoint)
    diff = _called(Task.diff)
    history = _listed(Task.history)
    executions = _listed(Task.executions)
    execution = _called(Task.execution)
    decisions = _listed(Task.decisions)
    record_decision = _called(Task.record_decision)
    stats = _called(Task.stats)
    tag = _called(Task.tag)
    pause = _called(Task.pause)
    resume = _called(Task.resume)
    stop = _called(Task.stop)
    complete = _called(Task.complete)
    fail = _called(Task.fail)
    reopen = _called(Task.reopen)
    clean_up = _called(Task.clean_up)

    @property
    def id(self) -> str:
        """The task's id."""
        return self.sync.id

    async def state(self) -> registry.Task:
        """What is true of the task; see `Task.state`."""
        return await self._threads.run(lambda: self.sync.state)

    async def lock(
        self,
        mode: str = "exclusive",
        *,
        timeout: float | None = None,
        lease: float = 60.0,
        agent: str | None = None,
        session: str | None = None,
    ) -> AsyncHeld:
        """Hold the task's lock until it is released; see `LockManager.acquire`. Who waits is the asyncio task, unless
        `session` says otherwise: threads pass from one to the other."""
        if session is None:
            session = f"{self._threads.session}-{id(asyncio.current_task()):x}"
        stop, given = threading.Event(), list[Held]()
        acquire = partial(self._threads.keep.locking.acquire, self.id, mode=mode, timeout=timeout, lease=lease)

        def wait() -> Held:
            given.append(acquire(agent=agent, session=session, stop=stop))
            return given[0]

        try:
            return AsyncHeld(self._threads, await self._threads.run(wait, stop))
        except asyncio.CancelledError:
            for held in given:  # it was granted at the same moment
                await asyncio.shield(self._threads.run(held.release))
            raise


@final
class AsyncKeep(_Wrapped[Keep]):
    """An open keep; see `Keep`. For `async with await AsyncKeep.open(PATH)`, which closes it."""

    create_task = _Called(Keep.create_task, AsyncTask)
    fork_task = _Called(Keep.fork_task, AsyncTask)
    task = _Called(Keep.task, AsyncTask)
    tasks = _called(Keep.tasks)
    changes = _called(Keep.changes)
    locks = _called(Keep.locks)
    conflicts_of = _called(Keep.conflicts_of)
    head = _called(Keep.head)
    replay = _called(Keep.replay)
    verify = _called(Keep.verify)
    publish_checkpoint = _called(Keep.publish_checkpoint)
    export_audit = _called(Keep.export_audit)
    collect_garbage = _called(Keep.collect_garbage)
    reconcile = _called(Keep.reconcile)

    @classmethod
    async def init(
        cls, path: str | os.PathLike[str] = ".sandkeep", *, actor: str | None = None, threads: int = THREADS
    ) -> AsyncKeep:
        """Make a keep and open it; see `Keep.init`."""
        return await cls._opened(partial(Keep.init, path, actor=actor), threads)

    @classmethod
    async def open(
        cls, path: str | os.PathLike[str] = ".sandkeep", *, actor: str | None = None, threads: int = THREADS
    ) -> AsyncKeep:
        """Open a keep; see `Keep.open`."""
        return await cls._opened(partial(Keep.open, path, actor=actor), threads)

    @classmethod
    async def _opened(cls, opening: Callable[[], Keep], most: int) -> AsyncKeep:
        threads = _Threads(most)

        def opened() -> Keep:
            threads.keep = opening()
            return threads.keep

        try:
            return cls(threads, await threads.run(opened))
        except BaseException:
            threads.close()
            if hasattr(threads, "keep"):  # whoever wanted it was cancelled meanwhile
                threads.keep.close()
            raise

    async def call(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What a function returns that a thread calls: any of `sync`, say, or of what that gives."""
        return await self._threads.run(partial(function, *args, **options))

    async def events(self, after: int = 0, *, follow: bool = False) -> AsyncGenerator[Record, None]:
        """The records behind position `after`, verified, and then, to `follow`, those that are committed, by whatever
        process. They are read a page at a time, when they are asked for: who is slow holds nobody up, costs no memory
        and misses nothing."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(woken.set)

        unlisten = await self.call(self.sync.log.listen, wake) if follow else None
        try:
            while True:
                woken.clear()
                page = await self.call(self._page, after)
                for record in page:
                    after = record.position
                    yield record
                if not page:
                    if unlisten is None:
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(woken.wait(), _POLL_SECONDS)
        finally:
            if unlisten is not None:
                unlisten()

    def _page(self, after: int) -> list[Record]:
        return list(itertools.islice(self.sync.events(after), _PAGE))

    async def close(self) -> None:
        """End the commands that run for this, wait for all calls, and close the keep. Safe to call twice."""
        closing = asyncio.ensure_future(asyncio.to_thread(self._close))
        await _ended(closing)
        closing.result()

    def _close(self) -> None:
        self._threads.close()
        self.sync.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
