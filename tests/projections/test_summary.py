"""What a task's stream tells: its commands paired with their outcomes, its decisions, its numbers."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import Decision, Execution, Stats, Task
from sandkeep.projections.registry import evolve
from sandkeep.projections.summary import Tally, decisions, executions, stats, tally

from ..events import strategies
from .support import created, records

OUT, ERR = ev.Output(3, b"out"), ev.Output(70_000, blob="b" * 64, truncated=True)


def asked(intent: str, *argv: str) -> ev.CommandRequested:
    return ev.CommandRequested(intent, argv or ("true",), "/workspace", ("A",), 5)


def ran(intent: str, code: int = 0, *, late: bool = False) -> ev.CommandExecuted:
    return ev.CommandExecuted(intent, code, 1000, late, OUT, ERR)


def folded(events: list[Event]) -> tuple[Task, list[Execution], list[Decision], Stats]:
    found = records(("task/a", event) for event in events)
    task = None
    for record in found:
        task = evolve(task, record, record.event)
    assert task is not None
    return task, list(executions(found)), list(decisions(found)), stats(task, tally(found))


def test_commands_are_paired_with_their_outcomes_however_they_overlap() -> None:
    _, found, _, _ = folded(
        [
            created("a"),
            asked("i1", "sh", "-c", "x"),
            asked("i2"),
            ran("i2", 7),
            asked("i3"),
            asked("i4"),
            ev.CommandFailed("i4", "interrupted", "it ended"),
            ran("i1", 124, late=True),
        ]
    )
    assert [(each.number, each.command, each.exit_code, each.code) for each in found] == [
        (2, "i2", 7, None),
        (4, "i4", None, "interrupted"),
        (1, "i1", 124, None),
        (3, "i3", None, None),
    ]
    assert [each.failed for each in found] == [True, True, True, False]
    first = next(each for each in found if each.number == 1)
    assert first == Execution(
        1, "i1", "me", ("sh", "-c", "x"), "/workspace", ("A",), 5, 2, 200, 800, 124, 1000, True, OUT, ERR
    )
    assert (found[1].ended_ns, found[1].duration_ns, found[1].stdout, found[1].message) == (700, None, None, "it ended")
    assert (found[3].ended_ns, found[3].timed_out) == (None, False)


def test_a_command_that_went_well_has_not_failed() -> None:
    _, (found,), _, _ = folded([created("a"), asked("i"), ran("i")])
    assert (found.failed, found.exit_code) == (False, 0)


def test_outcomes_that_nobody_asked_for_are_passed_over() -> None:
    _, found, _, numbers = folded([created("a"), ran("i"), ran("i"), asked("i"), ran("i")])
    assert [(each.number, each.position, each.ended_ns) for each in found] == [(1, 4, 500)]
    assert numbers.executions == 3


def test_decisions_are_numbered() -> None:
    _, _, found, _ = folded(
        [created("a"), ev.DecisionRecorded("x", "because", ("y", "z")), asked("i"), ev.DecisionRecorded("w")]
    )
    assert found == [
        Decision(1, "x", "because", ("y", "z"), "me", 2, 200),
        Decision(2, "w", "", (), "me", 4, 400),
    ]


def test_the_numbers_of_a_task() -> None:
    _, _, _, found = folded(
        [
            created("a"),
            asked("i1"),
            ran("i1", 124, late=True),
            asked("i2"),
            ran("i2"),
            ev.CheckpointCreated("c", "d", 1, 2, ""),
            ev.RestoreRequested("i3", "c", "u"),
            ev.CheckpointRestored("i3", "c", "d"),
            ev.DecisionRecorded("x"),
            asked("i4"),
            ev.CommandFailed("i4", "c", "m"),
        ]
    )
    assert found == Stats(
        events=11,
        executions=3,
        failures=2,
        timed_out=1,
        running_ns=2000,
        output_bytes=2 * 70_003,
        checkpoints=1,
        restores=1,
        decisions=1,
    )


@given(st.lists(strategies.events(), max_size=20))
def test_any_stream_has_a_summary(events: list[Event]) -> None:
    task, found, decided, numbers = folded([created("a"), *events])
    assert len(decided) == numbers.decisions == sum(isinstance(event, ev.DecisionRecorded) for event in events)
    assert numbers.events == len(events) + 1
    requests = [event.intent for event in events if isinstance(event, ev.CommandRequested)]
    # One that is asked for again under the same id, which no decider does, is listed as the last of them.
    last = {intent: number for number, intent in enumerate(requests, 1)}
    assert sorted((each.command, each.number) for each in found) == sorted(last.items())
    assert numbers.executions == task.executions


@pytest.mark.parametrize("name", msgspec.structs.fields(Tally), ids=lambda field: field.name)
def test_nothing_is_counted_in_an_empty_stream(name: msgspec.structs.FieldInfo) -> None:
    assert getattr(tally([]), name.name) == 0
