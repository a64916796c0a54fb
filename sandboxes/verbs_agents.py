"""What the verbs for agents do, their locks and their conflicts: calls of the library, and documents of what it gave.

A process that attaches ends, and the lock stays held until its lease runs out; `execute` with its token renews it,
before the command and while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from sandkeep.events import BadInput
from sandkeep.events.catalogue import Rule
from sandkeep.projections import Mode
from sandkeep.sandboxes import documents, documents_work, publishing
from sandkeep.sandboxes.clock import boot_clock
from sandkeep.sandboxes.door import Door

_SIDES = ("ours", "theirs", "merged")


def attach(
    door: Door,
    *,
    task: str,
    mode: str = "exclusive",
    timeout: float = 60.0,
    lease: float = 3600.0,
    agent: str | None = None,
) -> documents_work.Attached:
    """Take a task's lock for an agent; see `LockManager.acquire`."""
    found = door.keep.task(task)
    name = agent or door.keep.actor
    held = door.keep.locking.acquire(
        found.id,
        mode=Mode(mode),
        timeout=timeout,
        lease=lease,
        agent=name,
        session=f"agent {name}",
        heartbeat=False,
        stop=door.stop,
    )
    return documents_work.Attached(found.id, name, mode, held.token, lease)


def detach(door: Door, *, task: str, token: int) -> documents_work.Detached:
    """Release a task's lock; see `LockManager.release`."""
    found = door.keep.task(task)
    merged = door.keep.locking.release(found.id, token)
    document = documents_work.Detached(found.id, token)
    return document if merged is None else documents_work.Detached(found.id, token, documents_work.merged(merged))


def break_lock(door: Door, *, task: str, reason: str, token: int | None = None) -> documents_work.Broken:
    """Take a task's lock from those who hold it; see `LockManager.take_away`."""
    found = door.keep.task(task)
    taken = door.keep.locking.take_away(found.id, reason, token)
    return documents_work.Broken(found.id, [documents_work.TakenFrom(each.agent, each.token) for each in taken])


def locks(door: Door, *, ever: bool = False) -> list[documents_work.Lock]:
    """Who holds what and who waits; see `Keep.locks`."""
    now = boot_clock()()
    return [documents_work.lock(each, now) for each in door.keep.locks(ever=ever)]


def conflicts(door: Door, *, task: str, settled: bool = False) -> list[documents.Conflict]:
    """The conflicts of a task; see `TaskConflicts.list`."""
    return [documents.conflict(each) for each in door.keep.conflicts(task).list(settled=settled)]


def resolve_conflict(door: Door, *, task: str, conflict: str, take: str) -> documents.Conflict:
    """Settle a conflict by a side, or by a file that has it right; see `TaskConflicts.resolve`."""
    done = door.keep.conflicts(task).resolve(conflict, take if take in _SIDES else Path(take))
    return documents.conflict(done)


def conflict_policy(door: Door, *, task: str, rules: Sequence[str] = ()) -> list[Rule]:
    """How a task's conflicts are settled, or are to be; see `TaskConflicts.set_rules`."""
    found = door.keep.conflicts(task)
    if rules:
        found.set_rules([_rule(each) for each in rules])
    return list(found.rules())


def merge(
    door: Door, *, task: str, which: str | None = None, discard: bool = False, token: int | None = None
) -> documents_work.Merged:
    """Merge an own workspace whose agent is gone; see `OwnWorkspaces.merge`."""
    return documents_work.merged(door.keep.own_workspaces(task, token).merge(which, discard=discard))


def publish_task(
    door: Door, *, task: str, branch: str | None = None, token: int | None = None
) -> documents_work.Published:
    """Bring a task's commits into its source; see `publishing.publish`."""
    done = publishing.publish(door.keep, task, branch, fence=token, progress=door.progress)
    return documents_work.Published(**msgspec.structs.asdict(done))


def _rule(words: str) -> Rule:
    pattern, equals, strategy = words.rpartition("=")
    if not equals:
        raise BadInput(f"{words[:80]!r} is no rule; write it as PATTERN=STRATEGY, such as '*.lock=ask'")
    return Rule(pattern, strategy)
