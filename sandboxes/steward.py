"""Setting right what a crash left behind: the log, the engine and the disk are brought to agree again.

An intent whose process is gone gets an outcome; what it had begun is undone or ended. A container that the log does not
believe in is removed; one that it believes in and the engine lacks is recorded as lost, and the next command starts
another. Leases of locks that have run out are ended. Nothing that a living process works on is touched, and no other
keep's containers.

One process at a time does this for a keep; another that comes meanwhile leaves it to the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from sandkeep.events import catalogue as ev
from sandkeep.projections import Pending, TaskState, registry
from sandkeep.sandboxes import decider, memory, monitor, resources
from sandkeep.sandboxes.engine import Found
from sandkeep.sandboxes.intent import abandoned

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_SPOOLED = re.compile(r"([0-9a-f]{16})\.(?:out|err|note)")
_INTERRUPTED = ("interrupted", "the process that did this ended before it was done")
_SETTLED_AS: dict[str, type[ev.Failure]] = {
    "TaskCreated": ev.WorkspaceFailed,
    "SandboxRequested": ev.SandboxFailed,
    "CommandRequested": ev.CommandFailed,
    "RestoreRequested": ev.RestoreFailed,
    "PauseRequested": ev.PauseFailed,
    "ResumeRequested": ev.ResumeFailed,
    "CleanupRequested": ev.CleanupFailed,
}


def reconcile(keep: Keep) -> list[str]:
    """Settle everything that was left behind, and tell what was done, a line each. Needs the engine."""
    descriptor = os.open(keep.path / "run" / "steward.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _reconcile(keep)
    except BlockingIOError:
        return []
    finally:
        os.close(descriptor)


def _reconcile(keep: Keep) -> list[str]:
    # What the log believes is read before and after the engine is asked, so that what others start or end meanwhile
    # is neither taken for lost nor for an orphan.
    done = keep.locking.expire()
    for task in keep.busy():
        done += _settle(keep, task)
    live = keep.tasks(TaskState.ACTIVE, TaskState.PAUSED)
    believed = {task.container: task.id for task in live if task.container is not None}
    found = {each.container: each for each in keep.engine.containers(keep.id)}
    for container, task_id in believed.items():
        if container not in found:
            lost = ev.SandboxLost(container, "it was found removed")
            if keep.decide(task_id, partial(decider.lose, event=lost)).last:
                done.append(f"task {task_id}: its sandbox {container[:12]} is lost")
    done += _remove_orphans(keep, list(found.values()))
    _sweep(keep)
    monitor.release(keep)
    return done


def _settle(keep: Keep, task: registry.Task) -> list[str]:
    done: list[str] = []
    mine = [pending for pending in task.pending if abandoned(keep.intents, pending.intent)]
    commands = [pending for pending in task.pending if pending.kind == "CommandRequested"]
    for pending in mine:
        if pending in commands and any(other not in mine for other in commands):
            continue  # to end it would end what others run in the same sandbox; it stays for the next time
        if pending.kind == "LimitsRequested":
            done.append(resources.complete(keep, task.id, pending.intent))
            continue
        _undo(keep, task, pending)
        failure = _SETTLED_AS[pending.kind](pending.intent, *_INTERRUPTED)
        keep.decide(task.id, partial(decider.settle, outcome=failure))
        memory.trail(keep, task.id)
        done.append(f"task {task.id}: {pending.kind} of position {pending.position} was interrupted")
    if any(pending.kind in ("TaskCreated", "CleanupRequested") for pending in mine):
        keep.decide(task.id, partial(decider.give_up, reason=_INTERRUPTED[1]))
        keep.task(task.id).abandon()
        done.append(f"task {task.id}: cleaned up")
    return done


def _undo(keep: Keep, task: registry.Task, pending: Pending) -> None:
    """End or take back what an abandoned intent may have begun."""
    engine, container = keep.engine, task.container
    status = None if container is None else engine.status(container)
    if container is None or status is None:
        return
    if pending.kind == "CommandRequested":
        if status == "paused":
            engine.unpause(container)
        engine.restart(container)
    elif pending.kind in ("PauseRequested", "RestoreRequested") and status == "paused":
        engine.unpause(container)
    elif pending.kind == "ResumeRequested" and status == "running":
        engine.pause(container)


def _remove_orphans(keep: Keep, found: list[Found]) -> list[str]:
    done: list[str] = []
    for each in found:
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
    """Remove the output of commands whose process is gone. The names in a spool are the sandbox's, so not trusted."""
    for path in (keep.path / "run" / "spool").glob("*/*"):
        found = _SPOOLED.fullmatch(path.name)
        if found and abandoned(keep.intents, found[1]):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                path.unlink()
