"""The past of a keep, at positions and times, and what became of its tasks between two of them."""

from __future__ import annotations

import datetime

import pytest

from sandkeep.events import BadInput, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.projections import BadMoment, Change, Filter, Fit, TaskState
from sandkeep.sandboxes import Keep, description, view
from sandkeep.sandboxes.description import MAX_TAGS
from sandkeep.sandboxes.errors import BadId, TaskNotFound
from sandkeep.sandboxes.task import Task

ONE, TWO = "0123456789ab", "01ff56789abc"


@pytest.fixture
def lived(keep: Keep) -> Keep:
    """A keep, at whose position 2 task ONE is created, at 3 TWO as a part of it; both go on until 7."""
    for task, parent in ((ONE, None), (TWO, ONE)):
        event = ev.TaskCreated("i", f"Title of {task[:4]}", None, "image", "ann", ("old",), parent)
        keep.log.append(f"task/{task}", [event], actor="tester")
    keep.log.append(f"task/{ONE}", [ev.SandboxStarted("i", "c")], actor="tester")
    Task(keep, ONE).tag(add=["new"], remove=["old"])
    output = ev.Output(120)
    keep.log.append(f"task/{ONE}", [ev.CommandExecuted("j", 1, 5, False, output, output, 10**9)], actor="tester")
    keep.log.append(f"task/{TWO}", [ev.TaskFailed("gone")], actor="tester")
    return keep


def test_the_past_is_as_it_was(lived: Keep) -> None:
    states = []
    for position in range(2, 8):
        with lived.as_of(position) as then:
            assert then.position == position
            states.append([(task.id, task.state, task.tags) for task in then.tasks(reverse=True).tasks])
    created, failed = TaskState.CREATED, TaskState.FAILED
    assert states[0] == [(ONE, created, ("old",))]
    assert states[1] == [(ONE, created, ("old",)), (TWO, created, ("old",))]
    assert states[2][0] == (ONE, TaskState.ACTIVE, ("old",))
    assert states[3][0] == (ONE, TaskState.ACTIVE, ("new",))
    assert states[5][1] == (TWO, failed, ("old",))
    with lived.as_of() as now:
        assert [(task.id, task.state, task.tags) for task in now.tasks(reverse=True).tasks] == states[5]


def test_every_question_can_be_asked_of_the_past(lived: Keep) -> None:
    with lived.as_of(4) as then:
        assert [task.id for task in then.tasks(Filter(tags=("old",))).tasks] == [TWO, ONE]
        assert [(each.task.id, each.fit) for each in then.find("old 0123")] == [(ONE, Fit.WORDS)]
        assert then.task(TWO[:4]).parent == ONE
        assert then.checkpoints(ONE) == []
    with lived.as_of(2) as then, pytest.raises(TaskNotFound, match="no task 01ff"):
        then.task(TWO[:4])
    with lived.as_of(3) as then, pytest.raises(BadId, match="is no task id"):
        then.task("x")


def test_a_time_is_the_last_position_of_that_time(lived: Keep) -> None:
    times = {record.position: record.time_ns for record in lived.events()}
    for position in (1, 4, 7):
        last = max(other for other, time in times.items() if time == times[position])
        assert lived.log.position_as_of(times[position]) == last
        assert lived.log.position_as_of(times[position] - 1) < position
        exactly = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(
            microseconds=times[position] // 1000 + 1
        )
        assert view.position_at(lived, exactly) >= last
        assert view.position_at(lived, exactly.isoformat()) == view.position_at(lived, exactly)
    assert view.position_at(lived, "2001-01-01") == 0
    assert view.position_at(lived, "2999-01-01T00:00:00Z") == 7
    assert view.position_at(lived, "5") == 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1970-01-02", 86_400), ("1970-01-01T00:00:01Z", 1), ("1970-01-01T01:00:00+01:00", 0), ("1970-01-01 00:01", 60)],
)
def test_times_are_read_as_rfc_3339_has_them(text: str, seconds: int) -> None:
    assert view.nanoseconds(view.parse_time(text)) == seconds * 10**9


@pytest.mark.parametrize("moment", ["yesterday", "", "-1", "1e3", "9" * 30, "²", "2026-13-01"])
def test_what_is_no_moment_is_refused(lived: Keep, moment: str) -> None:
    with pytest.raises(BadMoment, match="neither a position nor a time"), lived.as_of(moment):
        pass


@pytest.mark.parametrize("moment", [8, "9", -1])
def test_the_future_cannot_be_asked(lived: Keep, moment: int | str) -> None:
    with pytest.raises(BadMoment), lived.as_of(moment):
        pass


def test_what_became_of_the_tasks_is_told_field_by_field(lived: Keep) -> None:
    first, second = lived.changes(3)
    assert (first.change, first.task.id) == (Change.CHANGED, ONE)
    assert first.fields == {
        "state": (TaskState.CREATED, TaskState.ACTIVE),
        "container": (None, "c"),
        "pending": (first.fields["pending"][0], ()),
        "tags": (("old",), ("new",)),
        "events": (1, 4),
        "executions": (0, 1),
        "failures": (0, 1),
        "cpu_ns": (0, 10**9),
        "bytes": (0, 240),
    }
    assert (second.change, second.task.id, second.fields["reason"]) == (Change.ENDED, TWO, (None, "gone"))
    assert [(each.change, each.task.id) for each in lived.changes(1, 3)] == [
        (Change.CREATED, ONE),
        (Change.CREATED, TWO),
    ]
    assert [(each.change, each.fields) for each in lived.changes(2)][1] == (Change.ENDED, {})
    assert lived.changes(7) == lived.changes(5, 5) == []
    with pytest.raises(BadMoment, match="the earlier moment first"):
        lived.changes(5, 4)


def test_a_task_ends_once(lived: Keep) -> None:
    lived.log.append(f"task/{TWO}", [ev.TaskCleaned("i")], actor="tester")
    assert [(each.change, each.task.id) for each in lived.changes(7)] == [(Change.CHANGED, TWO)]
    assert lived.changes(6)[-1].change is Change.ENDED


def test_tags_are_given_and_taken_once(lived: Keep) -> None:
    task, head = Task(lived, ONE), lived.head().position
    task.tag(add=["new"], remove=["never"])
    assert lived.head().position == head
    task.tag(add=["more", "new"])
    assert task.state.tags == ("more", "new")
    (record,) = lived.events(head)
    assert record.event == ev.TaskTagged(("more",), ())
    task.tag(add=[f"t{number}" for number in range(MAX_TAGS - 2)])
    with pytest.raises(LimitReached, match="more than 32 tags"):
        task.tag(add=["one too many"])


@pytest.mark.parametrize(
    ("add", "remove"),
    [([""], []), (["a\nb"], []), ([" a"], []), (["x" * 65], []), (["a"], ["a"]), ([], []), ("tag", [])],
    ids=["empty", "two lines", "spaces", "long", "both", "none", "no list"],
)
def test_what_are_no_tags_is_refused(add: list[str], remove: list[str]) -> None:
    with pytest.raises(BadInput):
        description.tagged(add, remove)
    with pytest.raises(BadInput, match="too many"):
        description.check_tags(str(number) for number in range(MAX_TAGS + 1))
