"""Deciders of own workspaces: who may do what in one, when it may be merged, and that none is lost.

Pure functions that run inside the log's write lock, as those in `decider` do. What is done in an own workspace is
admitted by the lock of the task that it was forked from, and only under the token that it was made for: whoever has
lost that can do nothing in it any more, and nobody else can meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable

from sandkeep.events import Event, StaleFence
from sandkeep.events import catalogue as ev
from sandkeep.projections import Claim, Fork, StateView, forks, locks, registry
from sandkeep.projections.registry import Task
from sandkeep.sandboxes import checkpoint_decider, decider, lock_decider
from sandkeep.sandboxes.clock import BootTime
from sandkeep.sandboxes.errors import LockHeld, TaskRefused, WorkspaceUnmerged

_ENDS = (ev.TaskCompleted, ev.TaskFailed, ev.CleanupRequested)


def admit(state: StateView, task_id: str, token: int | None, now: BootTime) -> Claim | None:
    """Refuse an act on a task, with `LockHeld` or `StaleFence`, unless its lock admits it; or, on an own workspace, the
    lock of the task that it was forked from. The claim of `token`, if one is given."""
    fork = forks.find(state, task_id)
    if fork is None or fork.ended:
        lock = locks.find(state, task_id)
        lock_decider.admit(lock, token, now)
        return None if token is None else lock.holder(token)
    if token is None:
        raise LockHeld(
            f"task {task_id} is the own workspace of {fork.agent} in task {fork.parent}; work in it by the token"
            f" {fork.token}, or merge it with 'sandkeep merge {fork.parent} {task_id}'"
        )
    if token != fork.token:
        raise StaleFence(f"{token} is not the token of the own workspace {task_id}; use that of {fork.agent}")
    decider.going_on(registry.find(state, fork.parent))
    return lock_decider.live(locks.find(state, fork.parent), token, now)


def begin(state: StateView, fork: ev.WorkspaceForked, parent: str, now: BootTime) -> list[Event]:
    """The holder of a token gets an own workspace, unless it has one. Raises `StaleFence` and `TaskRefused`, and
    `CheckpointGone` if what it is to be made of has expired."""
    known = forks.of_token(state, parent, fork.token)
    if known is not None and not known.ended:
        return []
    admit(state, parent, fork.token, now)
    decider.going_on(registry.find(state, parent))
    checkpoint_decider.live(state, parent, fork.checkpoint)
    return [fork]


def merge(state: StateView, fork: Fork, event: Event, token: int | None, now: BootTime) -> list[Event]:
    """An own workspace is to be merged (`MergeRequested`) or dropped (`WorkspaceDiscarded`).

    By who works in it, under its `token`; by others only once that is stale, as the task's lock admits them. Raises
    `LockHeld`, `StaleFence`, `TaskRefused` and `TaskBusy`.
    """
    known = forks.find(state, fork.task)
    if known is None or known.ended:
        raise TaskRefused(f"the own workspace {fork.task} does not allow that: it was {known and known.ended} already")
    holder = locks.find(state, fork.parent).holder(fork.token)
    if token != fork.token and holder is not None and not now.over(holder.lease):
        raise LockHeld(
            f"{fork.agent} still works in the own workspace {fork.task}, which is merged when they detach; wait for"
            f" that, or take their lock with 'sandkeep break-lock {fork.parent} --token {fork.token}'"
        )
    admit(state, fork.parent, token, now)
    task = registry.find(state, fork.parent)
    return decider.merge(task, event) if isinstance(event, ev.MergeRequested) else decider.drop(task, event)


def end(state: StateView, task: Task | None, events: Iterable[Event]) -> None:
    """Refuse `events` that would end a task while what was done in an own workspace of it, or in itself as one, is
    not merged. Raises `WorkspaceUnmerged`."""
    if task is None or not any(isinstance(event, _ENDS) for event in events):
        return
    itself = forks.find(state, task.id)
    left = [itself] if itself is not None and not itself.ended else list(forks.unmerged(state, task.id))
    if left:
        names = ", ".join(f"{fork.task} of {fork.agent}" for fork in left)
        raise WorkspaceUnmerged(
            f"task {task.id} cannot end: the own workspaces {names} are not merged; detach those agents, or use"
            f" 'sandkeep merge {left[0].parent} {left[0].task}', with --discard to drop what is in it"
        )
