"""What is done when a sandbox runs short of memory, before the kernel ends something in it.

It is frozen and its workspace is recorded (an *emergency checkpoint*). Then it is given more by itself, up to the
ceiling and within the budget; or somebody is asked, by an event, and answers (`extend-limits`, `deny-extension`);
silence is a no. After a no it goes on with what it has, and the kernel may end what wants more; or it is stopped.

Every step is an event, and `advance` does whichever comes next by what the log says: so any process goes on where
another ended. One at a time does, for each task.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.projections import Extension, StateView, TaskState, Use, registry
from sandkeep.projections import resources as uses
from sandkeep.sandboxes import admission, cgroup, decider, intent, ledger, limits, memory, resources
from sandkeep.sandboxes.cgroup import Sample
from sandkeep.sandboxes.clock import BootTime, boot_clock
from sandkeep.sandboxes.errors import BudgetExhausted, ExtensionNotFound
from sandkeep.sandboxes.ledger import Amount, Ledger, Promise
from sandkeep.sandboxes.limits import Relief
from sandkeep.sandboxes.quantity import show_size

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_MIB = 1 << 20
_MOST_WORDS = 500
_logger = logging.getLogger(__name__)


def request(use: Use, sample: Sample, relief: Relief, now: BootTime) -> ev.ExtensionRequested | None:
    """What a sandbox that runs short asks for: half as much again; None without a limit."""
    if use.container is None or use.limits is None:
        return None
    limit = use.limits.memory_bytes
    wanted = (limit * 3 // 2 + _MIB - 1) // _MIB * _MIB
    lease = now.lease(int(relief.answer_seconds * 1e9))
    return ev.ExtensionRequested(secrets.token_hex(8), use.container, sample.memory_bytes, limit, wanted, lease)


def advance(keep: Keep, task_id: str, relief: Relief) -> list[str]:
    """Do all that can be done now for a sandbox that runs short of memory, and tell what, a line each."""
    done: list[str] = []
    if resources.of(keep, task_id).extension is None:
        return done
    folder = keep.path / "run" / "extensions"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with intent.exclusive(folder / task_id):
        while (extension := (use := resources.of(keep, task_id)).extension) is not None:
            if use.container != extension.container:
                done.append(_end(keep, use, extension, "stopped" if extension.stop else "gone"))
            elif not extension.prepared:
                done.append(_prepare(keep, use, extension))
            elif extension.open:
                if (said := _answer(keep, use, extension, relief)) is None:
                    break
                done.append(said)
            else:
                done.append(_settle(keep, use, extension))
    memory.trail(keep, task_id)
    return done


def answer(keep: Keep, task_id: str, answered: Callable[[Extension], Event]) -> Extension:
    """Store somebody's answer, and act on it; returns what was answered.

    Raises `ExtensionNotFound` if nothing waits for one, and `BudgetExhausted` for more than there is.
    """
    most = admission.budget(keep, limits.load(keep.path).budget)
    found: list[Extension] = []
    before = resources.of(keep, task_id)
    if before.extension is not None and before.extension.open:
        given = answered(before.extension)
        if isinstance(given, ev.ExtensionGranted):
            _afford(keep, before, given.memory_bytes)

    def decide(state: StateView) -> list[Event]:
        use = uses.find(state, task_id) or Use(task_id)
        extension = use.extension
        if extension is None or not extension.open:
            raise ExtensionNotFound(
                f"the sandbox of task {task_id} waits for no more memory; 'sandkeep set-limits {task_id} --memory SIZE'"
                " gives it more at any time"
            )
        event = answered(extension)
        if isinstance(event, ev.ExtensionGranted):
            admission.check(keep, state, task_id, _needed(use, event.memory_bytes).memory_bytes, most)
        found[:] = [extension]
        return [event]

    keep.log.decide(registry.STREAM + task_id, decide, actor=keep.actor)
    advance(keep, task_id, limits.load(keep.path).relief)
    return found[0]


def _prepare(keep: Keep, use: Use, extension: Extension) -> str:
    """Freeze the sandbox and record its workspace, whatever of both can be had."""
    engine, frozen, problem, checkpoint = keep.engine, True, "", None
    try:
        if engine.status(extension.container) != "paused":
            engine.pause(extension.container)
    except SandkeepError as error:
        # What the kernel holds at the limit cannot be frozen; nor does it go on.
        frozen, problem = False, str(error)[:_MOST_WORDS]
    try:
        checkpoint = keep.task(use.task).checkpoint(f"emergency {extension.id}").id
    except (SandkeepError, OSError) as error:
        problem = str(error)[:_MOST_WORDS]
    _store(keep, use, extension, ev.ExtensionPrepared(extension.id, frozen, checkpoint, problem))
    return f"task {use.task}: it stands still, recorded as checkpoint {checkpoint}"


def _answer(keep: Keep, use: Use, extension: Extension, relief: Relief) -> str | None:
    """What policy and time say; None while somebody may still answer."""
    why = "it is at its ceiling"
    more = min(extension.wanted_bytes, relief.memory_max)
    if more > extension.limit_bytes:
        most = admission.budget(keep, limits.load(keep.path).budget)
        try:
            _afford(keep, use, more)
            _store(keep, use, extension, ev.ExtensionGranted(extension.id, more, "within its ceiling"), most)
            return f"task {use.task}: it is given {show_size(more)} of memory"
        except BudgetExhausted as error:
            why = str(error)[:_MOST_WORDS]
    if relief.ask and not boot_clock()().over(extension.answer_by):
        return None
    why = "nobody answered in time" if relief.ask else why
    _store(keep, use, extension, ev.ExtensionDenied(extension.id, relief.stop, why))
    return f"task {use.task}: it is given no more memory: {why}"


def _needed(use: Use, memory: int) -> Amount:
    """What a sandbox is promised that is to have so much memory."""
    return ledger.amount(msgspec.structs.replace(use.limits or limits.LIMITS, memory_bytes=memory))


def _afford(keep: Keep, use: Use, memory: int) -> None:
    """See that the machine has so much for it now, with `BudgetExhausted` if not; it is reserved when it is given."""
    Ledger(keep.engine).check(Promise(keep.id, use.task, _needed(use, memory)))


def _settle(keep: Keep, use: Use, extension: Extension) -> str:
    """Act on an answer, and let the sandbox go on."""
    outcome = "resumed"
    if extension.granted is not None and use.limits is not None:
        try:
            if use.limits.memory_bytes < extension.granted:
                wanted = msgspec.structs.replace(use.limits, memory_bytes=extension.granted)
                resources.change(keep, use.task, wanted, f"extension {extension.id}")
            outcome = "extended"
        except SandkeepError as error:
            _logger.warning("the sandbox of task %s was not given more memory: %s", use.task, error)
    elif extension.stop:
        with keep.working(use.task):
            keep.engine.remove(extension.container)
            removed = ev.SandboxRemoved(extension.container)
            keep.decide(use.task, partial(decider.lose, event=removed))
        return f"task {use.task}: its sandbox is stopped"
    if outcome == "resumed":
        container = extension.container
        group = cgroup.find(container, lambda: keep.engine.init_pid(container))
        if group is not None:
            cgroup.guard(group, on=False)
    if keep.engine.status(extension.container) == "paused" and keep.task(use.task).state.state is not TaskState.PAUSED:
        keep.engine.unpause(extension.container)
    return _end(keep, use, extension, outcome)


def _end(keep: Keep, use: Use, extension: Extension, outcome: str) -> str:
    _store(keep, use, extension, ev.ExtensionEnded(extension.id, outcome))
    return f"task {use.task}: its sandbox is {outcome}"


def _store(keep: Keep, use: Use, extension: Extension, event: Event, most: int | None = None) -> None:
    """Store what comes next, unless that has come already; within the budget `most`, if it is given."""

    def decide(state: StateView) -> list[Event]:
        now = uses.find(state, use.task)
        if now is None or now.extension != extension:
            return []
        if most is not None and isinstance(event, ev.ExtensionGranted):
            admission.check(keep, state, use.task, _needed(now, event.memory_bytes).memory_bytes, most)
        return [event]

    keep.log.decide(registry.STREAM + use.task, decide, actor=keep.actor)
