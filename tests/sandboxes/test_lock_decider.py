"""The deciders of locks, case by case: order, deadlock, time and the fence."""

from __future__ import annotations

import pytest

from sandkeep.events import Event, LimitReached, StaleFence
from sandkeep.events import catalogue as ev
from sandkeep.projections import Lock, Mode
from sandkeep.projections.locks import LockEvent, evolve
from sandkeep.sandboxes import lock_decider as decider
from sandkeep.sandboxes.clock import BootTime
from sandkeep.sandboxes.errors import LockHeld, LockNotHeld

NOW = BootTime("boot", 1000)
LEASE = 100


class World:
    """Locks, and what is asked of them. A claim is named like its agent and session."""

    def __init__(self) -> None:
        self.locks: dict[str, Lock] = {}
        self.position = 0
        self.now = NOW

    def lock(self, task: str = "x") -> Lock:
        return self.locks.get(task, Lock(task))

    def store(self, events: list[Event], task: str = "x") -> list[str]:
        told = []
        for event in events:
            assert isinstance(event, LockEvent)
            self.position += 1
            self.locks[task] = evolve(self.lock(task), event, self.position, self.position)
            told.append(f"{type(event).__name__} {event.claim}")
        return told

    def ask(self, name: str, mode: Mode = Mode.EXCLUSIVE, task: str = "x", wait: bool = True) -> list[str]:
        asked = ev.LockRequested(f"{name}{task}", name, name, mode, LEASE, self.now.lease(LEASE))
        events = decider.request(self.lock(task), asked, self.waiting, wait, self.now)
        self.cycle = next((event.cycle for event in events if isinstance(event, ev.DeadlockDetected)), None)
        return self.store(events, task)

    def waiting(self, session: str) -> list[Lock]:
        return [lock for lock in self.locks.values() if session in [each.session for each in lock.waiting]]

    def token(self, task: str = "x") -> int:
        return self.lock(task).holding[0].token

    def release(self, task: str = "x") -> list[str]:
        return self.store(decider.release(self.lock(task), self.token(task), self.now), task)


@pytest.fixture
def world() -> World:
    return World()


SHARED = Mode.COLLABORATIVE


def test_an_exclusive_lock_goes_from_one_to_the_next_in_the_order_they_came(world: World) -> None:
    assert world.ask("a") == ["LockGranted ax"]
    assert world.token() == 1
    assert world.ask("b") == ["LockRequested bx"]
    assert world.ask("c") == ["LockRequested cx"]
    assert world.release() == ["LockReleased ax", "LockGranted bx"]
    assert world.token() == 5
    assert world.release() == ["LockReleased bx", "LockGranted cx"]
    assert world.release() == ["LockReleased cx"]
    assert world.lock().counts.grants == world.lock().counts.requests == 3
    assert world.lock().counts.contended == 2


def test_collaborators_hold_together_and_none_passes_one_who_waits_alone(world: World) -> None:
    assert world.ask("a", SHARED) == ["LockGranted ax"]
    assert world.ask("b", SHARED) == ["LockGranted bx"]
    assert world.ask("c") == ["LockRequested cx"]
    assert world.ask("d", SHARED) == ["LockRequested dx"]
    assert world.ask("e", SHARED) == ["LockRequested ex"]
    assert world.ask("f") == ["LockRequested fx"]
    assert world.release() == ["LockReleased ax"]
    assert world.release() == ["LockReleased bx", "LockGranted cx"]
    assert world.release() == ["LockReleased cx", "LockGranted dx", "LockGranted ex"]
    assert [each.agent for each in world.lock().waiting] == ["f"]


def test_who_leaves_the_queue_lets_those_behind_in(world: World) -> None:
    world.ask("a", SHARED)
    world.ask("b")
    world.ask("c", SHARED)
    assert world.store(decider.withdraw(world.lock(), "bx", NOW)) == ["LockTimedOut bx", "LockGranted cx"]
    assert decider.withdraw(world.lock(), "cx", NOW) == []
    assert decider.withdraw(world.lock(), "bx", NOW) == []


def test_one_who_will_not_wait_is_told_who_is_in_the_way(world: World) -> None:
    world.ask("a")
    with pytest.raises(LockHeld, match=r"task x is held by a \(exclusive, token 1, .* left\); wait for it"):
        world.ask("b", wait=False)
    world.ask("c")
    with pytest.raises(LockHeld, match="and 1 wait for it"):
        world.ask("b", SHARED, wait=False)
    assert world.lock().find("bx") is None


def test_there_is_a_most_that_may_wait(world: World) -> None:
    for number in range(decider.MAX_CLAIMS):
        world.ask(f"{number}")
    with pytest.raises(LimitReached, match="256 hold the lock of task x or wait for it"):
        world.ask("one more")


def test_a_holder_whose_lease_is_over_is_followed_by_the_next_whoever_comes(world: World) -> None:
    world.ask("a")
    world.ask("b")
    world.now = BootTime("boot", NOW.ns + LEASE - 1)
    assert decider.expire(world.lock(), world.now) == []
    world.store(decider.renew(world.lock(), "bx", world.now))
    world.now = BootTime("boot", NOW.ns + LEASE)
    assert world.ask("c") == ["LockExpired ax", "LockGranted bx", "LockRequested cx"]
    with pytest.raises(StaleFence, match="the claim on the lock of task x has ended"):
        decider.renew(world.lock(), "ax", world.now)


def test_a_lease_is_over_before_anybody_says_so(world: World) -> None:
    world.ask("a")
    late = BootTime("boot", NOW.ns + LEASE)
    for refused in (decider.admit, decider.release):
        with pytest.raises(StaleFence, match="the lease of fencing token 1 of task x ran out; acquire the lock again"):
            refused(world.lock(), 1, late)
    with pytest.raises(StaleFence):
        decider.renew(world.lock(), "ax", late)
    decider.admit(world.lock(), None, late)
    with pytest.raises(LockNotHeld, match="nobody holds the lock of task x"):
        decider.take_away(world.lock(), "why", None, late)


@pytest.mark.parametrize("ns", [0, NOW.ns, NOW.ns + 10 * LEASE])
def test_a_lease_of_another_boot_is_over_whatever_the_clock_says(world: World, ns: int) -> None:
    world.ask("a")
    world.now = BootTime("the next boot", ns)
    with pytest.raises(StaleFence):
        decider.admit(world.lock(), 1, world.now)
    assert world.ask("b") == ["LockExpired ax", "LockGranted bx"]


def test_one_who_died_waiting_does_not_hold_up_the_queue(world: World) -> None:
    for name in "abc":
        world.ask(name)
    world.now = BootTime("boot", NOW.ns + LEASE - 1)
    world.store(decider.renew(world.lock(), "ax", world.now))
    world.store(decider.renew(world.lock(), "cx", world.now))
    world.now = BootTime("boot", NOW.ns + LEASE)
    assert world.release() == ["LockExpired bx", "LockReleased ax", "LockGranted cx"]


def test_agents_that_would_wait_for_each_other_are_told_by_name(world: World) -> None:
    for name, task in ("ax", "by", "cz"):
        world.ask(name, task=task)
    assert world.ask("a", task="y") == ["LockRequested ay"]
    assert world.ask("b", task="z") == ["LockRequested bz"]
    assert world.ask("c", task="x") == ["DeadlockDetected cx"]
    assert world.cycle == (ev.Wait("c", "x"), ev.Wait("a", "y"), ev.Wait("b", "z"))
    assert world.lock().counts.deadlocks == 1
    assert world.lock().waiting == ()
    # Nothing is left of it: once b has let go of y, everybody comes to an end.
    world.release("z")
    assert world.release("y") == ["LockReleased by", "LockGranted ay"]
    assert world.ask("c", task="x") == ["LockRequested cx"]


def test_one_who_holds_a_lock_cannot_wait_for_it(world: World) -> None:
    world.ask("a", SHARED)
    assert world.ask("a") == ["DeadlockDetected ax"]
    assert world.cycle == (ev.Wait("a", "x"),)


def test_who_is_before_us_in_a_queue_can_close_the_circle(world: World) -> None:
    world.ask("a", SHARED, "x")
    world.ask("b", task="x")  # waits for a
    world.ask("c", task="y")
    assert world.ask("a", task="y") == ["LockRequested ay"]  # waits for c
    assert world.ask("c", SHARED, "x") == ["DeadlockDetected cx"]  # would wait for b
    assert world.cycle == (ev.Wait("c", "x"), ev.Wait("b", "x"), ev.Wait("a", "y"))


def test_what_has_run_out_closes_no_circle(world: World) -> None:
    world.ask("a", task="x")
    world.now = BootTime("boot", NOW.ns + LEASE // 2)
    world.ask("b", task="x")
    world.ask("b", task="y")
    world.now = BootTime("boot", NOW.ns + LEASE)
    assert world.ask("a", task="y") == ["LockRequested ay"]


def test_only_a_live_token_is_admitted_and_only_beside_an_exclusive_holder_none_is_refused(world: World) -> None:
    decider.admit(world.lock(), None, NOW)
    with pytest.raises(StaleFence, match="5 is no live fencing token of task x"):
        decider.admit(world.lock(), 5, NOW)
    world.ask("a", SHARED)
    world.ask("b", SHARED)
    for token in (None, 1, 2):
        decider.admit(world.lock(), token, NOW)
    world.release()
    with pytest.raises(StaleFence):
        decider.admit(world.lock(), 1, NOW)
    decider.admit(world.lock(), 2, NOW)
    world.release()
    world.ask("c")
    with pytest.raises(LockHeld, match=r"held by c \(exclusive, token 5, .*or give the token if it is yours"):
        decider.admit(world.lock(), None, NOW)
    decider.admit(world.lock(), 5, NOW)


def test_a_lock_is_taken_from_all_or_from_one(world: World) -> None:
    for name in "abc":
        world.ask(name, SHARED)
    world.ask("d")
    with pytest.raises(LockNotHeld, match="task x with token 9"):
        decider.take_away(world.lock(), "why", 9, NOW)
    assert world.store(decider.take_away(world.lock(), "why", 2, NOW)) == ["LockBroken bx"]
    events = decider.take_away(world.lock(), "why", None, NOW)
    assert ev.LockBroken("ax", "why") in events
    assert world.store(events) == ["LockBroken ax", "LockBroken cx", "LockGranted dx"]
    counts = world.lock().counts
    assert (counts.broken, counts.grants, counts.requests) == (3, 4, 4)
