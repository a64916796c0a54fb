"""Who may start a sandbox: all that live may be promised no more than the keep's budget, and than the machine's.

The keep's is decided inside the log's transaction, on the projection at the head; the machine's, over all keeps, is
reserved in the `ledger` until the engine knows of the sandbox. So no two processes promise the same memory.

Who has to wait takes a *ticket* (see `ticket`) among those of its keep, in `run/admission`. Whoever is first there, and
within the keep's budget, takes one among those of all keeps; so keeps take turns, however many wait in each, and a
large sandbox is not starved by small ones that come later. Nothing else is held meanwhile: the task can be looked at,
stopped, paused and ended, and the latter two end the wait.

Waiting is woken by every commit in the keep, and looks four times a second without one, more often to begin with, since
a ticket that is given back is none, and other keeps tell nobody.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, final

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import StateView, TaskState, registry, resources
from sandkeep.sandboxes import decider, limits, slot, ticket
from sandkeep.sandboxes.errors import BudgetExhausted, TaskRefused
from sandkeep.sandboxes.ledger import Amount, Ledger, Promise, TooMuch, amount
from sandkeep.sandboxes.limits import Budget
from sandkeep.sandboxes.quantity import show_size

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_LOOK_SECONDS, _SOON_SECONDS = 0.25, 0.01
_SILENT_SECONDS = 0.5
_COUNT_SECONDS = 0.5  # to ask the engine again
_SHOWN = 5
_WAITS_SECONDS = 1.0  # who is served at once has a ticket too, for a moment
_QUEUE = "admission"


def budget(keep: Keep, setting: Budget) -> int:
    """What all live sandboxes of the keep may be promised together: as set, or what all of the machine may."""
    return Ledger(keep.engine).most().memory_bytes if setting.memory is None else setting.memory


def promised(keep: Keep, state: StateView) -> dict[str, int]:
    """The memory that every sandbox of the keep was promised, by the id of its task or slot."""
    found = {each.task: each.promised for each in resources.live(state)}
    for name in slot.names(keep):
        # One that a task has taken is that task's, from when it is promised anything.
        if not found.get(name) and (waiting := slot.find(keep, name)) is not None:
            found[name] = amount(waiting.limits).memory_bytes
    return found


def check(keep: Keep, state: StateView, task_id: str, needed: int, most: int) -> None:
    """Refuse, inside a decision, to promise a task `needed` bytes where all may have `most`, with `BudgetExhausted`."""
    held = promised(keep, state)
    held.pop(task_id, None)
    free = most - sum(held.values())
    if needed <= free:
        return
    if needed > most:
        raise TooMuch(
            f"{show_size(needed)} of memory are more than all sandboxes of the keep may have, {show_size(most)};"
            " give the task less with --memory, or raise 'memory' under [budget] in keep.toml"
        )
    largest = sorted(held.items(), key=lambda each: -each[1])
    names = ", ".join(f"task {task} {show_size(memory)}" for task, memory in largest[:_SHOWN])
    more = f" and {len(largest) - _SHOWN} more" if len(largest) > _SHOWN else ""
    raise BudgetExhausted(
        f"of the {show_size(most)} that all sandboxes may have, {show_size(max(0, free))} are free and"
        f" {show_size(needed)} needed; held by {names}{more}; complete one of them, or try again later"
    )


def reserved(keep: Keep, task_id: str, needed: Amount) -> contextlib.AbstractContextManager[None]:
    """What the task's sandbox is to have counts on the machine until the end of the block; see `Ledger.reserved`."""
    return Ledger(keep.engine).reserved(Promise(keep.id, task_id, needed))


def waiting(keep: Keep) -> bool:
    """Whether somebody waits for room, in this keep or on the whole machine."""
    queues = (keep.path / "run" / _QUEUE, Ledger(keep.engine).queue)
    return any(ticket.waiting(queue, _WAITS_SECONDS) for queue in queues)


@final
class Turn:
    """One attempt to have a task's sandbox started, with its place in the queues; used by one thread.

    `begin` is tried first, by who is `Keep.working` on the task. As long as it is not to be, `wait` is called, by who
    is not. The place is given up when it has begun, and what is reserved by `leave`, or at the end of the block.
    """

    def __init__(self, keep: Keep, task_id: str, *, wait: bool = True) -> None:
        """Without `wait` it is now or never."""
        self._keep = keep
        self._task = task_id
        self._patient = wait
        self._deadline: float | None = None
        self._budget = Budget()
        self._most = 0
        self._limits = limits.LIMITS
        self._refusal: BudgetExhausted | None = None
        self._here, self._there = contextlib.ExitStack(), contextlib.ExitStack()  # our places, in the keep and of all
        self._first: Callable[[], bool] | None = None
        self._first_of_all: Callable[[], bool] | None = None
        self._reservation = contextlib.ExitStack()
        self._reserved: Amount | None = None
        self._again = 0.0

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Give up all: the sandbox has started, or is not going to. Safe to call twice."""
        self._make_way()
        self._go()

    def begin(self, asked: ev.SandboxRequested, setting: Budget) -> bool:
        """Store the intent to start the sandbox if there is room for it and all who came before are served; false if
        one has to wait.

        Raises `BudgetExhausted` if that has taken longer than the setting allows, or can never be, and what
        `decider.begin` and `Ledger.promises` raise.
        """
        if self._deadline is None:
            self._deadline = time.monotonic() + (setting.wait_seconds if self._patient else 0.0)
        self._budget, self._most, self._limits = setting, budget(self._keep, setting), asked.limits
        self._refusal = self._obstacle()
        if self._refusal is None:
            decision = partial(self._decide, asked)
            try:
                self._keep.log.decide(registry.STREAM + self._task, decision, actor=self._keep.actor)
                self._go()
                return True
            except BudgetExhausted as error:
                self._make_way()
                self._refusal = error
        self._judge()
        return False

    def wait(self, told: Callable[[str], None]) -> None:
        """Wait until it is worth trying again, telling what for.

        Raises `BudgetExhausted` when the time is up, and `TaskRefused` if the task is paused or has ended meanwhile.
        """
        assert self._deadline is not None
        begun, silent = time.monotonic(), True
        woken = threading.Event()
        stop = self._keep.log.listen(woken.set)
        try:
            while not self._served() and (refusal := self._obstacle()) is not None:
                self._refusal = refusal
                self._judge()
                now = time.monotonic()
                if silent and now - begun >= _SILENT_SECONDS:
                    silent = False
                    told(f"waiting for room: {refusal}")
                # Those who come at the same time are served within milliseconds of each other.
                pause = min(_LOOK_SECONDS, max(_SOON_SECONDS, (now - begun) / 4))
                woken.wait(max(0.0, min(pause, self._deadline - now)))
                woken.clear()
        finally:
            stop()

    def _judge(self) -> None:
        """Raise what stands in the way if there is no time left, or no use in waiting."""
        assert self._deadline is not None
        if self._refusal is not None and (isinstance(self._refusal, TooMuch) or time.monotonic() >= self._deadline):
            raise self._refusal

    def _served(self) -> bool:
        """Whether another has started the sandbox meanwhile."""
        with self._keep.projections.reading() as state:
            task = registry.find(state, self._task)
        if task is not None and task.state not in (TaskState.CREATED, TaskState.ACTIVE):
            raise TaskRefused(
                f"task {self._task} waited for room for its sandbox, and was {task.state.value} meanwhile; resume or"
                " reopen it, then try again"
            )
        return task is not None and task.container is not None

    def _decide(self, asked: ev.SandboxRequested, state: StateView) -> list[Event]:
        events = decider.begin(registry.find(state, self._task), asked)
        check(self._keep, state, self._task, amount(asked.limits).memory_bytes, self._most)
        return events

    def _obstacle(self) -> BudgetExhausted | None:
        """What stands in the way at this moment; None if nothing does, and then all is reserved."""
        needed = amount(self._limits)
        own = slot.find(self._keep, self._task)
        # Who has a slot has what is promised already, and passes those who wait.
        queued = own is None or own.limits != self._limits
        try:
            if queued and self._first is None:
                self._first = self._here.enter_context(ticket.taken(self._keep.path / "run" / _QUEUE))
            if queued and self._first is not None and not self._first():
                self._make_way()
                return self._others("")
            with self._keep.projections.reading() as state:
                check(self._keep, state, self._task, needed.memory_bytes, self._most)
            if self._reserved == needed:
                return None
            if queued and self._first_of_all is None:
                self._first_of_all = self._there.enter_context(ticket.taken(Ledger(self._keep.engine).queue))
            if queued and self._first_of_all is not None and not self._first_of_all():
                return self._others(" of this machine")
        except BudgetExhausted as error:
            self._make_way()  # for keeps that have room
            return error
        return self._reserve(needed)

    def _reserve(self, needed: Amount) -> BudgetExhausted | None:
        if self._refusal is not None and time.monotonic() < self._again:
            return self._refusal
        self._reservation.close()
        self._reserved = None
        try:
            self._reservation.enter_context(reserved(self._keep, self._task, needed))
        except BudgetExhausted as error:
            self._again = time.monotonic() + _COUNT_SECONDS
            return error
        self._reserved = needed
        self._there.close()
        self._first_of_all = None
        return None

    def _others(self, of: str) -> BudgetExhausted:
        return BudgetExhausted(
            f"others{of} wait for memory before task {self._task}, which waits for {self._budget.wait_seconds:g} s at"
            " most; try again later, or raise 'wait' under [budget] in keep.toml"
        )

    def _make_way(self) -> None:
        """Let other keeps have what there is."""
        self._reservation.close()
        self._reserved = None
        self._there.close()
        self._first_of_all = None

    def _go(self) -> None:
        """Let the next ones have their turn."""
        self._there.close()
        self._here.close()
        self._first = self._first_of_all = None
