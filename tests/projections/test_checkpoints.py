from __future__ import annotations

from sandkeep.events import catalogue as ev
from sandkeep.projections.checkpoints import Checkpoint, checkpoints

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
    assert len(list(state.scan(b"checkpoints/"))) == 3


def test_more_than_256_checkpoints_stay_in_order() -> None:
    state = folded([("task/a", taken(f"{number}")) for number in range(300)])
    assert [checkpoint.position for checkpoint in checkpoints(state, "a")] == list(range(1, 301))
