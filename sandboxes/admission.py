"""Who may start a sandbox: all that live may be promised no more memory than the keep's budget.

The decision is made inside the log's transaction, on the projection at the head, so no two processes promise the same
memory. Who has to wait takes a *ticket*: a numbered file in `run/admission`, locked (`flock`) until its owner is done
or dead. Only the owner of the lowest live ticket is served, so a large sandbox is not starved by small ones that come
later, and a process that dies holds up nobody.

Waiting is woken by every commit in the keep, and looks four times a second without one, since a ticket that is given
back is none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import StateView, registry, resources
from sandkeep.sandboxes import decider, intent
from sandkeep.sandboxes.errors import BudgetExhausted
from sandkeep.sandboxes.limits import Budget
from sandkeep.sandboxes.quantity import show_size

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_LOOK_SECONDS = 0.25
_RESERVE_BYTES, _RESERVE_PART = 1 << 30, 10
_SHOWN = 5


def budget(keep: Keep, setting: Budget) -> int:
    """What all live sandboxes may be promised together: as set, or the machine's memory but a tenth, or 1 GiB."""
    if setting.memory is not None:
        return setting.memory
    memory = keep.engine.machine[1]
    return memory - max(_RESERVE_BYTES, memory // _RESERVE_PART)


def check(state: StateView, task_id: str, needed: int, most: int) -> None:
    """Refuse, inside a decision, to promise a task `needed` bytes where all may have `most`, with `BudgetExhausted`."""
    others = [each for each in resources.live(state) if each.task != task_id]
    promised = sum(each.promised for each in others)
    if promised + needed <= most:
        return
    if needed > most:
        raise BudgetExhausted(
            f"{show_size(needed)} of memory are more than all sandboxes of the keep may have, {show_size(most)};"
            " give the task less with --memory, or raise 'memory' under [budget] in keep.toml"
        )
    largest = sorted(others, key=lambda each: -each.promised)
    names = ", ".join(f"task {each.task} {show_size(each.promised)}" for each in largest[:_SHOWN])
    more = f" and {len(largest) - _SHOWN} more" if len(largest) > _SHOWN else ""
    raise BudgetExhausted(
        f"of the {show_size(most)} that all sandboxes may have, {show_size(most - promised)} are free and"
        f" {show_size(needed)} needed; held by {names}{more}; complete one of them, or try again later"
    )


def admit(keep: Keep, task_id: str, asked: ev.SandboxRequested, setting: Budget) -> None:
    """Store the intent to start a sandbox as soon as its memory can be promised and all who came before are served.

    Raises `BudgetExhausted` when that takes longer than the setting allows, or can never be, and what `decider.begin`
    raises.
    """
    most = budget(keep, setting)
    needed = asked.limits.memory_bytes + asked.limits.swap_bytes
    deadline = time.monotonic() + setting.wait_seconds
    decision = partial(_decide, task_id, asked, needed, most)
    woken, listening = threading.Event(), False
    with _ticket(keep.path / "run" / "admission") as first, contextlib.ExitStack() as stack:
        while True:
            woken.clear()
            late = time.monotonic() >= deadline
            if first():
                try:
                    keep.log.decide(registry.STREAM + task_id, decision, actor=keep.actor)
                    return
                except BudgetExhausted:
                    if late or needed > most:
                        raise
            elif late:
                raise BudgetExhausted(
                    f"others have waited for memory before task {task_id} for {setting.wait_seconds:g} s, and still do;"
                    " try again later, or raise 'wait' under [budget] in keep.toml"
                )
            if not listening:
                listening = True
                stack.callback(keep.log.listen(woken.set))
                continue  # what was stored before we listened woke nobody
            woken.wait(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic())))


def _decide(task_id: str, asked: ev.SandboxRequested, needed: int, most: int, state: StateView) -> list[Event]:
    events = decider.begin(registry.find(state, task_id), asked)
    check(state, task_id, needed, most)
    return events


@contextlib.contextmanager
def _ticket(folder: Path) -> Iterator[Callable[[], bool]]:
    """Take the next number, until the end of the block; gives what tells whether it is the lowest live one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with intent.exclusive(folder / "counter"):
        # Those who hold a number are in the folder; when nobody does, numbers may begin anew.
        number = max((int(path.name) for path in folder.glob("[0-9]*")), default=0) + 1
        path = folder / f"{number:012}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def first() -> bool:
        for other in sorted(folder.glob("[0-9]*")):
            if other.name >= path.name:
                break
            if not intent.abandoned(folder, other.name):
                return False
            other.unlink(missing_ok=True)
        return True

    try:
        yield first
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
