"""Letting checkpoints go: the choice of `retention` is put on record, and what nobody needs any more is removed later.

`CheckpointExpired` comes first, decided inside the log's write lock; from then on nothing can be made of the
checkpoint. Its content goes with the garbage, after a grace period (see `Keep.collect_garbage`), so whoever has just
begun to read it comes to an end. The steward does both (`tick`); nothing but time is lost without one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from sandkeep.events import LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.projections import Checkpoint, checkpoints, registry
from sandkeep.sandboxes import checkpoint_decider, resources, retention
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.retention import Surplus

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

GRACE_SECONDS = 3600.0
"""How long a blob may wait for its event, and what has expired for whoever reads it."""

_STAMP = "collected"
_ROUNDS = 3
"""How many collections what has expired may need: one finds it unwanted, another removes it, one may come early."""


def surplus(keep: Keep, task: str | None = None) -> list[Surplus]:
    """The checkpoints, of all tasks or of one, that are to expire by now. Raises `BadSettings`.

    The budget of the whole keep is only looked at for all.
    """
    policy = retention.load(keep.path)
    if policy == retention.Policy():
        return []
    with keep.projections.reading() as state:
        tasks = [task] if task is not None else list(checkpoints.having(state))
        taken = {each: list(checkpoints.checkpoints(state, each)) for each in tasks}
        needed = {each: checkpoint_decider.needed(state, each) for each in tasks}
    found: list[Surplus] = []
    for each in tasks:
        found += retention.by_rules(policy, taken[each], needed[each], time.time_ns())
        taken[each] = _without(taken[each], found)
        found += retention.by_task_budget(policy, taken[each], needed[each], keep.growth.held)
        taken[each] = _without(taken[each], found)
    if task is None:
        found += retention.by_budget(policy, taken, needed, keep.growth.held)
    return found


def expire(keep: Keep, found: Iterable[Surplus]) -> list[Surplus]:
    """Let these checkpoints expire, but for those that have come to be needed. Returns which did."""
    by_task: dict[str, list[Surplus]] = {}
    for each in found:
        by_task.setdefault(each.checkpoint.task, []).append(each)
    done: list[Surplus] = []
    for task, mine in by_task.items():
        wanted = [ev.CheckpointExpired(each.checkpoint.id, each.reason) for each in mine]
        keep.log.decide(
            registry.STREAM + task, partial(checkpoint_decider.expire, task=task, wanted=wanted), actor=keep.actor
        )
        with keep.projections.reading() as state:
            left = {each.id for each in checkpoints.checkpoints(state, task)}
        done += [each for each in mine if each.checkpoint.id not in left]
    return done


def make_room(keep: Keep, task: str) -> None:
    """Let checkpoints expire until one more may be taken of a task. Raises `LimitReached` if that does not help.

    A task that stands still for want of memory is recorded in any case, since it may be about to end.
    """
    policy = retention.load(keep.path)
    if resources.of(keep, task).extension is not None:
        return
    if policy.task_budget:
        expire(keep, retention.by_task_budget(policy, *_of(keep, task), keep.growth.held))
        _check(f"task {task}", keep.growth.held(_of(keep, task)[0]), policy.task_budget, "task_budget")
    if policy.budget:
        expire(keep, [each for each in surplus(keep) if each.reason == retention.BUDGET])
        with keep.projections.reading() as state:
            tasks = list(checkpoints.having(state))
        total = sum(keep.growth.held(_of(keep, each)[0]) for each in tasks)
        _check("all tasks together", total, policy.budget, "budget")


def tick(keep: Keep) -> list[str]:
    """Let go what is to expire by now, and remove what expired a while ago. Tells what was done."""
    done = [
        f"task {each.checkpoint.task}: checkpoint {each.checkpoint.id} has expired: {each.reason}"
        for each in expire(keep, surplus(keep))
    ]
    return done + _collect(keep)


def _collect(keep: Keep) -> list[str]:
    stamp = keep.path / "run" / _STAMP
    with keep.projections.reading() as state:
        last = checkpoints.last_expired_ns(state) / 1e9
    before = 0.0
    with contextlib.suppress(FileNotFoundError):
        before = stamp.stat().st_mtime
    if not last or before > last + _ROUNDS * GRACE_SECONDS or time.time() - before < GRACE_SECONDS:
        return []
    removed, size = keep.collect_garbage(GRACE_SECONDS)
    stamp.touch()
    return [f"removed {removed} blobs that nothing refers to, {show_size(size)}"] if removed else []


def _of(keep: Keep, task: str) -> tuple[list[Checkpoint], dict[str, str]]:
    with keep.projections.reading() as state:
        return list(checkpoints.checkpoints(state, task)), checkpoint_decider.needed(state, task)


def _without(taken: list[Checkpoint], found: list[Surplus]) -> list[Checkpoint]:
    gone = {each.checkpoint.id for each in found}
    return [each for each in taken if each.id not in gone]


def _check(whose: str, held: int, budget: int, setting: str) -> None:
    if held > budget:
        raise LimitReached(
            f"the checkpoints of {whose} hold {show_size(held)}, more than the {show_size(budget)} that they may, and"
            f" those that are left have to stay; unpin or untag some, or raise {setting} in [checkpoints] of keep.toml"
        )
