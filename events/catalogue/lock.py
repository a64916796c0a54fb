"""The events of a task's locks."""

from __future__ import annotations

import msgspec

from sandkeep.events.schema import Event, event


class Lease(msgspec.Struct, frozen=True):
    """How long a claim on a lock lives: until `deadline_ns` of CLOCK_BOOTTIME, in the machine's boot called `boot`."""

    boot: str
    deadline_ns: int


class Wait(msgspec.Struct, frozen=True):
    """An agent that waits for the lock of a task."""

    agent: str
    task: str


class Claimed(Event, frozen=True):
    """An agent asked for the lock of a task, under the id `claim`: for itself, or for who else waits as `session`."""

    claim: str
    agent: str
    session: str
    mode: str
    lease_ns: int
    lease: Lease


@event(version=1)
class LockRequested(Claimed, frozen=True):
    """The claim cannot be granted yet, and is the last in the queue."""


@event(version=1)
class LockGranted(Claimed, frozen=True):
    """The claim holds the lock; the position of this event is its fencing token."""


@event(version=1)
class LockRenewed(Event, frozen=True):
    """Who holds the lock, or waits for it, is alive."""

    claim: str
    lease: Lease


@event(version=1)
class LockReleased(Event, frozen=True):
    """The holder has given the lock back."""

    claim: str


@event(version=1)
class LockExpired(Event, frozen=True):
    """The claim's lease had run out, whether it held the lock or waited for it."""

    claim: str


@event(version=1)
class LockBroken(Event, frozen=True):
    """The lock was taken from its holder, who did not agree, for a `reason`."""

    claim: str
    reason: str


@event(version=1)
class LockTimedOut(Event, frozen=True):
    """Who waited for the lock gave up."""

    claim: str


@event(version=1)
class DeadlockDetected(Event, frozen=True):
    """A request was refused, because all in `cycle` would have waited for each other: each for a lock that the next one
    holds or waits for, and the last for the first."""

    claim: str
    cycle: tuple[Wait, ...]
