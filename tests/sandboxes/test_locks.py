"""Locks of an open keep: waiting, renewing, losing and breaking them, and what is refused without one. No engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import pytest

from sandkeep.events import BadInput, Event, StaleFence
from sandkeep.events import catalogue as ev
from sandkeep.projections import Lock, registry
from sandkeep.sandboxes import Held, Keep, Task, steward
from sandkeep.sandboxes import locks as locks_module
from sandkeep.sandboxes.clock import BootTime
from sandkeep.sandboxes.errors import (
    BadTimeout,
    Deadlock,
    LockHeld,
    LockNotHeld,
    PolicyDenied,
    TaskNotFound,
    TaskRefused,
)
from sandkeep.sandboxes.locks import LockManager

from .support import Cli, eventually, reopened

LONG = 60.0


class FakeClock:
    """A boot clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.boot, self.ns = "boot", 10**9

    def __call__(self) -> BootTime:
        return BootTime(self.boot, self.ns)

    def pass_seconds(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


@pytest.fixture
def clock(keep: Keep) -> FakeClock:
    clock = FakeClock()
    keep.locking.close()
    keep.locking = LockManager(keep, clock)
    return clock


def make(keep: Keep, task_id: str = "0123456789ab") -> Task:
    """A task that only the log knows."""
    events: list[Event] = [ev.TaskCreated("i", "a test", None, "image"), ev.WorkspacePrepared("i", None)]
    keep.log.append(registry.STREAM + task_id, events, actor="tester")
    return keep.task(task_id)


@pytest.fixture
def task(keep: Keep) -> Task:
    return make(keep)


@pytest.fixture
def later() -> Callable[[Callable[[], Held]], Future[Held]]:
    """Runs something on a thread that holds up nobody, and gives what it returns or raises."""

    def start(work: Callable[[], Held]) -> Future[Held]:
        future: Future[Held] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    return start


def lock_of(keep: Keep) -> Lock:
    (lock,) = keep.locks(ever=True)
    return lock


def waits(keep: Keep, agents: list[str]) -> Callable[[], bool]:
    return lambda: [each.agent for lock in keep.locks() for each in lock.waiting] == agents


def write(task: Task, keep: Keep, word: str = "x") -> None:
    """An act on the task that needs no engine."""
    keep.locking.act(task.id, lambda state: [ev.TaskCompleted(word)], task.fence)


def test_a_lock_is_held_until_the_end_of_the_block(keep: Keep, task: Task) -> None:
    with task.lock(agent="fixer") as held:
        (record,) = keep.log.read(held.token - 1)
        assert isinstance(record.event, ev.LockGranted)
        assert (record.stream, record.event.agent, record.event.mode) == (f"lock/{task.id}", "fixer", "exclusive")
        assert [each.token for each in lock_of(keep).holding] == [held.token]
        write(held.task, keep)
    assert keep.locks() == []
    assert lock_of(keep).counts.released == 1


def test_a_task_that_nobody_locked_needs_no_token(keep: Keep, task: Task) -> None:
    write(task, keep)
    with task.lock("collaborative"):
        write(task, keep)


def test_beside_an_exclusive_holder_nothing_can_be_done_without_its_token(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    with task.lock(agent="fixer") as held:
        head = keep.head().position
        with pytest.raises(LockHeld, match=f"task {task.id} is held by fixer .*token {held.token}, 60 s of its lease"):
            write(task, keep)
        with pytest.raises(StaleFence):
            write(keep.task(task.id, held.token - 1), keep)
        monkeypatch.setattr(keep, "reconcile", list)
        for refused, error in ((task, LockHeld), (keep.task(task.id, 1), StaleFence)):
            with pytest.raises(error):
                refused.execute(["true"])
            with pytest.raises(error):
                refused.pause()
            with pytest.raises(error):
                refused.clean_up()
        assert keep.head().position == head


def test_waiters_are_granted_in_order_and_each_learns_its_own_token(
    keep: Keep, task: Task, later: Callable[..., Future[Held]]
) -> None:
    first = task.lock(agent="a")
    second = later(partial(task.lock, agent="b"))
    eventually(waits(keep, ["b"]))
    third = later(partial(task.lock, agent="c"))
    eventually(waits(keep, ["b", "c"]))
    first.release()
    with second.result(LONG) as held:
        assert held.token > first.token
        assert not third.done()
        with pytest.raises(StaleFence):
            write(first.task, keep)
    assert third.result(LONG).token > held.token
    third.result().release()
    counts = lock_of(keep).counts
    assert (counts.grants, counts.contended, counts.longest_wait_ns > 0) == (3, 2, True)


def test_collaborators_write_in_turn_and_the_later_token_does_not_end_the_earlier(keep: Keep, task: Task) -> None:
    one, two = task.lock("collaborative", agent="a"), task.lock("collaborative", agent="b")
    for held in (two, one, two, one):
        write(held.task, keep)
    one.release()
    write(two.task, keep)
    with pytest.raises(StaleFence):
        write(one.task, keep)
    two.release()


def test_who_has_waited_long_enough_is_told_who_holds_it(keep: Keep, task: Task) -> None:
    with task.lock(agent="fixer"):
        for timeout in (0, 0.05):
            with pytest.raises(LockHeld, match="held by fixer"):
                task.lock(timeout=timeout, session="other")
    counts = lock_of(keep).counts
    assert (counts.requests, counts.timed_out) == (2, 1)
    assert keep.locks() == []


def test_a_lost_lease_is_told_at_the_end_but_hides_no_other_error(keep: Keep, task: Task, clock: FakeClock) -> None:
    def lose(error: Exception | None) -> None:
        with task.lock():
            clock.pass_seconds(60)
            if error is not None:
                raise error

    with pytest.raises(StaleFence, match="acquire the lock again"):
        lose(None)
    with pytest.raises(KeyError):
        lose(KeyError("mine"))


def test_a_waiter_is_granted_when_the_holders_lease_runs_out(
    keep: Keep, task: Task, clock: FakeClock, later: Callable[..., Future[Held]]
) -> None:
    dead = keep.locking.acquire(task.id, agent="dead", lease=5, heartbeat=False)
    next_one = later(partial(task.lock, agent="next"))
    eventually(waits(keep, ["next"]))
    clock.pass_seconds(5)
    with next_one.result(LONG), pytest.raises(StaleFence):
        write(dead.task, keep)
    assert lock_of(keep).counts.expired == 1


def test_a_waiter_that_stood_still_asks_again(
    keep: Keep, task: Task, clock: FakeClock, later: Callable[..., Future[Held]]
) -> None:
    first = keep.locking.acquire(task.id, lease=600)
    slow = later(partial(task.lock, agent="slow", lease=5))
    eventually(waits(keep, ["slow"]))
    clock.pass_seconds(5)
    keep.locking.expire()
    eventually(lambda: lock_of(keep).counts.expired == 1)
    eventually(waits(keep, ["slow"]))
    first.release()
    slow.result(LONG).release()


def test_the_heartbeat_renews_what_is_held_and_nothing_else(keep: Keep, task: Task) -> None:
    with task.lock(lease=0.3) as held:
        eventually(lambda: len([each for each in keep.log.read() if each.type == "LockRenewed"]) > 3)
        assert [each.token for each in lock_of(keep).holding] == [held.token]
    count = keep.head().position
    with pytest.raises(StaleFence):
        held.renew()
    assert keep.head().position == count


def test_a_circle_is_refused_by_name_and_told_in_the_log(
    keep: Keep, task: Task, later: Callable[..., Future[Held]]
) -> None:
    other = make(keep, "ba9876543210")
    mine, theirs = task.lock(agent="a", session="a"), other.lock(agent="b", session="b")
    waiting = later(partial(other.lock, agent="a", session="a"))
    eventually(waits(keep, ["a"]))
    with pytest.raises(Deadlock, match=f"b waits for task {task.id}, a waits for task {other.id}, which b has"):
        task.lock(agent="b", session="b")
    (told,) = [each.event for each in keep.log.read() if isinstance(each.event, ev.DeadlockDetected)]
    assert told.cycle == (ev.Wait("b", task.id), ev.Wait("a", other.id))
    theirs.release()
    waiting.result(LONG).release()
    mine.release()


def test_a_lock_is_broken_for_a_reason_by_one_who_does_not_wait(
    keep: Keep, task: Task, later: Callable[..., Future[Held]]
) -> None:
    held = task.lock(agent="fixer")
    with pytest.raises(BadInput, match="for a reason"):
        keep.locking.take_away(task.id, " ")
    impatient = later(partial(task.lock, agent=keep.actor))
    eventually(waits(keep, [keep.actor]))
    with pytest.raises(PolicyDenied, match="who waits for a lock may not break it"):
        keep.locking.take_away(task.id, "mine now")
    keep.locking.may_break = lambda lock, actor: None
    (taken,) = keep.locking.take_away(task.id, "it is gone")
    assert (taken.agent, taken.token) == ("fixer", held.token)
    with pytest.raises(StaleFence):
        held.release()
    impatient.result(LONG).release()
    with pytest.raises(LockNotHeld):
        keep.locking.take_away(task.id, "again")
    (broken,) = [each for each in keep.log.read() if each.type == "LockBroken"]
    assert isinstance(broken.event, ev.LockBroken)
    assert (broken.actor, broken.event.reason) == ("tester", "it is gone")


def test_the_steward_ends_what_nobody_waits_for(
    keep: Keep, task: Task, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep.locking.acquire(task.id, agent="dead", lease=5, heartbeat=False)
    monkeypatch.setattr(type(keep.engine), "containers", lambda engine, keep: [])
    assert steward.reconcile(keep) == []
    clock.pass_seconds(5)
    assert steward.reconcile(keep) == [f"task {task.id}: the lease of dead ran out"]
    assert keep.locks() == []


def test_a_lock_outlives_the_process_that_took_it_until_the_next_boot(keep: Keep, task: Task) -> None:
    held = keep.locking.acquire(task.id, heartbeat=False)
    with reopened(keep) as again:
        with pytest.raises(LockHeld):
            again.task(task.id).lock(timeout=0)
        write(again.task(task.id, held.token), again)
        clock = FakeClock()
        again.locking = LockManager(again, clock)
        with again.task(task.id).lock(timeout=0) as mine:
            assert mine.token > held.token


def test_waiting_that_is_interrupted_leaves_the_queue(keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(event: threading.Event, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with task.lock():
        monkeypatch.setattr(threading.Event, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            task.lock(session="other")
        monkeypatch.undo()
    assert (keep.locks(), lock_of(keep).counts.timed_out) == ([], 1)


def test_what_cannot_be_is_refused_before_anything_is_stored(keep: Keep, task: Task) -> None:
    head = keep.head().position
    for options, error in (
        ({"mode": "shared"}, BadInput),
        ({"lease": 0.0}, BadTimeout),
        ({"lease": float("nan")}, BadTimeout),
        ({"lease": 1e9}, BadTimeout),
        ({"timeout": -1.0}, BadTimeout),
        ({"timeout": float("inf")}, BadTimeout),
        ({"agent": "a\nb"}, BadInput),
    ):
        with pytest.raises(error):
            task.lock(**options)
    with pytest.raises(TaskNotFound):
        keep.locking.acquire("ffffffffffff")
    with pytest.raises(StaleFence):
        keep.locking.release(task.id, 1)
    for token in (0, -1, 2**63, 1):
        with pytest.raises(StaleFence):
            write(keep.task(task.id, token), keep)
    assert keep.head().position == head


def test_a_task_of_which_nothing_is_left_cannot_be_locked(keep: Keep, task: Task) -> None:
    events: list[Event] = [ev.TaskCompleted(""), ev.CleanupRequested("c"), ev.TaskCleaned("c")]
    keep.log.append(registry.STREAM + task.id, events, actor="tester")
    with pytest.raises(TaskRefused, match="has been cleaned up"):
        task.lock()


def test_the_command_line_attaches_shows_breaks_and_detaches(keep: Keep, task: Task, cli: Cli) -> None:
    keep.close()
    attached = cli("attach", task.id, "--agent", "fixer", "--json").json
    assert attached == {
        "task": task.id, "agent": "fixer", "mode": "exclusive", "token": attached["token"], "lease_s": 3600.0,
    }  # fmt: skip
    assert cli("attach", task.id, "--agent", "other", "--timeout", "0").refused("lock-held", 1)
    assert cli("attach", task.id, "--agent", "fixer").refused("deadlock", 1)
    (lock,) = cli("locks", "--json").json
    assert [(each["agent"], each["token"]) for each in lock["holding"]] == [("fixer", attached["token"])]
    assert 3500 < lock["holding"][0]["left_s"] <= 3600
    assert (lock["counts"]["grants"], lock["counts"]["deadlocks"]) == (1, 1)
    shown = cli("locks").stdout.decode()
    assert "fixer" in shown
    assert "holds" in shown
    assert cli("cleanup-task", task.id).refused("lock-held", 1)
    assert cli("cleanup-task", task.id, "--token", "1").refused("stale-fence", 1)
    assert cli("execute", task.id, "--token", "1", "--", "true").refused("stale-fence", 1)
    assert cli("break-lock", task.id, "--reason", "gone").stdout.decode() == (
        f"{task.id}  taken from fixer, token {attached['token']}\n"
    )
    assert cli("break-lock", task.id, "--reason", "gone").refused("lock-not-held", 1)
    assert cli("detach", task.id, "--token", str(attached["token"])).refused("stale-fence", 1)
    assert cli("detach", task.id).refused("bad-usage", 2)
    token = cli("attach", task.id, "--mode", "collaborative").stdout.decode().strip()
    assert cli("detach", task.id, "--token", token, "--json").json == {"task": task.id, "token": int(token)}
    assert cli("locks").stdout.decode() == "nobody holds a lock or waits for one\n"
    assert len(cli("locks", "--all", "--json").json) == 1


def test_no_lock_holds_up_the_steward(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    keep.log.append("task/0123456789ab", [ev.TaskCreated("i", "half made", None, "image")], actor="tester")
    monkeypatch.setattr(type(keep.engine), "containers", lambda engine, keep: [])
    task = keep.task("0123456789ab")
    with task.lock():
        assert steward.reconcile(keep)[-1] == f"task {task.id}: cleaned up"
    assert task.state.state == "cleaned"


def test_a_waiter_is_woken_by_the_bell_alone(
    keep: Keep, task: Task, later: Callable[..., Future[Held]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks_module, "_LOOK_SECONDS", 3600.0)
    with keep.locking.acquire(task.id, lease=600):
        waiting = later(partial(task.lock, agent="next", lease=600))
        eventually(waits(keep, ["next"]))
    waiting.result(LONG).release()
