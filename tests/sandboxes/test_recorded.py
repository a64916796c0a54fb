"""The record of a task without an engine: what is asked of it, and what can be put on it."""

from __future__ import annotations

import pytest

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.projections import Decision, TaskState
from sandkeep.sandboxes import Keep, Task
from sandkeep.sandboxes.errors import TaskNotFound, TaskRefused

from .folders import add, described
from .support import types

OUT, NONE = ev.Output(3, b"out"), ev.Output(0, b"")


@pytest.fixture
def task(keep: Keep) -> Task:
    """A task with two commands, of which the second failed."""
    made = described(keep)
    for number, code in enumerate((0, 3), 1):
        add(
            keep,
            made.id,
            ev.CommandRequested(f"c{number}", ("x",), "/workspace", (), 1),
            ev.CommandExecuted(f"c{number}", code, 10, False, OUT, NONE),
        )
    return made


def test_a_decision_is_put_on_record(keep: Keep, task: Task) -> None:
    made = task.record_decision("  Use LMDB ", reason="readers never wait", alternatives=["SQLite", "files"])
    (found,) = task.decisions()
    assert made == found
    assert found == Decision(
        1, "Use LMDB", "readers never wait", ("SQLite", "files"), "tester", keep.head().position, found.time_ns
    )
    assert task.record_decision("another").number == 2
    assert task.stats().decisions == 2


@pytest.mark.parametrize("text", ["x" * 2000, "né 决 👩\u200d💻 \u202e", "<b>*"], ids=["long", "unicode", "markup"])
def test_any_line_can_be_decided(task: Task, text: str) -> None:
    assert task.record_decision(text, reason=text).text == text.strip()
    assert next(task.decisions()).reason == text.strip()


BAD = {"empty": " ", "long": "x" * 2001, "lines": "a\nb", "escape": "a\x1b[31m", "nul": "a\0", "separator": "a\u2028b"}
BAD |= {"surrogate": "a\udc80"}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_line_is_refused_and_nothing_is_stored(keep: Keep, task: Task, text: str) -> None:
    head = keep.head()
    with pytest.raises(BadInput, match=r"a decision .*; reword it"):
        task.record_decision(text)
    if text.strip():
        with pytest.raises(BadInput, match=r"a reason .*; reword it"):
            task.record_decision("x", reason=text)
    with pytest.raises(BadInput, match=r"an alternative .*; reword it"):
        task.record_decision("x", alternatives=["y", text])
    assert keep.head() == head


def test_alternatives_are_a_short_list(keep: Keep, task: Task) -> None:
    head = keep.head()
    with pytest.raises(BadInput, match="at most 10 alternatives"):
        task.record_decision("x", alternatives=["y"] * 11)
    with pytest.raises(BadInput, match="alternatives are a list"):
        task.record_decision("x", alternatives="SQLite")
    with pytest.raises(BadInput, match="an alternative has 1 to 500 characters"):
        task.record_decision("x", alternatives=["y" * 501])
    assert keep.head() == head
    widest = "\U0001f600"
    made = task.record_decision(widest * 2000, reason=widest * 2000, alternatives=[widest * 500] * 10)
    assert len(made.alternatives) == 10


def test_a_task_that_was_cleaned_up_or_never_made_decides_nothing(keep: Keep, task: Task) -> None:
    add(keep, task.id, ev.TaskFailed("no"))
    assert task.record_decision("not to go on").number == 1
    add(keep, task.id, ev.CleanupRequested("i9"), ev.TaskCleaned("i9"))
    assert task.state.state is TaskState.CLEANED
    with pytest.raises(TaskRefused, match="has been cleaned up"):
        task.record_decision("x")
    with pytest.raises(TaskNotFound):
        Task(keep, "0" * 12).record_decision("x")
    with pytest.raises(TaskNotFound):
        Task(keep, "0" * 12).stats()


def test_the_history_can_be_narrowed(task: Task) -> None:
    everything = types(task.history())
    assert everything == ["TaskCreated", "WorkspacePrepared", *["CommandRequested", "CommandExecuted"] * 2]
    assert types(task.history(4)) == everything[4:]
    assert types(task.history(last=3)) == everything[-3:]
    assert [record.revision for record in task.history(3, types={"CommandExecuted"})] == [4, 6]
    assert [record.revision for record in task.history(types=["CommandRequested", "TaskCreated"], last=2)] == [3, 5]
    assert types(task.history(last=100)) == everything
    assert types(task.history(6)) == []


def test_a_command_is_found_by_its_number(task: Task) -> None:
    assert [(each.number, each.exit_code) for each in task.executions()] == [(1, 0), (2, 3)]
    assert task.execution(2).command == "c2"
    for number in (0, 3):
        with pytest.raises(BadInput, match=f"has no execution {number}; 'sandkeep task-executions {task.id}'"):
            task.execution(number)


def test_the_numbers_are_those_of_the_stream(task: Task) -> None:
    found = task.stats()
    assert (found.events, found.executions, found.failures, found.output_bytes) == (6, 2, 1, 6)
    assert found.running_ns == 20
