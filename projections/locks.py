"""The locks of all tasks: who holds each, who waits for it and in which order, and how contended it was.

A *claim* is one request for a lock. It waits in the queue until it is granted; then it holds, and the position of the
grant is its fencing token. An exclusive claim holds alone; collaborative ones hold together. Claims are granted in the
order they were requested in, so one that cannot be granted keeps those behind it waiting, and none starves.

What is granted at once was never in the queue: then there is a `LockGranted` and no `LockRequested`.

Leases are only kept here, not judged: what time it is, no fold can know. The deciders do that.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TypeAlias, final

import msgspec
from blake3 import blake3

from sandkeep.events import Event, Record
from sandkeep.events import catalogue as ev
from sandkeep.projections.projection import State, StateView

STREAM = "lock/"
"""Locks have streams of their own, so that heartbeats neither lengthen a task's history nor move its revision."""


class Mode(enum.StrEnum):
    """Who may hold the lock beside a holder: nobody, or others that collaborate."""

    EXCLUSIVE = "exclusive"
    COLLABORATIVE = "collaborative"


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """A request for a lock; `token` is 0 while it waits. `position` and `since_ns` are of the request, or the grant."""

    id: str
    agent: str
    session: str
    mode: Mode
    position: int
    since_ns: int
    lease_ns: int
    lease: ev.Lease
    token: int = 0


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """What a lock has seen. `contended` requests found it taken; times are from request to grant, and grant to end."""

    requests: int = 0
    contended: int = 0
    grants: int = 0
    released: int = 0
    expired: int = 0
    broken: int = 0
    timed_out: int = 0
    deadlocks: int = 0
    waited_ns: int = 0
    longest_wait_ns: int = 0
    held_ns: int = 0


class Lock(msgspec.Struct, frozen=True, array_like=True):
    """The lock of one task. `waiting` is in the order in which it will be granted."""

    task: str
    holding: tuple[Claim, ...] = ()
    waiting: tuple[Claim, ...] = ()
    counts: Counts = Counts()

    def find(self, claim: str) -> Claim | None:
        """The claim with this id, if it holds or waits."""
        return next((each for each in (*self.holding, *self.waiting) if each.id == claim), None)

    def holder(self, token: int) -> Claim | None:
        """The holder that was given this fencing token."""
        return next((each for each in self.holding if each.token == token), None)

    def admits(self, mode: str) -> bool:
        """Whether one more could hold the lock now in this mode."""
        return not any(excludes(each.mode, mode) for each in self.holding)


LockEvent: TypeAlias = (
    ev.LockRequested
    | ev.LockGranted
    | ev.LockRenewed
    | ev.LockReleased
    | ev.LockExpired
    | ev.LockBroken
    | ev.LockTimedOut
    | ev.DeadlockDetected
)

_ENDED_AS: dict[type[Event], str] = {
    ev.LockReleased: "released",
    ev.LockExpired: "expired",
    ev.LockBroken: "broken",
    ev.LockTimedOut: "timed_out",
}


def excludes(one: str, other: str) -> bool:
    """Whether claims of these modes cannot hold a lock together."""
    return one != Mode.COLLABORATIVE or other != Mode.COLLABORATIVE


def evolve(lock: Lock, event: LockEvent, position: int, time_ns: int) -> Lock:
    """The lock after `event`. Total over every history: it is the deciders' part to keep impossible ones out."""
    match event:
        case ev.LockRequested():
            waiting = (*_others(lock.waiting, event.claim), _claim(event, position, time_ns))
            return _counted(msgspec.structs.replace(lock, waiting=waiting), requests=1, contended=1)
        case ev.LockGranted():
            return _granted(lock, event, position, time_ns)
        case ev.LockRenewed():
            holding, waits = _renewed(lock.holding, event), _renewed(lock.waiting, event)
            return msgspec.structs.replace(lock, holding=holding, waiting=waits)
        case ev.DeadlockDetected():
            return _counted(lock, deadlocks=1)
        case _:
            found = lock.find(event.claim)
            if found is None:
                return lock
            held = max(0, time_ns - found.since_ns) if found.token else 0
            return _counted(_without(lock, found.id), held_ns=held, **{_ENDED_AS[type(event)]: 1})


def _granted(lock: Lock, event: ev.LockGranted, position: int, time_ns: int) -> Lock:
    asked = next((each for each in lock.waiting if each.id == event.claim), None)
    held = msgspec.structs.replace(_claim(event, position, time_ns), token=position)
    waiting = lock.waiting if asked is None else _others(lock.waiting, asked.id)
    holding = (*_others(lock.holding, event.claim), held)
    lock = msgspec.structs.replace(lock, holding=holding, waiting=waiting)
    if asked is None:
        return _counted(lock, requests=1, grants=1)
    waited = max(0, time_ns - asked.since_ns)
    longest = max(waited, lock.counts.longest_wait_ns)
    return _counted(lock, grants=1, waited_ns=waited, longest_wait_ns=longest - lock.counts.longest_wait_ns)


def _claim(event: ev.Claimed, position: int, time_ns: int) -> Claim:
    mode = _mode(event.mode)
    return Claim(event.claim, event.agent, event.session, mode, position, time_ns, event.lease_ns, event.lease)


def _mode(word: str) -> Mode:
    # What a later version may write excludes everybody, which is safe.
    return Mode.COLLABORATIVE if word == Mode.COLLABORATIVE else Mode.EXCLUSIVE


def _renewed(claims: tuple[Claim, ...], event: ev.LockRenewed) -> tuple[Claim, ...]:
    return tuple(
        msgspec.structs.replace(each, lease=event.lease) if each.id == event.claim else each for each in claims
    )


def _others(claims: tuple[Claim, ...], claim: str) -> tuple[Claim, ...]:
    return tuple(each for each in claims if each.id != claim)


def _without(lock: Lock, claim: str) -> Lock:
    return msgspec.structs.replace(lock, holding=_others(lock.holding, claim), waiting=_others(lock.waiting, claim))


def _counted(lock: Lock, **more: int) -> Lock:
    counts = {name: getattr(lock.counts, name) + number for name, number in more.items()}
    return msgspec.structs.replace(lock, counts=msgspec.structs.replace(lock.counts, **counts))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Lock).decode


@final
class Locks:
    """The projection of all locks.

    Keys: `locks/task/<id>` holds the lock, `locks/live/<id>` is there while somebody holds it or waits for it, and
    `locks/session/<session>/<id>` while the session waits for it.
    """

    name = "locks"
    version = 1

    def apply(self, state: State, record: Record) -> None:
        if record.type == "LogRecovered":
            self._forget_all(state)
        if not record.stream.startswith(STREAM):
            return
        event = record.event
        if isinstance(event, LockEvent):
            before = find(state, record.stream.removeprefix(STREAM))
            _store(state, before, evolve(before, event, record.position, record.time_ns))

    def _forget_all(self, state: State) -> None:
        """Tokens of before a recovery are stale (see `LogRecovered`), and who waits cannot know what was lost."""
        for lock in list(live(state)):
            _store(state, lock, Lock(lock.task, counts=lock.counts))


def find(state: StateView, task: str) -> Lock:
    """The lock of a task, which nobody need have asked for."""
    value = state.get(f"locks/task/{task}".encode())
    return Lock(task) if value is None else _decode(value)


def known(state: StateView) -> Iterator[Lock]:
    """All locks that anybody ever asked for, by task id."""
    for _, value in state.scan(b"locks/task/"):
        yield _decode(value)


def live(state: StateView) -> Iterator[Lock]:
    """The locks that somebody holds or waits for, by task id."""
    for key, _ in state.scan(b"locks/live/"):
        yield find(state, key.decode().removeprefix("locks/live/"))


def waiting(state: StateView, session: str) -> Iterator[Lock]:
    """The locks that a session waits for."""
    for _, task in state.scan(_session_key(session, "")):
        yield find(state, task.decode())


def _store(state: State, before: Lock, after: Lock) -> None:
    state.put(f"locks/task/{after.task}".encode(), _encode(after))
    was, now = bool(before.holding or before.waiting), bool(after.holding or after.waiting)
    key = f"locks/live/{after.task}".encode()
    if now and not was:
        state.put(key, b"")
    elif was and not now:
        state.delete(key)
    if before.waiting or after.waiting:
        waited, waits = ({each.session for each in lock.waiting} for lock in (before, after))
        for session in waited - waits:
            state.delete(_session_key(session, after.task))
        for session in waits - waited:
            state.put(_session_key(session, after.task), after.task.encode())


def _session_key(session: str, task: str) -> bytes:
    # A digest, because LMDB's keys are short, and a session may be called anything.
    return f"locks/session/{blake3(session.encode()).hexdigest()[:32]}/{task}".encode()
