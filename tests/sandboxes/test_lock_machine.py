"""The locks against a naive model: agents that come, wait, die, sleep, and break, while the clocks jump.

Every decision goes through the real deciders and the real projection; the model keeps a list of claims for each task,
and looks for circles by following every wait there is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandkeep.events import Event, Record, StaleFence, schema
from sandkeep.events import catalogue as ev
from sandkeep.projections import Lock, Locks, MemoryState, Mode, digest, fold, locks
from sandkeep.sandboxes import lock_decider as decider
from sandkeep.sandboxes.clock import BootTime
from sandkeep.sandboxes.errors import LockHeld, LockNotHeld

TASKS = st.sampled_from(["x", "x", "y", "z"])
SESSIONS = st.sampled_from(["a", "b", "c", "d", "e"])
MODES = st.sampled_from([Mode.EXCLUSIVE, Mode.COLLABORATIVE])
LEASES = st.sampled_from([1000, 60, 5])
SECOND = 1_000_000_000


class Entry:
    """A claim, as the model has it."""

    def __init__(self, claim: str, session: str, mode: Mode, lease: int, end: tuple[int, int]) -> None:
        self.claim, self.session, self.mode, self.lease, self.end = claim, session, mode, lease, end
        self.token = 0


def beside(one: Entry, other: Entry) -> bool:
    return one.mode is other.mode is Mode.COLLABORATIVE


class LockMachine(RuleBasedStateMachine):
    """Rules are what agents, time and the steward do; each is decided, folded, and done to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.state = MemoryState()
        self.records: list[Record] = []
        self.model: dict[str, list[Entry]] = {"x": [], "y": [], "z": []}
        self.boot, self.ns, self.wall = 0, 100 * SECOND, 10**18
        self.number = 0
        self.tokens: list[tuple[str, int]] = [("x", 0)]
        self.exclusive: list[int] = []

    # What the world is.

    @property
    def now(self) -> BootTime:
        return BootTime(f"boot {self.boot}", self.ns)

    def lock(self, task: str) -> Lock:
        return locks.find(self.state, task)

    def store(self, task: str, events: list[Event]) -> None:
        for event in events:
            name, version, body = schema.encode(event)
            position = len(self.records) + 1
            self.wall = max(self.wall, self.records[-1].time_ns if self.records else 0)
            record = Record(position, f"lock/{task}", 1, self.wall, "me", None, None, name, version, msgspec.Raw(body))
            self.records.append(record)
            Locks().apply(self.state, record)

    def late(self, entry: Entry) -> bool:
        return entry.end[0] != self.boot or entry.end[1] <= self.ns

    def settle(self, task: str) -> None:
        """The model's only rule: drop who is late, then grant in order until one cannot be."""
        entries = self.model[task]
        entries[:] = [entry for entry in entries if not self.late(entry)]
        for entry in entries:
            if entry.token:
                continue
            if not all(beside(entry, other) for other in entries if other.token):
                break
            entry.token = -1
            entry.end = (self.boot, self.ns + entry.lease)

    def settle_all(self) -> dict[str, list[Entry]]:
        """Settle as if somebody came to each lock; the model as it was, to go back to."""
        before = copy.deepcopy(self.model)
        for task in self.model:
            self.settle(task)
        return before

    def waits(self) -> dict[str, set[str]]:
        """Who waits for whom."""
        found: dict[str, set[str]] = {}
        for entries in self.model.values():
            for place, entry in enumerate(entries):
                if not entry.token:
                    ahead = [other for other in entries[:place] if not other.token]
                    ahead += [other for other in entries if other.token and not beside(entry, other)]
                    found.setdefault(entry.session, set()).update(other.session for other in ahead)
        return found

    def reaches_itself(self, session: str) -> bool:
        waits = self.waits()
        reached, found = set[str](), set(waits.get(session, ()))
        while found != reached:
            reached = set(found)
            found = reached.union(*(waits.get(each, set()) for each in reached))
        return session in found

    def holders(self, task: str) -> list[Entry]:
        return [entry for entry in self.model[task] if entry.token]

    # What agents do.

    @rule(task=TASKS, session=SESSIONS, mode=MODES, lease=LEASES, wait=st.sampled_from([True, True, True, False]))
    def request(self, task: str, session: str, mode: Mode, lease: int, wait: bool) -> None:
        self.number += 1
        claim = f"claim {self.number}"
        asked = ev.LockRequested(
            claim, f"agent {session}", session, mode, lease * SECOND, self.now.lease(lease * SECOND)
        )
        try:
            events: list[Event] = decider.request(
                self.lock(task), asked, lambda session: locks.waiting(self.state, session), wait, self.now
            )
        except LockHeld:
            events = []
            assert not wait
        before = self.settle_all()
        entry = Entry(claim, session, mode, lease * SECOND, (self.boot, self.ns + lease * SECOND))
        self.model[task].append(entry)
        self.settle(task)
        if not entry.token:
            assert bool(events) == wait
            circle = self.reaches_itself(session)
            assert wait <= (circle == any(isinstance(event, ev.DeadlockDetected) for event in events))
            if circle or not wait:
                self.model[task].remove(entry)
        else:
            assert isinstance(events[-1], ev.LockGranted)
        # Only the one lock was decided on: of the others nobody knows yet that time has passed.
        for name, entries in before.items():
            if name != task or not events:
                self.model[name] = entries
        self.store(task, events)
        self.compare(task, decided=bool(events))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        task, token = data.draw(st.sampled_from(self.tokens))
        self.ended(task, token, lambda: decider.release(self.lock(task), token, self.now))

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        task = data.draw(TASKS)
        lock = self.lock(task)
        claims = [each.id for each in (*lock.holding, *lock.waiting)] or ["none"]
        claim = data.draw(st.sampled_from(claims))
        entry = next((each for each in self.model[task] if each.claim == claim), None)
        alive = entry is not None and not self.late(entry)
        try:
            events = decider.renew(lock, claim, self.now)
        except StaleFence:
            assert not alive
            return
        assert alive
        assert entry is not None
        self.settle(task)
        entry.end = (self.boot, self.ns + entry.lease)
        self.store(task, events)
        self.compare(task, decided=len(events) > 1)

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        task = data.draw(TASKS)
        claims = [entry.claim for entry in self.model[task]] or ["none"]
        claim = data.draw(st.sampled_from(claims))
        events = decider.withdraw(self.lock(task), claim, self.now)
        entries = self.model[task]
        late = any(map(self.late, entries))
        waited = [entry for entry in entries if entry.claim == claim and not entry.token]
        entries[:] = [entry for entry in entries if entry not in waited]
        if waited or late:
            self.settle(task)
        self.store(task, events)
        self.compare(task, decided=bool(events))

    @rule(task=TASKS, one=st.booleans(), data=st.data())
    def take_away(self, task: str, one: bool, data: st.DataObject) -> None:
        held = [each.token for each in self.lock(task).holding] or [7]
        token = data.draw(st.sampled_from(held)) if one else None
        try:
            events = decider.take_away(self.lock(task), "it must end", token, self.now)
        except LockNotHeld:
            assert all(self.late(entry) for entry in self.holders(task) if token in (None, entry.token))
            return
        self.model[task] = [entry for entry in self.model[task] if not (entry.token and token in (None, entry.token))]
        self.settle(task)
        self.store(task, events)
        self.compare(task, decided=True)

    @rule(task=TASKS)
    def clean(self, task: str) -> None:
        """The steward, or whoever waits, ends what has run out."""
        events = decider.expire(self.lock(task), self.now)
        assert bool(events) == any(map(self.late, self.model[task]))
        self.settle(task)
        self.store(task, events)
        self.compare(task, decided=bool(events))

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """An agent acts under any token that there ever was, or with none."""
        task, token = data.draw(st.sampled_from(self.tokens))
        live = [entry for entry in self.holders(task) if not self.late(entry)]
        try:
            decider.admit(self.lock(task), token, self.now)
        except StaleFence:
            assert token not in [entry.token for entry in live]
        else:
            assert token in [entry.token for entry in live]
        try:
            decider.admit(self.lock(task), None, self.now)
        except LockHeld:
            assert [entry.mode for entry in live] == [Mode.EXCLUSIVE]
        else:
            assert Mode.EXCLUSIVE not in [entry.mode for entry in live]

    # What the world does.

    @rule(seconds=st.sampled_from([1, 4, 5, 59, 300]))
    def tick(self, seconds: int) -> None:
        """Time passes, for agents that sleep or are stopped as for all others."""
        self.ns += seconds * SECOND

    @rule(seconds=st.integers(-(10**8), 10**8))
    def set_the_wall_clock(self, seconds: int) -> None:
        """That frees and extends nothing: no deadline is touched in the model."""
        self.wall = max(0, self.wall + seconds * SECOND)

    @precondition(lambda self: self.number > 3)
    @rule(later=st.integers(0, 10**4))
    def reboot(self, later: int) -> None:
        """The clock begins anew, perhaps before the deadlines of leases that nobody can hold any more."""
        self.boot += 1
        self.ns = later * SECOND // 100

    # What must hold.

    def ended(self, task: str, token: int, decide: Callable[[], list[Event]]) -> None:
        entry = next((each for each in self.holders(task) if each.token == token and not self.late(each)), None)
        try:
            events = decide()
        except StaleFence:
            assert entry is None
            return
        assert entry is not None
        self.model[task].remove(entry)
        self.settle(task)
        self.store(task, events)
        self.compare(task, decided=True)

    def compare(self, task: str, *, decided: bool) -> None:
        """The lock is what the model says; tokens are learnt from it, each higher than all before."""
        lock = self.lock(task)
        assert [each.id for each in lock.waiting] == [each.claim for each in self.model[task] if not each.token]
        assert {each.id for each in lock.holding} == {each.claim for each in self.holders(task)}
        for claim in lock.holding:
            entry = next(each for each in self.model[task] if each.claim == claim.id)
            if entry.token == -1:
                assert claim.token > max(token for _, token in self.tokens)
                entry.token = claim.token
                self.tokens.append((task, claim.token))
            assert (claim.lease.boot, claim.lease.deadline_ns) == (f"boot {entry.end[0]}", entry.end[1])
        if decided:
            assert not any(map(self.late, self.model[task]))

    @invariant()
    def nobody_holds_beside_an_exclusive_one(self) -> None:
        for task in self.model:
            lock = self.lock(task)
            if any(each.mode is Mode.EXCLUSIVE for each in lock.holding):
                assert len(lock.holding) == 1

    @invariant()
    def no_circle_ever_stands(self) -> None:
        before = self.settle_all()
        assert not any(map(self.reaches_itself, "abcde"))
        self.model = before

    @invariant()
    def the_indexes_say_what_the_locks_say(self) -> None:
        for session in "abcde":
            waits = {task for task in self.model for each in self.lock(task).waiting if each.session == session}
            assert {lock.task for lock in locks.waiting(self.state, session)} == waits
        busy = {task for task in self.model if self.lock(task).holding or self.lock(task).waiting}
        assert {lock.task for lock in locks.live(self.state)} == busy

    @invariant()
    def every_claim_is_counted_once(self) -> None:
        for task in self.model:
            counts, lock = self.lock(task).counts, self.lock(task)
            ended = counts.released + counts.expired + counts.broken + counts.timed_out
            assert counts.requests == ended + len(lock.holding) + len(lock.waiting)
            assert counts.longest_wait_ns <= counts.waited_ns

    def teardown(self) -> None:
        again = MemoryState()
        fold((Locks(),), self.records, again)
        assert digest((Locks(),), again) == digest((Locks(),), self.state)


TestLocks = LockMachine.TestCase
TestLocks.settings = settings(max_examples=200, stateful_step_count=50)
