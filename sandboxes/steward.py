"""Setting right what a crash left behind: the log, the engine and the disk are brought to agree again.

An intent whose process is gone gets an outcome; what it had begun is undone or ended, and the result of a command that
ran on without it is fetched (see `joined`). A container that the log does not believe in is removed; one that it
believes in and that has ended is recorded as lost, and the next command starts another, or this does if the keep's
settings say so. Leases of locks that have run out are ended. Nothing that a living process works on is touched, and no
other keep's containers.

One process at a time does this for a keep. The running steward (see `duties`) does it all the time; without one, who
does something in a task does it first, if nobody has for a while.
"""

from __future__ import annotations

import contextlib
import re
import time
from functools import partial
from typing import TYPE_CHECKING

from sandkeep.events import SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.projections import Pending, TaskState, registry
from sandkeep.sandboxes import (
    decider,
    egress,
    freezer,
    intent,
    joined,
    merging,
    monitor,
    resources,
    settings,
    sidecar,
    slot,
    system,
)
from sandkeep.sandboxes.engine import Found
from sandkeep.sandboxes.errors import TaskRefused
from sandkeep.sandboxes.incumbent import incumbent
from sandkeep.sandboxes.intent import abandoned
from sandkeep.sandboxes.outcome import INTERRUPTED, settle

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_SPOOLED = re.compile(r"([0-9a-f]{16})\.(?:out|err|note|end|new)")
_STAMP = "reconciled"
ENDED = ("exited", "dead")
"""The engine's words for the state of a container that nothing runs in."""

_SETTLED_AS: dict[str, type[ev.Failure]] = {
    "TaskCreated": ev.WorkspaceFailed,
    "SandboxRequested": ev.SandboxFailed,
    "RestoreRequested": ev.RestoreFailed,
    "MergeRequested": ev.MergeFailed,
    "PauseRequested": ev.PauseFailed,
    "ResumeRequested": ev.ResumeFailed,
    "CleanupRequested": ev.CleanupFailed,
    "SandboxPauseRequested": ev.SandboxPauseFailed,
    "SandboxStopRequested": ev.SandboxStopFailed,
}


def reconcile(keep: Keep, *, wait: bool = False) -> list[str]:
    """Settle everything that was left behind, and tell what was done, a line each. Needs the engine.

    If another does so at this moment it is left to that one, or, with `wait`, done once more when that one is ready.
    """
    path = keep.path / "run" / "reconcile.lock"
    with intent.attempted(path) as mine:
        if mine:
            return _reconcile(keep)
    if not wait:
        return []
    with intent.exclusive(path):
        return _reconcile(keep)


def due(keep: Keep, after_seconds: float) -> bool:
    """Whether nobody has settled things for so long, and no steward runs that does."""
    with contextlib.suppress(FileNotFoundError):
        age = time.time() - (keep.path / "run" / _STAMP).stat().st_mtime
        if 0 <= age < after_seconds:
            return False
    return incumbent(keep.path) is None


def abandoned_work(keep: Keep) -> bool:
    """Whether there is an intent whose process is gone."""
    return any(abandoned(keep.intents, pending.intent) for task in busy(keep) for pending in task.pending)


def busy(keep: Keep) -> list[registry.Task]:
    """The tasks that something is under way in, or was when a process died."""
    with keep.projections.reading() as state:
        return list(registry.busy(state))


def housed(keep: Keep) -> list[registry.Task]:
    """The tasks that the log believes to have a container."""
    with keep.projections.reading() as state:
        return list(registry.housed(state))


def _reconcile(keep: Keep) -> list[str]:
    # Readers do not see what a process was killed in the midst of committing before somebody else begins to write.
    keep.log.decide("keep", lambda state: [], actor=keep.actor)
    # What the log believes is read before the engine is asked, so that what others start meanwhile is not taken for
    # lost.
    done = keep.locking.expire() + keep.images.reconcile() + _release(keep)
    for task in busy(keep):
        done += _settle(keep, task)
    done += merging.finish(keep)
    believed = housed(keep)
    found = {each.container: each for each in keep.engine.containers(keep.id)}
    for task in believed:
        if task.container not in found or found[task.container].status in ENDED:
            done += _lose(keep, task)
    done += system.sweep(keep)
    done += _remove_orphans(keep, [each for each in found.values() if not each.beside])
    done += sidecar.sweep(keep, [each for each in found.values() if each.beside], partial(egress.folder, keep))
    _sweep(keep)
    monitor.release(keep)
    (keep.path / "run" / _STAMP).touch()
    return done + egress.revive(keep)


def _release(keep: Keep) -> list[str]:
    """Let the sandboxes go on that processes held still until they died."""
    done: list[str] = []
    for task in freezer.abandoned(keep):
        with keep.attempting(task) as mine:
            if mine and freezer.release(keep, task):
                done.append(f"task {task}: its sandbox was held still by a process that died, and goes on")
    return done


def _lose(keep: Keep, task: registry.Task) -> list[str]:
    """Record that the task's container has ended; what works on the task meanwhile sees to it by itself."""
    container = str(task.container)
    with keep.attempting(task.id) as mine:
        if not mine or (status := keep.engine.status(container)) not in (None, *ENDED):
            return []
        lost = ev.SandboxLost(container, f"it was found {status or 'removed'}")
        receipt = keep.decide(task.id, partial(decider.lose, event=lost))
        if receipt.last < receipt.first:
            return []  # it has another by now
    done = [f"task {task.id}: its sandbox {container[:12]} is lost"]
    if task.state is TaskState.ACTIVE and settings.load(keep.path).sandboxes.restart == "always":
        try:
            keep.task(task.id).start_sandbox(wait=False)  # the other duties have to go on
            done.append(f"task {task.id}: its sandbox was started again")
        except SandkeepError as error:
            done.append(f"task {task.id}: its sandbox could not be started again: {error}")
    return done


def _settle(keep: Keep, task: registry.Task) -> list[str]:
    done: list[str] = []
    left = {pending.intent for pending in task.pending if abandoned(keep.intents, pending.intent)}
    if not left:
        return done
    # What was done meanwhile has left its intent, too; but then its outcome is known by now.
    task = keep.task(task.id).state
    mine = [pending for pending in task.pending if pending.intent in left]
    for pending in mine:
        with contextlib.suppress(TaskRefused):  # who waits for a command in the background was first
            done += _settled(keep, task, pending, alone=all(other in mine for other in task.pending))
    if any(pending.kind in ("TaskCreated", "CleanupRequested") for pending in mine):
        keep.decide(task.id, partial(decider.give_up, reason=INTERRUPTED[1]))
        keep.task(task.id).abandon()
        done.append(f"task {task.id}: cleaned up")
    return done


def _settled(keep: Keep, task: registry.Task, pending: Pending, *, alone: bool) -> list[str]:
    if pending.kind == "CommandRequested":
        return joined.abandoned(keep, task, pending, alone=alone)
    if pending.kind == "LimitsRequested":
        return [resources.complete(keep, task.id, pending.intent)]
    _undo(keep, task, pending)
    settle(keep, task.id, _SETTLED_AS[pending.kind](pending.intent, *INTERRUPTED))
    return [f"task {task.id}: {pending.kind} of position {pending.position} was interrupted"]


def _undo(keep: Keep, task: registry.Task, pending: Pending) -> None:
    """Take back what an abandoned intent may have begun."""
    engine, container = keep.engine, task.container
    status = None if container is None else engine.status(container)
    if container is None or status is None:
        return
    if (
        pending.kind in ("PauseRequested", "SandboxPauseRequested", "RestoreRequested", "MergeRequested")
        and status == "paused"
    ):
        engine.unpause(container)
    elif pending.kind == "ResumeRequested" and status == "running":
        engine.pause(container)


def _remove_orphans(keep: Keep, found: list[Found]) -> list[str]:
    done: list[str] = []
    for each in found:
        awaiting = slot.find(keep, each.task)
        if awaiting is not None and awaiting.container == each.container:
            continue  # it is no task's yet; see `pool`
        with keep.projections.reading() as state:
            task = registry.find(state, each.task)
        believed = task is not None and task.container == each.container
        ended = task is None or task.state in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CLEANED)
        if (believed and not ended) or not abandoned(keep.intents, each.intent):
            continue
        keep.engine.remove(each.container)
        if task is not None and believed:
            removed = ev.SandboxRemoved(each.container)
            keep.decide(task.id, partial(decider.lose, event=removed))
        done.append(f"task {each.task}: removed the orphaned sandbox {each.container[:12]}")
    return done


def _sweep(keep: Keep) -> None:
    """Remove the output of commands whose outcome is stored. The names in a spool are the sandbox's, so not trusted."""
    # Before the log is read: what a command begun since then writes is not among them.
    paths = list((keep.path / "run" / "spool").glob("*/*"))
    waited = {pending.intent for task in busy(keep) for pending in task.pending}
    for path in paths:
        found = _SPOOLED.fullmatch(path.name)
        if found and found[1] not in waited and abandoned(keep.intents, found[1]):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                path.unlink()
