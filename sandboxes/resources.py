"""What a task's sandbox may use: its limits, what they were set to, and what it is given when it starts.

Limits are those that the task was given, or else what `keep.toml` says when its sandbox starts. To change those of a
live sandbox is *decide, effect, outcome*; the memory that it may get is promised with the decision (see `admission`).
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import Event, SandkeepError, late
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Limits
from sandkeep.projections import StateView, Use, registry
from sandkeep.projections import resources as uses
from sandkeep.sandboxes import adapting, decider, disk, intent, limits, outcome
from sandkeep.sandboxes.errors import (
    BudgetExhausted,
    DiskFull,
    EngineFailed,
    EngineUnreachable,
    ExtensionOpen,
    SandboxGone,
)
from sandkeep.sandboxes.quantity import show_size

if TYPE_CHECKING:
    from sandkeep.sandboxes import admission, ledger
    from sandkeep.sandboxes.admission import Turn
    from sandkeep.sandboxes.keep import Keep
else:  # which ask the engine
    globals().update(late.bound("sandkeep.sandboxes", "admission ledger"))

_MOST_WORDS = 2000


def of(keep: Keep, task_id: str) -> Use:
    """The resources of a task, as they are at the head."""
    with keep.projections.reading() as state:
        return uses.find(state, task_id) or Use(task_id)


def chosen(keep: Keep, asked: Mapping[str, object], image: str) -> Limits | None:
    """The limits that a new task is given: those in `keep.toml` with what is `asked` for, None if that is nothing.

    Raises `BadLimits` and `BadSettings`.
    """
    return limits.chosen(asked, limits.load(keep.path).of(image))


def default(keep: Keep, task_id: str) -> Limits:
    """What a task's sandbox may use unless the task was given limits of its own. Raises `BadSettings`."""
    with keep.projections.reading() as state:
        task = registry.find(state, task_id)
    return limits.load(keep.path).of("" if task is None else task.image)


def allot(keep: Keep, task: registry.Task, image_id: str, made: str, turn: Turn) -> Limits | None:
    """Store the intent `made` to start the task's sandbox, and return what it may use; None if it has to wait for room.

    Raises `BudgetExhausted`, `BadSettings`, and what `decider.begin` raises.
    """
    settings = limits.load(keep.path)
    use = of(keep, task.id)
    wanted = use.asked
    if wanted is None:
        wanted = settings.of(task.image)
        if settings.adapting.on:
            most = wanted.memory_bytes
            with keep.projections.reading() as state:
                suggested = adapting.suggest(state, image_id, task.tags, most, settings.adapting, use.memory_bytes)
            wanted = msgspec.structs.replace(wanted, memory_bytes=suggested)
    wanted = keep.engine.fit(wanted)
    request = ev.SandboxRequested(made, image_id, wanted, task.tags)
    return wanted if turn.begin(request, settings.budget) else None


def admit(keep: Keep, task_id: str) -> Limits:
    """What a command of the task may use. Raises `ExtensionOpen` and `DiskFull` if none may begin now."""
    use = of(keep, task_id)
    if use.extension is not None and use.extension.container == use.container:
        raise ExtensionOpen(
            f"the sandbox of task {task_id} stands still, since it needs {show_size(use.extension.wanted_bytes)} of"
            f" memory; say 'sandkeep extend-limits {task_id} --memory SIZE' or 'sandkeep deny-extension {task_id}'"
        )
    found = use.limits or use.asked or default(keep, task_id)
    if _over(use):
        # Somebody may have made room since it was measured.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            disk.look(keep, use)
        if _over(of(keep, task_id)):
            raise DiskFull(
                f"the workspace of task {task_id} takes more than {show_size(found.disk_bytes)}; restore a checkpoint,"
                f" remove files on the host, or say 'sandkeep set-limits {task_id} --disk SIZE'"
            )
    return found


def _over(use: Use) -> bool:
    near = use.neared("disk")
    return near is not None and near.percent >= disk.LEVELS[-1]


def complete(keep: Keep, task_id: str, made: str) -> str:
    """Complete the change with the intent `made`, which was cut off, unless another came after it.

    It is not taken back: a sandbox that uses more by now cannot be given less.
    """
    use = of(keep, task_id)
    if use.change == made and use.changing is not None:
        with contextlib.suppress(EngineFailed, SandboxGone):
            try:
                with _reserved(keep, task_id, use.changing):
                    _apply(keep, task_id, made, use.container, use.changing)
            except BudgetExhausted as error:  # others came before it
                outcome.settle(keep, task_id, ev.LimitsFailed(made, error.code, str(error)[:_MOST_WORDS]))
    else:
        outcome.settle(keep, task_id, ev.LimitsFailed(made, "interrupted", "another change came after it"))
    return f"task {task_id}: a change of its limits was interrupted"


def change(keep: Keep, task_id: str, wanted: Limits, reason: str, fence: int | None = None) -> None:
    """Make these the task's limits, and those of its sandbox. Raises as `TaskResources.set` does."""
    most = admission.budget(keep, limits.load(keep.path).budget)
    with keep.working(task_id), intent.held(keep.intents) as made:
        container = of(keep, task_id).container
        request = ev.LimitsRequested(made, wanted, container, reason)
        promise = partial(_promise, keep, task_id, request, most)
        with _reserved(keep, task_id, wanted):
            keep.locking.act_on(task_id, promise, fence)
            _apply(keep, task_id, made, container, wanted)


def _reserved(keep: Keep, task_id: str, wanted: Limits) -> contextlib.AbstractContextManager[None]:
    """What a sandbox that lives is given more of counts on the machine until the engine knows; see `ledger`."""
    use = of(keep, task_id)
    if use.container is None or use.limits is None or not ledger.amount(wanted).exceeds(ledger.amount(use.limits)):
        return contextlib.nullcontext()
    return admission.reserved(keep, task_id, ledger.amount(wanted))


def _apply(keep: Keep, task_id: str, made: str, container: str | None, wanted: Limits) -> None:
    try:
        if container is not None:
            keep.engine.limit(container, wanted)
    except EngineUnreachable:
        raise  # nobody knows what holds; the change is completed when the engine is back
    except SandkeepError as error:
        outcome.settle(keep, task_id, ev.LimitsFailed(made, error.code, str(error)[:_MOST_WORDS]))
        raise
    outcome.settle(keep, task_id, ev.LimitsSet(made))


def _promise(keep: Keep, task_id: str, request: ev.LimitsRequested, most: int, state: StateView) -> list[Event]:
    use = uses.find(state, task_id) or Use(task_id)
    needed = request.limits.memory_bytes + request.limits.swap_bytes
    if needed > use.promised > 0:
        admission.check(keep, state, task_id, needed, most)
    return decider.limit(registry.find(state, task_id), request)
