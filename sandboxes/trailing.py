"""Memory folders brought up to date beside the work, so that no command waits for the pages that tell of it.

The pages follow the log by some milliseconds then. Whoever must see them whole waits: the task's next command, which
can read them in its sandbox, and the end of the keep. What is not written when a process is killed is written by the
next to do something in the task, as ever (see `memory`).

Concurrency. For any number of threads; one of its own writes, and what comes for a task that waits already is one.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, final

from sandkeep.sandboxes import memory

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


@final
class Trailing:
    """The memory folders of a keep that are behind the log."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._lock = RLock()
        self._last: dict[str, Future[None]] = {}
        self._writer = ThreadPoolExecutor(1, "sandkeep-memory")

    def soon(self, task: str) -> None:
        """Bring the memory folder of a task up to date, without waiting for it."""
        with self._lock:
            last = self._last.get(task)
            if last is None or last.running() or last.done():  # it may have read the log already
                self._last[task] = self._writer.submit(memory.trail, self._keep, task)
                self._last[task].add_done_callback(partial(self._forget, task))

    def wait(self, task: str) -> None:
        """Wait until what was asked for before is done."""
        with self._lock:
            last = self._last.get(task)
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for all; nothing can be asked for any more. Safe to call twice."""
        self._writer.shutdown()

    def _forget(self, task: str, done: Future[None]) -> None:
        with self._lock:
            if self._last.get(task) is done:
                del self._last[task]
