from __future__ import annotations

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections.checkpoints import (
    Checkpoint,
    checkpoints,
    find,
    having,
    last_expired_ns,
    newest,
    origin,
    used,
)

from .support import created, folded


def taken(name: str) -> ev.CheckpointCreated:
    return ev.CheckpointCreated(f"id {name}", f"digest {name}", 3, 40, f"label {name}", ("torn",))


def test_the_checkpoints_of_a_task_are_told_in_the_order_they_were_taken() -> None:
    state = folded(
        [
            ("task/a", created("a")),
            ("task/a", taken("2")),
            ("task/ab", taken("other")),
            ("task/a", taken("1")),
            ("task/a", ev.TaskCompleted("x")),
            ("keep", taken("no task")),
        ]
    )
    first, second = checkpoints(state, "a")
    assert first == Checkpoint("id 2", "a", "digest 2", 3, 40, "label 2", ("torn",), position=2, time_ns=200)
    assert (second.id, second.position) == ("id 1", 4)
    assert [checkpoint.id for checkpoint in checkpoints(state, "ab")] == ["id other"]
    assert list(checkpoints(state, "none")) == []
    assert sorted(having(state)) == ["a", "ab"]


def test_more_than_256_checkpoints_stay_in_order() -> None:
    state = folded([("task/a", taken(f"{number}")) for number in range(300)])
    assert [checkpoint.position for checkpoint in checkpoints(state, "a")] == list(range(1, 301))


def test_what_is_kept_and_what_expired() -> None:
    state = folded(
        [
            ("task/a", created("a")),
            ("task/a", taken("1")),
            ("task/a", taken("2")),
            ("task/a", ev.CheckpointPinned("id 1")),
            ("task/a", ev.CheckpointTagged("id 1", ("b", "a"), ("c",))),
            ("task/a", ev.CheckpointExpired("id 2", "why")),
            ("task/ab", ev.CheckpointPinned("id 2")),
            ("task/a", ev.CheckpointExpired("id 3", "never was")),
        ]
    )
    (live,) = checkpoints(state, "a")
    assert (live.id, live.pinned, live.tags, live.expired_ns) == ("id 1", True, ("a", "b"), 0)
    gone = find(state, "a", "id 2")
    assert gone is not None
    assert (gone.expired, gone.expired_ns, gone.pinned) == ("why", 600, False)
    assert [each.id for each in checkpoints(state, "a", expired=True)] == ["id 1", "id 2"]
    assert (newest(state, "a"), newest(state, "ab")) == (live, None)
    assert last_expired_ns(state) == 800
    assert find(state, "ab", "id 2") is None


def test_what_a_task_was_forked_from_is_used_until_that_is_cleaned_up() -> None:
    events: list[tuple[str, Event]] = [
        ("task/a", taken("1")),
        ("task/b", ev.TaskForked("a", "id 1", 1)),
        ("task/c", ev.TaskForked("a", "id 1", 1)),
        ("task/b", ev.TaskCleaned("i")),
    ]
    assert used(folded(events), "a") == {"id 1"}
    assert origin(folded(events), "c") == ("a", "id 1")
    assert origin(folded(events), "a") is None
    assert used(folded([*events, ("task/c", ev.TaskCleaned("i"))]), "a") == set()
