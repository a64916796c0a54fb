"""Locks on tasks: acquired with a timeout, held by lease, fenced by token.

Who must wait stands in the log (`LockRequested`), and the transaction that frees the lock grants it to the next one, so
no wake-up can be lost with a process. A waiter follows the lock's stream: a bell says when to look (see `lock_bells`),
and it looks once a second without one, since a process can be killed between its commit and the ring. It also looks
when the next lease ahead of it runs out, and then expires that by itself.

A lease of ours is renewed by a heartbeat. If it is lost nevertheless (the process stood still for too long, somebody
broke the lock), whatever is done under the old token is refused inside the log's transaction. See `lock_decider`.

Threads and processes may use locks as they like; they wait, and deadlock, by *session*: by default each thread is one.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, final

from sandkeep.events import Event, Receipt, SandkeepError, StaleFence, late
from sandkeep.events import catalogue as ev
from sandkeep.events.names import check_actor
from sandkeep.projections import Claim, Lock, Mode, StateView, TaskState, forks, locks, registry
from sandkeep.sandboxes import fork_decider, lock_options
from sandkeep.sandboxes import lock_decider as decider
from sandkeep.sandboxes.clock import BootTime, Clock, boot_clock
from sandkeep.sandboxes.errors import Deadlock, LockHeld, PolicyDenied, TaskNotFound, TaskRefused
from sandkeep.sandboxes.heartbeat import Heartbeat
from sandkeep.sandboxes.lock_bells import Bells

if TYPE_CHECKING:
    from sandkeep.sandboxes import merging, own_workspace
    from sandkeep.sandboxes.keep import Keep
    from sandkeep.sandboxes.task import Task
else:
    globals().update(late.bound("sandkeep.sandboxes", "merging own_workspace"))

BreakPolicy = Callable[[Lock, str], str | None]
"""Why the actor may not break the lock; None if it may. Pure: it is asked inside the transaction."""

_RENEWALS = 3
"""In how many parts a lease is renewed: two renewals may fail before it runs out."""

_LOOK_SECONDS = 1.0
_OWN = (ev.LockRequested, ev.LockRenewed, ev.DeadlockDetected)
"""What changes nothing for the others in the queue."""

_logger = logging.getLogger(__name__)


def who_waits_may_not(lock: Lock, actor: str) -> str | None:
    """The default policy: whoever does not wait for the lock may break it. The impatient must not jump its queue."""
    return "who waits for a lock may not break it" if any(each.agent == actor for each in lock.waiting) else None


@final
class Held:
    """A lock that is held; a context manager that releases it."""

    def __init__(self, manager: LockManager, task_id: str, claim: str, token: int, heartbeat: int | None) -> None:
        """Use `Task.lock` instead."""
        self._manager = manager
        self._task_id = task_id
        self._claim = claim
        self._heartbeat = heartbeat
        self.token = token

    @property
    def task(self) -> Task:
        """The task, acting under the fencing token; in a workspace of its own, if the task's rules say so."""
        return self._manager.task(self._task_id, self.token)

    def renew(self) -> None:
        """Begin the lease anew. Raises `StaleFence` if the lock is no longer held."""
        self._manager.renew(self._task_id, self._claim)

    def release(self) -> merging.Merged | None:
        """Give the lock back. What was done in an own workspace is merged first; what became of that, if there was one.

        Raises `StaleFence` if it was lost meanwhile: then others may have acted on the task. Raises as `merging.merge`
        does, `TaskBusy` for one; then it is still held.
        """
        merged = self._manager.merge(self._task_id, self.token)
        self._stop()
        self._manager.release(self._task_id, self.token)
        return merged

    def _stop(self) -> None:
        if self._heartbeat is not None:
            self._manager.heartbeat.remove(self._heartbeat)

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except SandkeepError as lost:
            self._stop()  # nobody will ask again, so it must run out
            if error is None:
                raise
            _logger.warning("the lock was not released: %s", lost)  # what went wrong inside matters more


@final
class LockManager:
    """The locks of an open keep."""

    def __init__(self, keep: Keep, clock: Clock | None = None) -> None:
        """Use `Keep.locking` instead. `may_break` may be set to another policy."""
        self._keep = keep
        self._clock = clock or boot_clock()
        self._session = secrets.token_hex(8)
        self._bells = Bells(keep.path / "run" / "locks")
        self.heartbeat = Heartbeat()
        self.may_break: BreakPolicy = who_waits_may_not

    def acquire(
        self,
        task_id: str,
        *,
        mode: str = Mode.EXCLUSIVE,
        timeout: float | None = None,
        lease: float = lock_options.DEFAULT_LEASE_SECONDS,
        agent: str | None = None,
        session: str | None = None,
        heartbeat: bool = True,
        stop: threading.Event | None = None,
    ) -> Held:
        """Hold the task's lock, waiting `timeout` seconds for it at most: 0 is to try only once, None to wait for ever.

        It is held for `lease` seconds at a time, renewed by the `heartbeat` unless that is left out. `agent` is whose
        it is, by default the keep's actor; `session` is who waits, by default this thread. Raises `LockHeld` when the
        time is up, or within a second once `stop` is set, `Deadlock` at once, `TaskNotFound`, `TaskRefused`,
        `LimitReached`, `BadInput` and `BadTimeout`.
        """
        mode, lease_ns = lock_options.check_mode(mode), lock_options.check_lease(lease)
        timeout_ns = lock_options.check_timeout(timeout)
        agent = check_actor(agent or self._keep.actor)
        session = session or f"{self._session}-{threading.get_ident():x}"
        give_up = None if timeout_ns is None else self._clock().ns + timeout_ns
        token = None
        while token is None:  # again, if this process stood still until its place in the queue had lapsed
            claim = secrets.token_hex(8)
            try:
                revision, token = self._request(task_id, claim, agent, session, mode, lease_ns, timeout_ns != 0)
                if token is None:
                    token = self._wait(task_id, claim, lease_ns, revision, give_up, stop or threading.Event())
            except (LockHeld, Deadlock):
                raise
            except BaseException:  # interrupted, or the log failed: our place must not hold up the others
                with contextlib.suppress(SandkeepError):
                    if (granted := self.withdraw(task_id, claim)) is not None:
                        self.release(task_id, granted)
                raise
        renew = partial(self.renew, task_id, claim)
        number = self.heartbeat.add(lease_ns / 1e9 / _RENEWALS, renew) if heartbeat else None
        return Held(self, task_id, claim, token, number)

    def task(self, task_id: str, token: int) -> Task:
        """The task, acting under a fencing token; in a workspace of its own, if the task's rules say so."""
        return own_workspace.task(self._keep, task_id, token)

    def renew(self, task_id: str, claim: str) -> None:
        """Begin the lease of a claim anew. Raises `StaleFence` if it has ended."""
        self._decide(task_id, lambda lock, _: decider.renew(lock, claim, self._clock()))

    def merge(self, task_id: str, token: int) -> merging.Merged | None:
        """Merge what the holder of `token` did in an own workspace, if they have one. Raises as `merging` does."""
        with self._keep.projections.reading() as state:
            found = [fork for fork in forks.unmerged(state, task_id) if fork.token == token]
        if not found:
            return None
        with self.renewing(task_id, token):
            return merging.merge(self._keep, found[0], token)

    def release(self, task_id: str, token: int) -> merging.Merged | None:
        """Give back the lock held by `token`, having merged what was done under it in an own workspace; what became of
        that, if there was one. Raises `StaleFence` if it is held no more, and as `merging.merge` does."""
        merged = self.merge(task_id, token)
        self._decide(task_id, lambda lock, _: decider.release(lock, token, self._clock()))
        return merged

    def take_away(self, task_id: str, reason: str, token: int | None = None) -> list[Claim]:
        """Break the lock: take it from all who hold it, or the one with `token`, and return whom it was taken from.

        Raises `PolicyDenied` if `may_break` does not allow it, and `LockNotHeld`.
        """
        reason = lock_options.check_reason(reason)
        taken: list[Claim] = []

        def take(lock: Lock, state: StateView) -> list[Event]:
            if (why := self.may_break(lock, self._keep.actor)) is not None:
                raise PolicyDenied(f"{self._keep.actor} may not break the lock of task {task_id}: {why}; ask another")
            events = decider.take_away(lock, reason, token, self._clock())
            broken = {event.claim for event in events if isinstance(event, ev.LockBroken)}
            taken[:] = [each for each in lock.holding if each.id in broken]
            return events

        self._decide(task_id, take)
        return taken

    def expire(self) -> list[str]:
        """End all leases that have run out, and tell whose, a line each. The steward does this."""
        now = self._clock()
        with self._keep.projections.reading() as state:
            late = [
                (lock.task, each)
                for lock in locks.live(state)
                for each in (*lock.holding, *lock.waiting)
                if now.over(each.lease)
            ]
        for task_id in dict.fromkeys(task_id for task_id, _ in late):
            self._expire(task_id)
        return [
            f"task {task_id}: the {'lease' if each.token else 'place in the queue'} of {each.agent} ran out"
            for task_id, each in late
        ]

    @contextlib.contextmanager
    def renewing(self, task_id: str, token: int | None) -> Iterator[None]:
        """Renew the lease of `token`, if one is given, now and until the end of the block. Raises `StaleFence`."""
        claim = self.check(task_id, token)
        if claim is None:
            yield
            return
        self.renew(task_id, claim.id)
        number = self.heartbeat.add(claim.lease_ns / 1e9 / _RENEWALS, partial(self.renew, task_id, claim.id))
        try:
            yield
        finally:
            self.heartbeat.remove(number)

    def check(self, task_id: str, token: int | None) -> Claim | None:
        """What `act` will refuse, refused now, before there is an effect; the claim of `token`, if one is given."""
        with self._keep.projections.reading() as state:
            return fork_decider.admit(state, task_id, token, self._clock())

    def act(self, task_id: str, decision: Callable[[registry.Task | None], list[Event]], token: int | None) -> Receipt:
        """Store what `decision` makes of the task, if the task's lock admits who holds `token`, or no token.

        Raises `StaleFence` and `LockHeld`, decided inside the transaction, and `WorkspaceUnmerged` for what would end a
        task too early. An exclusive token also raises the log's own fence on the task's stream; a collaborative one
        does not, since a later one does not end the earlier.
        """

        return self.act_on(task_id, lambda state: decision(registry.find(state, task_id)), token)

    def act_on(self, task_id: str, decision: Callable[[StateView], list[Event]], token: int | None) -> Receipt:
        """As `act`, for a decision that needs more than the task."""

        def decide(state: StateView, now: BootTime) -> list[Event]:
            fork_decider.admit(state, task_id, token, now)
            events = decision(state)
            fork_decider.end(state, registry.find(state, task_id), events)
            return events

        claim = None if token is None else self.check(task_id, token)
        fence = token if claim is not None and claim.mode is Mode.EXCLUSIVE else None
        return self.decide(task_id, decide, fence)

    def decide(
        self, task_id: str, decision: Callable[[StateView, BootTime], list[Event]], fence: int | None = None
    ) -> Receipt:
        """Store on the task's stream what `decision` makes of what is true and of the time, inside the transaction."""
        return self._keep.log.decide(
            registry.STREAM + task_id, lambda state: decision(state, self._clock()), actor=self._keep.actor, fence=fence
        )

    def now(self) -> BootTime:
        """The time that leases are measured by."""
        return self._clock()

    def close(self) -> None:
        """End the heartbeat and all waiting. What is held is not released, but left to its lease."""
        self.heartbeat.close()
        self._bells.close()

    def _request(
        self, task_id: str, claim: str, agent: str, session: str, mode: Mode, lease_ns: int, wait: bool
    ) -> tuple[int, int | None]:
        """Ask for the lock; the revision of its stream after that, and the token if it was granted."""
        decided: list[Event] = []

        def decide(lock: Lock, state: StateView) -> list[Event]:
            _existing(registry.find(state, task_id))
            now = self._clock()
            asked = ev.LockRequested(claim, agent, session, mode, lease_ns, now.lease(lease_ns))
            decided[:] = decider.request(lock, asked, partial(locks.waiting, state), wait, now)
            return decided

        receipt = self._decide(task_id, decide)
        for position, event in enumerate(decided, receipt.first):
            if isinstance(event, ev.DeadlockDetected) and event.claim == claim:
                raise Deadlock(decider.words(event.cycle))
            if isinstance(event, ev.LockGranted) and event.claim == claim:
                return receipt.revision, position
        return receipt.revision, None

    def _wait(
        self, task_id: str, claim: str, lease_ns: int, revision: int, give_up: int | None, stop: threading.Event
    ) -> int | None:
        """Until the claim is granted: its token; None if it lapsed. Raises `LockHeld` when it is time to `give_up`."""
        with self._bells.heard(task_id) as woken:
            return self._follow(task_id, claim, lease_ns, revision, give_up, woken, stop)

    def _follow(
        self, task_id: str, claim: str, lease_ns: int, revision: int, give_up: int | None, *told: threading.Event
    ) -> int | None:
        woken, stop = told
        renew_at, expiry = self._clock().ns + lease_ns // _RENEWALS, self._next_expiry(task_id, claim)
        while True:
            woken.clear()
            news = list(self._keep.log.read_stream(locks.STREAM + task_id, revision))
            token: int | None = None
            for record in news:
                revision = record.revision
                match record.event:
                    case ev.LockGranted(claim=one) if one == claim:
                        token = record.position
                    case ev.LockExpired(claim=one) | ev.LockBroken(claim=one) if one == claim:
                        return None
            if token is not None:
                return token
            if news:
                expiry = self._next_expiry(task_id, claim)
            now = self._clock().ns
            if stop.is_set() or (give_up is not None and now >= give_up):
                token = self.withdraw(task_id, claim)
                if token is None:
                    raise LockHeld(self._in_the_way(task_id))
                return token
            if now >= renew_at:
                try:
                    self.renew(task_id, claim)
                except StaleFence:
                    return None
                renew_at = now + lease_ns // _RENEWALS
            elif now >= expiry:
                self._expire(task_id)
                expiry = self._next_expiry(task_id, claim)
            else:
                until = min(renew_at, expiry, *(() if give_up is None else (give_up,)))
                woken.wait(min(_LOOK_SECONDS, (until - now) / 1e9))

    def _next_expiry(self, task_id: str, claim: str) -> int:
        """When the first of the other leases runs out, on our boot's clock."""
        now = self._clock()
        with self._keep.projections.reading() as state:
            lock = locks.find(state, task_id)
        leases = [each.lease for each in (*lock.holding, *lock.waiting) if each.id != claim]
        return now.ns + min((now.left_ns(lease) for lease in leases), default=int(lock_options.MAX_LEASE_SECONDS * 1e9))

    def withdraw(self, task_id: str, claim: str) -> int | None:
        """Leave the queue with a claim; its token, if it was granted meanwhile, which stays."""
        token: list[int] = []

        def decide(lock: Lock, state: StateView) -> list[Event]:
            found = lock.find(claim)
            token[:] = [found.token] if found is not None and found.token else []
            return decider.withdraw(lock, claim, self._clock())

        self._decide(task_id, decide)
        return token[0] if token else None

    def _in_the_way(self, task_id: str) -> str:
        with self._keep.projections.reading() as state:
            return decider.held_by(locks.find(state, task_id), self._clock())

    def _expire(self, task_id: str) -> None:
        self._decide(task_id, lambda lock, _: decider.expire(lock, self._clock()))

    def _decide(self, task_id: str, decision: Callable[[Lock, StateView], list[Event]]) -> Receipt:
        concerns_others = False

        def decide(state: StateView) -> list[Event]:
            nonlocal concerns_others
            lock = locks.find(state, task_id)
            events = decision(lock, state)
            concerns_others = bool(lock.waiting) and not all(isinstance(event, _OWN) for event in events)
            return events

        receipt = self._keep.log.decide(locks.STREAM + task_id, decide, actor=self._keep.actor)
        if concerns_others:
            self._bells.ring(task_id)
        return receipt


def _existing(task: registry.Task | None) -> None:
    if task is None:
        raise TaskNotFound("there is no such task; 'sandkeep list-tasks' shows those there are")
    if task.state is TaskState.CLEANED:
        raise TaskRefused(f"task {task.id} does not allow that: it has been cleaned up; create a new task")
