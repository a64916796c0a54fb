"""The line of a task's history: what leads to now, and what was left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import branches
from sandkeep.projections.branches import Described, Line, Turn

from .support import created, folded, records


def back(position: int, *, tags: tuple[str, ...] = (), decided: tuple[str, ...] = ()) -> ev.CheckpointRestored:
    return ev.CheckpointRestored("i", "c", "d", position, tags, decided)


def stream(*events: Event) -> list[tuple[str, Event]]:
    return [("task/a", event) for event in events]


HISTORY = stream(
    created("a"),
    ev.TaskTagged(("one",), ()),
    ev.DecisionRecorded("first"),
    ev.TaskTagged(("two",), ("one",)),
    ev.DecisionRecorded("second"),
    back(3, tags=("one",), decided=("first",)),
    ev.DecisionRecorded("third"),
    back(5, tags=("two",), decided=("first", "second")),
    ev.CheckpointRestored("i", "c", "files only"),
)


def on_line(events: list[tuple[str, Event]]) -> list[int]:
    line = Line(branches.turns(records(events)))
    return [position for position in range(1, len(events) + 1) if position in line]


def test_what_lies_between_a_checkpoint_and_the_restore_was_left() -> None:
    assert on_line(HISTORY[:5]) == [1, 2, 3, 4, 5]
    assert on_line(HISTORY[:6]) == [1, 2, 3, 6]
    assert on_line(HISTORY[:7]) == [1, 2, 3, 6, 7]
    # Back on the first branch: what had been left leads to now again, and what was done instead does not.
    assert on_line(HISTORY) == [1, 2, 3, 4, 5, 8, 9]


def test_the_line_to_a_position_of_the_past_is_what_it_was_then() -> None:
    turns = branches.turns(records(HISTORY))
    assert [position for position in range(1, 8) if position in Line(turns, 7)] == [1, 2, 3, 6, 7]


def test_what_described_a_task_is_known_of_every_position() -> None:
    told = [branches.described(records(HISTORY), position) for position in range(10)]
    assert told[0] == Described()
    assert told[3] == Described(("one",), ("first",))
    assert told[5] == Described(("two",), ("first", "second"))
    assert told[7] == Described(("one",), ("first", "third"))
    assert told[8] == told[9] == told[5]


def test_the_registry_goes_back_with_the_task_unless_only_files_do() -> None:
    from sandkeep.projections.registry import find

    for end, tags in ((5, ("two",)), (6, ("one",)), (8, ("two",)), (9, ("two",))):
        task = find(folded(HISTORY[:end]), "a")
        assert task is not None
        assert task.tags == tags


def test_only_the_last_decisions_are_told() -> None:
    events = stream(created("a"), *(ev.DecisionRecorded(f"{number}") for number in range(12)))
    assert branches.described(records(events), 13).decided == tuple(f"{number}" for number in range(2, 12))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=12))
def test_the_line_is_what_following_the_history_by_hand_gives(moves: list[tuple[int, int]]) -> None:
    turns = [Turn(at, to) for at, to in sorted(dict(moves).items()) if to < at]
    expected: list[int] = []
    lines: dict[int, list[int]] = {0: []}
    by_position = {turn.position: turn.back_to for turn in turns}
    for position in range(1, 51):
        expected = [*(lines[by_position[position]] if position in by_position else expected), position]
        lines[position] = expected
    line = Line(turns)
    assert [position for position in range(1, 51) if position in line] == expected
