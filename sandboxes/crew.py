"""Work that begets work, done by several threads: whoever has plenty hands some to whoever has none.

It pays where most of the time is the kernel's, which threads spend side by side. A small piece of work never leaves the
thread that asked for it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, final

_Job = TypeVar("_Job")

SIZE = 2
"""How many threads work on one thing at most."""


class Abandoned(Exception):
    """Another thread has failed, so the rest of the work is of no use."""


@final
class Crew(Generic[_Job]):
    """Does jobs by calling `work`, which asks `wants` from time to time, and may hand on a job then with `give`.

    Nothing is handed on as long as the work is small enough to be done `alone`. A job that is handed on and not done is
    given to `drop`.
    """

    def __init__(self, work: Callable[[_Job], None], drop: Callable[[_Job], None], alone: Callable[[], bool]) -> None:
        self._work = work
        self._drop = drop
        self._alone = alone
        self._jobs: list[_Job] = []
        self._others: list[threading.Thread] = []
        self._idle = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def run(self, job: _Job) -> None:
        """Do a job and all that comes of it. Raises what `work` first raised, in whatever thread."""
        try:
            self._do(job)
            with self._changed:
                self._help()
        except BaseException as error:  # noqa: BLE001 - it is raised below, once the others have ended
            self._fail(error)
        finally:
            for other in self._others:
                other.join()
            for left in self._jobs:
                self._drop(left)
            self._others, self._jobs, self._idle = [], [], 0
        if self._error is not None:
            raise self._error

    def wants(self) -> bool:
        """Whether another thread would take a job now. Raises `Abandoned`."""
        if self._error is not None:
            raise Abandoned
        if self._idle > len(self._jobs):
            return True
        return len(self._others) < SIZE - 1 and not self._alone()

    def give(self, job: _Job) -> None:
        """Let another thread do a job."""
        with self._changed:
            self._jobs.append(job)
            if self._idle < len(self._jobs) and len(self._others) < SIZE - 1:
                self._others.append(threading.Thread(target=self._other))
                self._others[-1].start()
            self._changed.notify()

    def _other(self) -> None:
        with self._changed:
            self._help()

    def _help(self) -> None:
        """Do jobs until there can be none any more. The condition is held."""
        while True:
            self._idle += 1
            while not self._jobs and self._idle <= len(self._others) and self._error is None:
                self._changed.wait()
            if not self._jobs or self._error is not None:
                self._changed.notify_all()  # all are idle, or it is over
                return
            self._idle -= 1
            job = self._jobs.pop()
            self._changed.release()
            try:
                self._do(job)
            finally:
                self._changed.acquire()

    def _do(self, job: _Job) -> None:
        try:
            with contextlib.suppress(Abandoned):
                self._work(job)
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
