from __future__ import annotations

import tempfile

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import Event, UnknownEvent
from sandkeep.events import catalogue as ev
from sandkeep.projections import Registry, Task, TaskState, digest, fold
from sandkeep.projections.lmdb_state import LmdbState
from sandkeep.projections.registry import busy, evolve, find, housed, matching, size, tasks

from ..events import strategies
from .support import created, folded, records

NOTHING = ev.Output(0)
STREAMS = st.sampled_from(["task/a", "task/b", "task/ab", "keep", "task", "image/a"])
HISTORIES = st.lists(st.tuples(STREAMS, strategies.events() | st.builds(created, st.just("a"))), max_size=20)


def after(*events: Event) -> Task:
    """Task `a`, created and then changed by `events`."""
    task = find(folded([("task/a", created("a")), *(("task/a", event) for event in events)]), "a")
    assert task is not None
    return task


def executed(exit_code: int, intent: str = "i") -> Event:
    return ev.CommandExecuted(intent, exit_code, 5, False, NOTHING, NOTHING)


def test_a_task_begins_with_what_was_asked_for() -> None:
    task = after()
    assert (task.id, task.title, task.state, task.source, task.image) == (
        "a",
        "Title of a",
        TaskState.CREATED,
        None,
        "base",
    )
    assert (task.created_ns, task.created_at, task.updated_ns, task.updated_at) == (100, 1, 100, 1)
    assert (task.container, task.commit, task.reason, task.executions, task.failures, task.checkpoints) == (
        *(None, None, None),
        *(0, 0, 0),
    )


def test_a_sandbox_is_idle_from_its_pause_to_its_next_use() -> None:
    begun = ev.SandboxStarted("i", "c"), ev.SandboxPaused("j", "c")
    assert after(*begun).idle
    assert after(*begun).state is TaskState.ACTIVE
    for event in (
        ev.SandboxResumed("c"),
        ev.SandboxLost("c", "gone"),
        ev.SandboxRemoved("c"),
        ev.SandboxStopped("k"),
        ev.SandboxStarted("k", "d"),
        ev.TaskResumed("k"),
        ev.TaskCleaned("k"),
    ):
        assert not after(*begun, event).idle


def test_when_a_sandbox_was_last_used_is_known() -> None:
    used = ev.SandboxStarted("i", "c"), executed(0)
    never, last = after(ev.TaskPaused("i"), ev.TaskResumed("i")), after(*used)
    assert (never.used_ns, last.used_ns) == (0, last.updated_ns)
    later = after(*used, ev.DecisionRecorded("x"), ev.SandboxPaused("j", "c"))
    assert later.used_ns == last.used_ns < later.updated_ns


def test_the_tasks_with_a_container_are_known() -> None:
    history = [(f"task/{name}", created(name)) for name in "abc"]
    for name in "ab":
        history.append((f"task/{name}", ev.SandboxStarted("i", name * 2)))
    assert [task.container for task in housed(folded(history))] == ["aa", "bb"]
    assert [task.id for task in housed(folded([*history, ("task/a", ev.SandboxStopped("i"))]))] == ["b"]
    assert [task.id for task in housed(folded([*history, ("task/b", ev.TaskCleaned("i"))]))] == ["a"]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([ev.SandboxStarted("i", "c")], TaskState.ACTIVE),
        ([ev.SandboxStarted("i", "c"), ev.TaskPaused("i")], TaskState.PAUSED),
        ([ev.SandboxStarted("i", "c"), ev.TaskPaused("i"), ev.TaskResumed("i")], TaskState.ACTIVE),
        ([ev.SandboxStarted("i", "c"), ev.TaskCompleted("s")], TaskState.COMPLETED),
        ([ev.TaskFailed("r")], TaskState.FAILED),
        ([ev.TaskFailed("r"), ev.TaskReopened("after all")], TaskState.ACTIVE),
        ([ev.TaskCompleted("s"), ev.TaskCleaned("i")], TaskState.CLEANED),
        ([ev.WorkspacePrepared("i", None)], TaskState.CREATED),
        ([ev.WorkspaceFailed("i", "c", "m")], TaskState.CREATED),
        ([ev.PauseRequested("i"), ev.PauseFailed("i", "c", "m")], TaskState.CREATED),
    ],
    ids=[
        *("active", "paused", "resumed", "completed", "failed", "reopened", "cleaned", "prepared", "unprepared"),
        "pause failed",
    ],
)
def test_the_life_of_a_task(events: list[Event], state: TaskState) -> None:
    folded_state = folded([("task/a", created("a")), *(("task/a", event) for event in events)])
    assert after(*events).state == state
    assert [task.id for task in tasks(folded_state, state)] == ["a"]
    assert list(tasks(folded_state, *(set(TaskState) - {state}))) == []


def test_a_task_knows_the_container_that_the_log_believes_in() -> None:
    started = ev.SandboxStarted("i", "c1")
    assert after(started).container == "c1"
    assert after(started, ev.SandboxLost("c1", "gone")).container is None
    assert after(started, ev.SandboxRemoved("c1")).container is None
    assert after(started, ev.SandboxStopped("i")).container is None
    assert after(started, ev.TaskCleaned("i")).container is None
    assert after(started, ev.SandboxLost("c1", "gone"), ev.SandboxStarted("j", "c2")).container == "c2"


def test_a_task_counts_what_was_done_in_it() -> None:
    task = after(
        ev.WorkspacePrepared("make a", "abc"),
        executed(0),
        executed(1),
        ev.CommandFailed("i", "c", "m"),
        ev.CheckpointCreated("c", "d", 1, 2, ""),
        ev.TaskFailed("reason"),
    )
    assert (task.commit, task.executions, task.failures, task.checkpoints) == ("abc", 3, 2, 1)
    assert (task.reason, task.updated_at, task.updated_ns) == ("reason", 7, 700)


def test_an_intent_is_pending_until_its_own_outcome() -> None:
    asked = [ev.CommandRequested(i, ("x",), "/", (), 1) for i in ("one", "two")]
    task = after(ev.WorkspacePrepared("make a", None), *asked)
    assert [(p.intent, p.kind, p.position, p.time_ns) for p in task.pending] == [
        ("one", "CommandRequested", 3, 300),
        ("two", "CommandRequested", 4, 400),
    ]
    task = after(ev.WorkspacePrepared("make a", None), *asked, executed(0, "two"))
    assert [p.intent for p in task.pending] == ["one"]
    assert after(*asked, executed(0, "two"), ev.CommandFailed("one", "c", "m")).pending[0].intent == "make a"


def test_busy_are_the_tasks_in_which_something_is_under_way() -> None:
    history = [("task/b", created("b")), ("task/a", created("a")), ("task/c", created("c"))]
    assert [task.id for task in busy(folded(history))] == ["a", "b", "c"]
    history.append(("task/b", ev.WorkspacePrepared("make b", None)))
    history.append(("task/c", ev.WorkspacePrepared("other", None)))
    assert [task.id for task in busy(folded(history))] == ["a", "c"]


def test_before_its_creation_there_is_no_task() -> None:
    state = folded([("task/a", ev.SandboxStarted("i", "c")), ("task/a", ev.TaskCompleted("s"))])
    assert (find(state, "a"), list(state.scan(b""))) == (None, [])


def test_a_second_creation_does_not_begin_the_task_anew() -> None:
    task = after(ev.SandboxStarted("i", "c"), ev.TaskCreated("again", "Other title", "source", "other"))
    assert (task.title, task.image, task.state, task.created_at) == ("Title of a", "base", TaskState.ACTIVE, 1)


def test_only_the_streams_of_tasks_matter() -> None:
    assert list(folded([(stream, created("a")) for stream in ("keep", "task", "image/task")]).scan(b"")) == []


def test_an_event_of_a_later_version_only_touches_the_task() -> None:
    before, touched = after(), after(UnknownEvent("Later", 1, b"\x80"))
    assert (touched.updated_at, touched.state, touched.pending) == (2, before.state, before.pending)


def test_tasks_are_told_by_state_in_order_of_creation() -> None:
    names = [f"{number:03}" for number in reversed(range(300))]
    history = [(f"task/{name}", created(name)) for name in names]
    state = folded([*history, ("task/150", ev.TaskFailed("r")), ("task/250", ev.SandboxStarted("i", "c"))])
    rest = [name for name in names if name not in ("150", "250")]
    assert [task.id for task in tasks(state, TaskState.CREATED)] == rest
    assert [task.id for task in tasks(state, TaskState.FAILED, TaskState.ACTIVE)] == ["150", "250"]
    assert [task.id for task in tasks(state)] == [*rest, "250", "150"]


def test_what_is_left_for_later_is_done_before_it_is_read() -> None:
    with tempfile.TemporaryDirectory() as folder, lmdb.open(folder) as env, env.begin(write=True) as txn:
        state = LmdbState(txn)
        for number, record in enumerate(records([(f"task/{name}", created(name)) for name in "abc"]), 1):
            fold([Registry()], [record], state)
            assert len(state.deferred) == 1
            assert len(list(tasks(state))) == number
            assert state.deferred == {}
        fold([Registry()], records([("task/d", created("d"))]), state)
        state.flush()
        assert txn.get(b"registry/vocabulary/d") == (1).to_bytes(8, "big")


def test_ids_are_found_by_their_beginning() -> None:
    state = folded([(f"task/{name}", created(name)) for name in ("b", "ab", "abc", "ac", "a")])
    assert matching(state, "a") == ["a", "ab", "abc", "ac"]
    assert matching(state, "ab") == ["ab", "abc"]
    assert matching(state, "x") == []
    assert matching(state, "") == ["a", "ab", "abc", "ac", "b"]


@given(HISTORIES)
def test_any_history_folds_and_always_to_the_same_state(history: list[tuple[str, Event]]) -> None:
    state = folded(history)
    assert digest([Registry()], state) == digest([Registry()], folded(history))
    every = list(tasks(state))
    streams = {f"task/{task.id}" for task in every}
    assert streams == {stream for stream, event in history if stream.startswith("task/") and is_creation(event)}
    assert len(every) == len(streams) == len(list(state.scan(b"registry/task/"))) == size(state)
    assert [find(state, task.id) for task in every] == every
    assert sorted(task.id for task in every if task.pending) == [task.id for task in busy(state)]


@given(HISTORIES)
def test_a_task_is_the_fold_of_its_own_records(history: list[tuple[str, Event]]) -> None:
    state = folded(history)
    for name in ("a", "b", "ab"):
        task: Task | None = None
        for record in records(history):
            if record.stream == f"task/{name}":
                task = evolve(task, record, record.event)
        assert find(state, name) == task


def is_creation(event: Event) -> bool:
    return isinstance(event, ev.TaskCreated)
