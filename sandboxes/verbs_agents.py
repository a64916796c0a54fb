"""What the verbs for agents and their locks do: calls of the library, and documents of what it gave. No logic.

A process that attaches ends, and the lock stays held until its lease runs out; `execute` with its token renews it,
before the command and while it runs.
"""

from __future__ import annotations

from sandkeep.projections import Mode
from sandkeep.sandboxes import documents_work
from sandkeep.sandboxes.door import Door


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
        found.id, mode=Mode(mode), timeout=timeout, lease=lease, agent=name, session=f"agent {name}", heartbeat=False
    )
    return documents_work.Attached(found.id, name, mode, held.token, lease)


def detach(door: Door, *, task: str, token: int) -> documents_work.Detached:
    """Release a task's lock; see `LockManager.release`."""
    found = door.keep.task(task)
    merged = door.keep.locking.release(found.id, token)
    document = documents_work.Detached(found.id, token)
    return document if merged is None else documents_work.Detached(found.id, token, documents_work.merged(merged))
