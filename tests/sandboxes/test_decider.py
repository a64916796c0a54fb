"""The deciders, as the pure functions they are: what each state of a task allows."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from sandkeep.events import Event, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.projections import Pending, TaskState
from sandkeep.projections.registry import Task
from sandkeep.sandboxes import decider
from sandkeep.sandboxes.errors import TaskBusy, TaskNotFound, TaskRefused

Decision = Callable[[Task | None], list[Event]]

LIMITS = ev.Limits(memory_bytes=1, nano_cpus=1, pids=1, tmp_bytes=1)
CREATED = ev.TaskCreated("i", "title", None, "image")
COMMAND = ev.CommandRequested("i", ("true",), "/workspace", (), 1)
SANDBOX = ev.SandboxRequested("i", "sha256:1", LIMITS)
PAUSE = ev.PauseRequested("i")
RESUME = ev.ResumeRequested("i")
RESTORE = ev.RestoreRequested("i", "c", "u")
CLEANUP = ev.CleanupRequested("i")
CHECKPOINT = ev.CheckpointCreated("c", "0" * 64, 1, 1, "")

DECISIONS: dict[str, tuple[Decision, list[Event], str]] = {
    "command": (lambda task: decider.begin(task, COMMAND), [COMMAND], "created active"),
    "sandbox": (lambda task: decider.begin(task, SANDBOX), [SANDBOX], "created active"),
    "pause": (lambda task: decider.pause(task, PAUSE), [PAUSE], "created active"),
    "resume": (lambda task: decider.resume(task, RESUME), [RESUME], "paused"),
    "restore": (lambda task: decider.restore(task, RESTORE), [RESTORE], "created active paused completed failed"),
    "record": (lambda task: decider.record(task, CHECKPOINT), [CHECKPOINT], "created active paused completed failed"),
    "complete": (lambda task: decider.complete(task, "s"), [ev.TaskCompleted("s")], "created active paused"),
    "fail": (lambda task: decider.fail(task, "r"), [ev.TaskFailed("r")], "created active paused"),
    "clean_up": (lambda task: decider.clean_up(task, CLEANUP), [CLEANUP], "completed failed"),
}
IDLE = ("pause", "restore", "complete", "fail", "clean_up")


def a_task(state: TaskState = TaskState.ACTIVE, *pending: str, container: str | None = None) -> Task:
    waiting = tuple(Pending(intent, "CommandRequested", 1, 1) for intent in pending)
    task = Task("0" * 12, "title", state, None, "image", 1, 1, 1, 1, container=container)
    return msgspec.structs.replace(task, pending=waiting)


def fitting(name: str) -> TaskState:
    return TaskState(DECISIONS[name][2].split()[-1])


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("name", DECISIONS)
def test_each_state_allows_what_the_life_cycle_says_and_nothing_else(name: str, state: TaskState) -> None:
    decide, events, allowed = DECISIONS[name]
    if state in allowed.split():
        assert decide(a_task(state)) == events
    else:
        with pytest.raises(TaskRefused, match="task 000000000000 does not allow that: it"):
            decide(a_task(state))


@pytest.mark.parametrize("name", DECISIONS)
def test_a_task_that_does_not_exist_is_not_found(name: str) -> None:
    with pytest.raises(TaskNotFound):
        DECISIONS[name][0](None)


@pytest.mark.parametrize("name", DECISIONS)
def test_what_must_be_alone_is_refused_while_something_is_under_way(name: str) -> None:
    decide, events, _ = DECISIONS[name]
    busy = a_task(fitting(name), "other")
    if name in IDLE:
        with pytest.raises(TaskBusy, match=r"busy \(CommandRequested\)"):
            decide(busy)
    else:
        assert decide(busy) == events


@pytest.mark.parametrize("name", ["command", "sandbox", "resume", "record"])
def test_there_is_a_most_that_may_be_under_way(name: str) -> None:
    decide, events, _ = DECISIONS[name]
    assert decide(a_task(fitting(name), *map(str, range(63)))) == events
    with pytest.raises(LimitReached, match="64 things under way"):
        decide(a_task(fitting(name), *map(str, range(64))))


def test_a_task_is_created_once() -> None:
    assert decider.create(None, CREATED) == [CREATED]
    with pytest.raises(TaskRefused, match="there is a task"):
        decider.create(a_task(), CREATED)


def test_an_outcome_needs_its_intent() -> None:
    outcome = ev.CommandFailed("mine", "code", "message")
    assert decider.settle(a_task(TaskState.ACTIVE, "other", "mine"), outcome) == [outcome]
    with pytest.raises(TaskRefused, match=r"CommandFailed .* comes too late"):
        decider.settle(a_task(TaskState.ACTIVE, "other"), outcome)
    with pytest.raises(TaskNotFound):
        decider.settle(None, outcome)


def test_giving_up_says_nothing_of_a_task_that_has_ended_or_never_began() -> None:
    assert decider.give_up(a_task(TaskState.CREATED, "pending"), "why") == [ev.TaskFailed("why")]
    for task in (None, *map(a_task, (TaskState.COMPLETED, TaskState.FAILED, TaskState.CLEANED))):
        assert decider.give_up(task, "why") == []


@pytest.mark.parametrize("event", [ev.SandboxLost("c1", "it was found removed"), ev.SandboxRemoved("c1")], ids=str)
def test_only_the_container_that_the_log_believes_in_can_be_lost(event: ev.SandboxLost | ev.SandboxRemoved) -> None:
    assert decider.lose(a_task(container="c1"), event) == [event]
    for task in (None, a_task(container="c2"), a_task()):
        assert decider.lose(task, event) == []
