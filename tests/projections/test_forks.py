from __future__ import annotations

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import Fork, StateView, forks

from .support import created, folded

FORKED = ("task/a", ev.WorkspaceForked("b", "ann", 7, "cp1"))
FORK = Fork("b", "a", "ann", 7, "cp1", 1, 100)
Fact = tuple[str, Event]


def unmerged(state: StateView) -> list[str]:
    return [fork.task for fork in forks.unmerged(state, "a")]


def test_a_fork_is_found_by_its_task_its_token_and_its_parent() -> None:
    state = folded([FORKED, ("task/b", created("b"))])
    assert forks.find(state, "b") == forks.of_token(state, "a", 7) == FORK
    assert (forks.find(state, "a"), forks.of_token(state, "a", 8), forks.of_token(state, "b", 7)) == (None, None, None)
    assert unmerged(state) == ["b"]
    assert list(forks.ended(state)) == []


def test_one_that_was_never_made_has_nothing_to_merge() -> None:
    state = folded([FORKED])
    assert forks.of_token(state, "a", 7) == FORK
    assert unmerged(state) == []


def test_one_that_ended_is_to_be_cleaned_up_and_then_only_remembered() -> None:
    merged: Fact = ("task/a", ev.WorkspaceMerged("i", "b", "cp2"))
    dropped: Fact = ("task/a", ev.WorkspaceDiscarded("b", "cp2"))
    for event, how in ((merged, "merged"), (dropped, "discarded")):
        facts = [FORKED, ("task/b", created("b")), event, merged, dropped]
        state = folded(facts)
        assert unmerged(state) == []
        assert [(fork.task, fork.ended) for fork in forks.ended(state)] == [("b", how)]
        state = folded([*facts, ("task/b", ev.TaskCleaned("i"))])
        assert list(forks.ended(state)) == []
        assert [fork and fork.ended for fork in (forks.find(state, "b"), forks.of_token(state, "a", 7))] == [how] * 2


def test_one_that_could_not_be_made_gives_way_to_the_next() -> None:
    gone: list[Fact] = [FORKED, ("task/b", created("b")), ("task/b", ev.TaskCleaned("i"))]
    state = folded(gone)
    assert (unmerged(state), list(forks.ended(state))) == ([], [])
    found = forks.of_token(state, "a", 7)
    assert found is not None
    assert found.ended == "gone"
    state = folded([*gone, ("task/a", ev.WorkspaceForked("c", "ann", 7, "cp2")), ("task/c", created("c"))])
    assert unmerged(state) == ["c"]
    assert [fork.task for fork in (forks.of_token(state, "a", 7),) if fork is not None] == ["c"]


def test_what_does_not_fit_is_ignored() -> None:
    state = folded(
        [
            FORKED,
            ("task/x", ev.WorkspaceForked("b", "bob", 9, "cp9")),
            ("task/x", ev.WorkspaceMerged("i", "b", "cp2")),
            ("task/a", ev.WorkspaceMerged("i", "unknown", "cp2")),
            ("keep", ev.WorkspaceForked("c", "ann", 7, "cp1")),
        ]
    )
    assert forks.find(state, "b") == FORK
    assert forks.find(state, "c") is None
