"""What is going on in a keep, at one glance: its tasks and what they use, who works on them, and what happened last.

A *picture* is all of it at one moment. Looking only reads: nothing is started, settled or recorded.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import Record, SandkeepError
from sandkeep.projections import Filter, Sort, TaskState, registry
from sandkeep.sandboxes import admission, limits, monitor
from sandkeep.sandboxes.cgroup import Sample
from sandkeep.sandboxes.incumbent import incumbent

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

MOST = 50
"""How many tasks and events a picture has: more than a screen shows."""

_STATES = tuple(state for state in TaskState if state is not TaskState.CLEANED)


class Used(msgspec.Struct, frozen=True):
    """What a sandbox uses; `sample` is None if this machine cannot tell. `cpus` is how many processors it kept busy
    since the picture before, None in the first."""

    sample: Sample | None
    cpus: float | None = None
    short: bool = False


class Agent(msgspec.Struct, frozen=True):
    """Who holds a task's lock, by `token`, or waits for it. `left_s` is what is left of the lease."""

    task: str
    name: str
    mode: str
    token: int
    since_ns: int
    left_s: float


class Picture(msgspec.Struct, frozen=True):
    """A keep at one moment: the tasks that were touched last, what the live ones use, and the last events."""

    keep: str
    position: int
    taken_ns: int
    steward: int | None
    tasks: tuple[registry.Task, ...]
    more: bool
    used: dict[str, Used]
    agents: tuple[Agent, ...]
    records: tuple[Record, ...]
    promised: int
    budget: int


def look(keep: Keep, before: Picture | None = None) -> Picture:
    """The keep as it is now; with the picture `before`, also how busy its sandboxes were since."""
    head = keep.head().position
    now = time.monotonic_ns()
    with keep.as_of() as then:
        page = then.tasks(Filter(states=_STATES), sort=Sort.UPDATED, limit=MOST)
    promised, budget = _promises(keep)
    clock = keep.locking.now()
    seat = incumbent(keep.path)
    return Picture(
        str(keep.path),
        head,
        now,
        None if seat is None else seat.pid,
        tuple(page.tasks),
        page.next is not None,
        _used(keep, before, now),
        tuple(
            Agent(lock.task, claim.agent, claim.mode, claim.token, claim.since_ns, clock.left_ns(claim.lease) / 1e9)
            for lock in keep.locks()
            for claim in (*lock.holding, *lock.waiting)
        ),
        tuple(keep.events(max(0, head - MOST))),
        promised,
        budget,
    )


def _used(keep: Keep, before: Picture | None, now: int) -> dict[str, Used]:
    found: dict[str, Used] = {}
    with contextlib.suppress(SandkeepError):  # the rest can be told without the engine
        for each in monitor.watched(keep):
            earlier = before.used.get(each.use.task) if before is not None else None
            cpus = None
            if before is not None and earlier is not None and earlier.sample is not None and each.sample is not None:
                worked = each.sample.cpu_ns - earlier.sample.cpu_ns
                # Less than before is another sandbox.
                cpus = worked / (now - before.taken_ns) if worked >= 0 and now > before.taken_ns else None
            found[each.use.task] = Used(each.sample, cpus, each.use.extension is not None)
    return found


def _promises(keep: Keep) -> tuple[int, int]:
    """What sandboxes were promised, and may be; zeros if keep.toml or the engine does not say."""
    with contextlib.suppress(SandkeepError), keep.projections.reading() as state:
        return sum(admission.promised(keep, state).values()), admission.budget(keep, limits.load(keep.path).budget)
    return 0, 0
