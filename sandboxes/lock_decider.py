"""Deciders of locks: pure functions from a lock, a command and the time to the events that follow.

They run inside the log's write lock, as those in `decider` do, and each settles first what time has brought about:
claims whose lease is over expire, and who is next is granted the lock, in the same transaction. So no grant depends on
anybody who could die, and whoever comes first cleans up. The time has to be read inside of the transaction: a process
that slept between reading it and deciding would take a lease for a live one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable

from sandkeep.events import Event, LimitReached, StaleFence
from sandkeep.events import catalogue as ev
from sandkeep.projections.locks import Claim, Lock, LockEvent, Mode, evolve, excludes
from sandkeep.sandboxes.clock import BootTime
from sandkeep.sandboxes.errors import LockHeld, LockNotHeld

MAX_CLAIMS = 256
"""How many may hold a lock and wait for it."""

Waiting = Callable[[str], Iterable[Lock]]
"""The locks that a session waits for."""


def request(lock: Lock, asked: ev.LockRequested, waiting: Waiting, wait: bool, now: BootTime) -> list[Event]:
    """A claim on the lock: granted at once if it can be, else queued if it may `wait`; else refused with `LockHeld`.

    A claim that would wait for its own session, through whatever others, is not queued but is a `DeadlockDetected`.
    Raises `LimitReached`.
    """
    before = expire(lock, now)
    lock = _after(lock, before)
    if not lock.waiting and lock.admits(asked.mode):
        return [*before, _grant(asked, now)]
    if not wait:
        raise LockHeld(held_by(lock, now))
    if len(lock.holding) + len(lock.waiting) >= MAX_CLAIMS:
        raise LimitReached(f"{MAX_CLAIMS} hold the lock of task {lock.task} or wait for it, the most there may be")
    if cycle := _cycle(_after(lock, [asked]), asked, waiting, now):
        return [*before, ev.DeadlockDetected(asked.claim, cycle)]
    return [*before, asked]


def renew(lock: Lock, claim: str, now: BootTime) -> list[Event]:
    """Whoever made the claim is alive. Raises `StaleFence` if it neither holds nor waits any more."""
    found = lock.find(claim)
    if found is None or now.over(found.lease):
        raise StaleFence(f"the claim on the lock of task {lock.task} has ended; acquire the lock again")
    before = expire(lock, now)
    return [*before, ev.LockRenewed(claim, now.lease(found.lease_ns))]


def release(lock: Lock, token: int, now: BootTime) -> list[Event]:
    """The holder is done; the next ones are granted. Raises `StaleFence` if it holds no more."""
    claim = live(lock, token, now)
    return _granting(lock, [*_expired(lock, now), ev.LockReleased(claim.id)], now)


def withdraw(lock: Lock, claim: str, now: BootTime) -> list[Event]:
    """Who waits has waited long enough. Nothing of it if the claim was granted meanwhile, or has ended."""
    found = lock.find(claim)
    gone: list[Event] = []
    if found is not None and not found.token and not now.over(found.lease):
        gone = [ev.LockTimedOut(claim)]
    return _granting(lock, [*_expired(lock, now), *gone], now)


def take_away(lock: Lock, reason: str, token: int | None, now: BootTime) -> list[Event]:
    """The lock is taken from all holders, or from the one with `token`. Raises `LockNotHeld`."""
    before = _expired(lock, now)
    holding = [each for each in _after(lock, before).holding if token in (None, each.token)]
    if not holding:
        raise LockNotHeld(
            f"nobody holds the lock of task {lock.task}{'' if token is None else f' with token {token}'};"
            " 'sandkeep locks' shows who holds what"
        )
    return _granting(lock, [*before, *(ev.LockBroken(each.id, reason) for each in holding)], now)


def expire(lock: Lock, now: BootTime) -> list[Event]:
    """Whatever time alone has brought about: leases that ran out, and the grants that follow."""
    return _granting(lock, _expired(lock, now), now)


def admit(lock: Lock, token: int | None, now: BootTime) -> None:
    """Refuse an act on the task: with a `token`, unless that is of a live grant (`StaleFence`); without, if somebody
    holds the lock exclusively (`LockHeld`)."""
    if token is not None:
        live(lock, token, now)
    elif any(each.mode is Mode.EXCLUSIVE and not now.over(each.lease) for each in lock.holding):
        raise LockHeld(f"{held_by(lock, now)}, or give the token if it is yours")


def live(lock: Lock, token: int, now: BootTime) -> Claim:
    """The claim that holds the lock by this fencing token. Raises `StaleFence`."""
    found = lock.holder(token)
    if found is None:
        raise StaleFence(
            f"{token} is no live fencing token of task {lock.task}: its lease ran out, or it was released or broken,"
            " or never was one; acquire the lock again"
        )
    if now.over(found.lease):
        raise StaleFence(f"the lease of fencing token {token} of task {lock.task} ran out; acquire the lock again")
    return found


def held_by(lock: Lock, now: BootTime) -> str:
    """Who is in the way, since when, until when, and what to do."""
    holders = [each for each in lock.holding if not now.over(each.lease)]
    names = ", ".join(
        f"{each.agent} ({each.mode}, token {each.token}, {now.left_ns(each.lease) / 1e9:.0f} s of its lease left)"
        for each in holders
    )
    queue = f", and {len(lock.waiting)} wait for it" if lock.waiting else ""
    return (
        f"the lock of task {lock.task} is held by {names or 'nobody yet'}{queue};"
        " wait for it with a longer timeout, ask the holder to release it"
    )


def words(cycle: tuple[ev.Wait, ...]) -> str:
    """Why a circle of waits is refused, and what to do."""
    waits = ", ".join(f"{each.agent} waits for task {each.task}" for each in cycle)
    return (
        f"to wait for the lock would never end: {waits}, which {cycle[0].agent} has or is before in the queue for;"
        " release a lock first"
    )


def _expired(lock: Lock, now: BootTime) -> list[Event]:
    return [ev.LockExpired(each.id) for each in (*lock.holding, *lock.waiting) if now.over(each.lease)]


def _granting(lock: Lock, events: list[Event], now: BootTime) -> list[Event]:
    """`events`, and the grants that they make possible."""
    return [*events, *_grants(_after(lock, events), now)] if events and lock.waiting else events


def _grants(lock: Lock, now: BootTime) -> list[Event]:
    grants: list[Event] = []
    for claim in lock.waiting:
        if not lock.admits(claim.mode):
            break
        grants.append(_grant(claim, now))
        lock = _after(lock, grants[-1:])
    return grants


def _grant(claim: Claim | ev.LockRequested, now: BootTime) -> Event:
    name = claim.id if isinstance(claim, Claim) else claim.claim
    return ev.LockGranted(name, claim.agent, claim.session, claim.mode, claim.lease_ns, now.lease(claim.lease_ns))


def _after(lock: Lock, events: Iterable[Event]) -> Lock:
    """The lock as `events` will leave it; their positions and times are not known yet, and not asked for."""
    for event in events:
        assert isinstance(event, LockEvent)
        lock = evolve(lock, event, _NOT_YET, 0)
    return lock


_NOT_YET = 2**63 - 1


def _cycle(asked_of: Lock, asked: ev.LockRequested, waiting: Waiting, now: BootTime) -> tuple[ev.Wait, ...]:
    """The waits, if any, by which `asked`, the last in its queue, would wait for its own session: a shortest circle."""
    seen: set[str] = set()
    paths: deque[tuple[tuple[ev.Wait, ...], Lock, Claim]] = deque([((), asked_of, asked_of.waiting[-1])])
    while paths:
        path, lock, claim = paths.popleft()
        path = (*path, ev.Wait(claim.agent, lock.task))
        for blocker in _blockers(lock, claim):
            if blocker.session == asked.session:
                return path
            if blocker.session in seen:
                continue
            seen.add(blocker.session)
            for found in waiting(blocker.session):
                # As it would be if somebody came: who is late blocks nobody.
                other = asked_of if found.task == asked_of.task else _after(found, expire(found, now))
                paths += ((path, other, each) for each in other.waiting if each.session == blocker.session)
    return ()


def _blockers(lock: Lock, claim: Claim) -> Iterable[Claim]:
    """Who must go before this waiting claim can be granted: holders it cannot be beside, and all before it."""
    yield from (each for each in lock.holding if excludes(each.mode, claim.mode))
    yield from itertools.takewhile(lambda each: each.id != claim.id, lock.waiting)
