"""The fold of locks: what each event does to one, and what is kept to find them by."""

from __future__ import annotations

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import Lock, Mode, locks

from .support import folded

LEASE = ev.Lease("boot", 100)
LATER = ev.Lease("boot", 200)


def asked(claim: str, mode: str = "exclusive") -> ev.LockRequested:
    return ev.LockRequested(claim, f"agent {claim}", f"session/{claim}", mode, 50, LEASE)


def granted(claim: str, mode: str = "exclusive") -> ev.LockGranted:
    return ev.LockGranted(claim, f"agent {claim}", f"session/{claim}", mode, 50, LATER)


def lock(*events: Event) -> Lock:
    """The lock of task `a` after these events, a hundred nanoseconds and a position each."""
    return locks.find(folded([("lock/a", event) for event in events]), "a")


def test_a_lock_that_nobody_asked_for_is_free() -> None:
    assert lock() == Lock("a")
    assert lock(ev.LockReleased("none"), ev.LockRenewed("none", LATER)) == Lock("a")


def test_a_claim_waits_is_granted_and_ends_and_its_times_are_counted() -> None:
    history: list[Event] = [granted("one"), asked("two"), ev.LockReleased("one"), granted("two")]
    waits = lock(*history[:2])
    assert [(each.id, each.token, each.lease) for each in waits.waiting] == [("two", 0, LEASE)]
    holds = lock(*history)
    (two,) = holds.holding
    assert (two.id, two.agent, two.token, two.position, two.since_ns, two.lease) == (
        "two",
        "agent two",
        4,
        4,
        400,
        LATER,
    )
    assert holds.holder(4) == holds.find("two") == two
    assert (holds.holder(1), holds.holder(0), holds.find("one")) == (None, None, None)
    counts = lock(*history, ev.LockExpired("two")).counts
    assert (counts.requests, counts.contended, counts.grants, counts.released, counts.expired) == (2, 1, 2, 1, 1)
    assert (counts.waited_ns, counts.longest_wait_ns, counts.held_ns) == (200, 200, 200 + 100)


def test_a_renewal_moves_the_lease_of_the_one_who_renews() -> None:
    found = lock(granted("one"), asked("two"), ev.LockRenewed("two", LATER), ev.LockRenewed("one", LEASE))
    assert found.holding[0].lease == LEASE
    assert found.waiting[0].lease == LATER


def test_a_mode_of_a_later_version_excludes_everybody() -> None:
    found = lock(granted("one", "intent-shared"))
    assert found.holding[0].mode is Mode.EXCLUSIVE
    assert not found.admits("collaborative")
    assert lock(granted("one", "collaborative")).admits("collaborative")


def test_locks_are_found_while_somebody_holds_them_or_waits() -> None:
    events: list[tuple[str, Event]] = [
        ("lock/a", granted("one")),
        ("lock/b", granted("one")),
        ("lock/b", asked("two")),
        ("lock/c", asked("two")),
        ("lock/a", ev.LockReleased("one")),
        ("task/a", granted("not in a lock's stream")),
    ]
    state = folded(events)
    assert [each.task for each in locks.live(state)] == ["b", "c"]
    assert [each.task for each in locks.known(state)] == ["a", "b", "c"]
    assert [each.task for each in locks.waiting(state, "session/two")] == ["b", "c"]
    assert list(locks.waiting(state, "session/one")) == []
    state = folded([*events, ("lock/b", ev.LockTimedOut("two")), ("lock/c", granted("two"))])
    assert list(locks.waiting(state, "session/two")) == []


def test_no_token_of_before_a_recovery_is_live() -> None:
    recovered = ev.LogRecovered("salvage", "journal", 1, (), (), "q")
    state = folded([("lock/a", granted("one")), ("lock/a", asked("two")), ("keep", recovered)])
    found = locks.find(state, "a")
    assert (found.holding, found.waiting, found.counts.requests) == ((), (), 2)
    assert list(locks.live(state)) == list(locks.waiting(state, "session/two")) == []


def test_a_session_may_be_called_anything() -> None:
    name = "x" * 4000 + "\0/"
    state = folded([("lock/a", ev.LockRequested("c", "agent", name, "exclusive", 1, LEASE))])
    assert [each.task for each in locks.waiting(state, name)] == ["a"]
