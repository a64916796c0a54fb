"""The running steward: what is done for a keep all the time, by one process of all that share it.

Each *duty* is called again and again, a period after it was last done. All are done on one thread, none at the same
time as another, since none is long; but for those that look at whole folders, which have a thread each. A duty that
raises is logged, stands in the lock's file for `doctor` to show, and is tried again after its period. The engine's
event stream only makes the next reconciliation come sooner: it loses events, and ends without a word when the engine
does.

Any number of stewards may be started for a keep; one works (see `incumbent`), the others wait to take over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import SandkeepError, Subscription
from sandkeep.projections import TaskState
from sandkeep.sandboxes import (
    attendance,
    care,
    disk,
    expiry,
    intent,
    leavings,
    memory,
    monitor,
    pool,
    settings,
    steward,
)
from sandkeep.sandboxes.errors import EngineUnreachable
from sandkeep.sandboxes.incumbent import Seat, incumbent

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

GRACE_SECONDS = 60.0
"""How long a file of a command or an intent may be without a process that holds it."""

_logger = logging.getLogger(__name__)
_TAKE_OVER_SECONDS = 1.0
_HINT_SECONDS = 0.5
_AGAIN_SECONDS = 5.0
_JOIN_SECONDS = 10.0


class Duty(msgspec.Struct, frozen=True):
    """Something to be done every `period` seconds. It returns a line for each thing that it did."""

    name: str
    period: float
    act: Callable[[Keep], Iterable[str]]
    apart: bool = False
    """Whether it may take long, and is done on a thread of its own."""


def rest(keep: Keep) -> list[str]:
    """Freeze the sandboxes that have had no command for as long as the keep's settings say."""
    patience = settings.load(keep.path).sandboxes.idle_pause_s
    if not patience:
        return []
    done = []
    for task in steward.housed(keep):
        idle = (time.time_ns() - task.used_ns) / 1e9
        at_rest = task.state is TaskState.ACTIVE and not task.pending and idle > patience
        if at_rest and not task.idle and keep.task(task.id).rest():
            done.append(f"task {task.id}: its sandbox is frozen after {idle:.0f} s without a command")
    return done


def expire(keep: Keep) -> list[str]:
    """End the leases that have run out."""
    return keep.locking.expire()


def sweep(keep: Keep) -> list[str]:
    """Remove the files of intents whose processes were killed, and what is left of tasks that are no more."""
    swept = intent.sweep(keep.intents, GRACE_SECONDS)
    return [*([f"removed {swept} files of processes that were killed"] if swept else []), *leavings.sweep(keep)]


def prune(keep: Keep) -> list[str]:
    """Bring the caches that tasks share to their sizes."""
    return keep.caches.tick()


DUTIES = (
    Duty("reconcile", 30.0, steward.reconcile),
    Duty("locks", 5.0, expire),
    Duty("rest", 5.0, rest),
    Duty("pool", 2.0, pool.fill),
    Duty("monitor", 1.0, monitor.tick),
    Duty("disk", 2.0, disk.tick, apart=True),
    Duty("caches", 2.0, prune, apart=True),
    Duty("checkpoints", 60.0, expiry.tick, apart=True),
    Duty("sessions", 20.0, attendance.tick, apart=True),
    Duty("reserve", 60.0, care.set_aside),
    Duty("archive", 60.0, care.archive, apart=True),
    Duty("scrub", 600.0, care.scrub, apart=True),
    Duty("sweep", 300.0, sweep),
)
"""What every steward does. The memory folders follow the log beside this."""


@final
class Steward:
    """The steward of an open keep, on a thread of its own; a context manager that stops itself."""

    def __init__(
        self, keep: Keep, *, duties: Iterable[Duty] = DUTIES, told: Callable[[str], None] = lambda line: None
    ) -> None:
        """Use `Keep.steward`. `told` is called with a line for everything that is done, and what fails; one at a time,
        though not always on the same thread."""
        self._keep = keep
        self._told = told
        found = tuple(duties)
        self._duties = {duty.name: duty for duty in found if not duty.apart}
        self._apart = tuple(duty for duty in found if duty.apart)
        self._due = dict.fromkeys(self._duties, 0.0)
        self._saying = threading.Lock()
        self._failing: dict[str, str] = {}
        self._seat = Seat(keep.path)
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run_thread, name="sandkeep-steward", daemon=True)
        self._failure: Exception | None = None
        # Not the thread's own end: an interrupt in `Thread.join` makes Python 3.11 take a living thread for ended.
        self._ended = threading.Event()
        self.working = threading.Event()
        """Set while this is the one that works."""

    def start(self) -> None:
        """Run on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End, when the duty that is being done is done. Safe to call twice, and before the keep is closed."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:
            self.join(_JOIN_SECONDS)

    def join(self, timeout: float) -> bool:
        """Wait until it has ended, for a while; true if it has. Raises what it could not go on with."""
        ended = self._ended.wait(timeout)
        if self._failure is not None:
            raise self._failure
        return ended

    def __enter__(self) -> Steward:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def hurry(self) -> None:
        """Let the next reconciliation come at once. May be called from any thread."""
        self._due.update(dict.fromkeys({"reconcile"} & self._due.keys(), 0.0))
        self._woken.set()

    def run(self) -> None:
        """Wait until no other is the steward, be it until `stop`, and leave."""
        if not self._seat.take():
            other = incumbent(self._keep.path)
            self._told(f"process {other.pid if other else 'another'} is the steward; waiting to take over")
            while not self._seat.take():
                if self._stopping.wait(_TAKE_OVER_SECONDS):
                    return
        self._told(f"process {os.getpid()} is the steward")
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(self._follow().stop, _JOIN_SECONDS)
                stack.enter_context(_Hints(self._keep, self.hurry))
                stack.callback(self._await, [self._begin(duty) for duty in self._apart])
                self.working.set()
                while not self._stopping.is_set():
                    self._round()
        finally:
            self.working.clear()
            self._seat.leave()

    def _run_thread(self) -> None:
        try:
            self.run()
        except Exception as error:  # noqa: BLE001 - raised by `join`
            self._failure = error
        finally:
            self._ended.set()

    def _follow(self) -> Subscription:
        """Keep the memory folders up to date. What came before the first steward, others have seen to."""
        after = self._keep.head().position
        trailing = self._keep.subscription("memory", memory.follow(self._keep), after=after, on_failure="go-on")
        try:
            trailing.start()
        except SandkeepError as error:
            self._fail("memory", error)
        return trailing

    def _begin(self, duty: Duty) -> threading.Thread:
        """Do a duty on a thread of its own, until the end."""

        def run() -> None:
            while not self._stopping.is_set():
                self._do(duty)
                self._stopping.wait(duty.period)

        thread = threading.Thread(target=run, name=f"sandkeep-{duty.name}", daemon=True)
        thread.start()
        return thread

    def _await(self, threads: list[threading.Thread]) -> None:
        self._stopping.set()  # also when it is an error that ends us
        for thread in threads:
            thread.join(_JOIN_SECONDS)

    def _round(self) -> None:
        """Do what is due, and wait for the next that will be."""
        self._woken.clear()
        for duty in self._duties.values():
            if self._due[duty.name] <= time.monotonic() and not self._stopping.is_set():
                self._due[duty.name] = time.monotonic() + duty.period
                self._do(duty)
        self._woken.wait(max(0.0, min(self._due.values()) - time.monotonic()))

    def _do(self, duty: Duty) -> None:
        try:
            lines = list(duty.act(self._keep))
        except Exception as error:  # noqa: BLE001 - one duty's failure is no other's, whatever it is
            if not self._over(duty):
                self._fail(duty.name, error)
            return
        if self._over(duty):
            return
        with self._saying:
            for line in lines:
                self._told(line)
            if self._failing.pop(duty.name, None) is not None:
                self._told(f"{duty.name}: works again")
                self._seat.say(self._failing)

    def _over(self, duty: Duty) -> bool:
        """Whether nobody waits for this any more: the keep may be closed by now."""
        return duty.apart and self._stopping.is_set()

    def _fail(self, name: str, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}"
        with self._saying:
            if self._failing.get(name) == words:
                return
            unexpected = not isinstance(error, SandkeepError | OSError)
            _logger.warning("the steward's duty %r fails: %s", name, words, exc_info=unexpected)
            self._told(f"{name}: {words}")
            self._failing[name] = words
            self._seat.say(self._failing)


@final
class _Hints:
    """Calls `hurry` soon after a container of the keep has ended, as far as the engine says so."""

    def __init__(self, keep: Keep, hurry: Callable[[], None]) -> None:
        self._keep = keep
        self._hurry = hurry
        self._stopping = threading.Event()
        self._closing = threading.Lock()
        self._close: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="sandkeep-hints", daemon=True)

    def __enter__(self) -> _Hints:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        with self._closing, contextlib.suppress(OSError):
            self._stopping.set()
            self._close()
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(EngineUnreachable), self._keep.engine.endings(self._keep.id) as endings:
                with self._closing:
                    self._close = endings.close
                    if self._stopping.is_set():
                        return
                for _ in endings:
                    if self._stopping.wait(_HINT_SECONDS):  # several that end together make one hint
                        return
                    self._hurry()
            # It ended without being told to, or never began: the engine is gone, or has been.
            if self._stopping.wait(_AGAIN_SECONDS):
                return
            self._hurry()
