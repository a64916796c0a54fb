from __future__ import annotations

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Change, Rule, Version
from sandkeep.projections import conflicts
from sandkeep.projections.conflicts import MAX_WRITES

from .support import created, folded

OLD, NEW = Version("file", "old", 1, 0o644), Version("file", "new", 1, 0o644)
REQUEST = ev.CommandRequested("c", ("x",), "/", (), 1)
RESULT = ev.CommandExecuted("c", 0, 1, False, ev.Output(0), ev.Output(0))


def changed(*paths: str) -> Event:
    return ev.PathsChanged(("ann",), ("c",), 0, tuple(Change(path, OLD, NEW) for path in paths))


def detected(name: str, path: str = "p") -> Event:
    return ev.ConflictDetected(name, "same-file", path, ("ann",), ("bob",), "ask", None, NEW, OLD, True)


def test_an_agents_base_is_its_first_request_and_then_its_last_result() -> None:
    assert conflicts.bases(folded([("task/a", created("a")), ("task/a", REQUEST), ("task/a", REQUEST)]), "a") == {
        "me": 2
    }
    assert conflicts.bases(folded([("task/a", RESULT), ("task/a", REQUEST), ("task/a", RESULT)]), "a") == {"me": 3}
    assert conflicts.bases(folded([("task/a", REQUEST), ("keep", RESULT)]), "b") == {}


def test_a_paths_history_is_bounded_and_says_from_where_it_is_whole() -> None:
    state = folded([("task/a", changed("p", "x" * 5000))] * (MAX_WRITES + 3))
    known = conflicts.history(state, "a", "p")
    assert [write.position for write in known.writes] == list(range(4, MAX_WRITES + 4))
    assert known.dropped == 3
    assert {each.path for each in conflicts.histories(state, "a")} == {"p", "x" * 5000}
    assert all(len(key) < 200 for key, _ in state.scan(b"conflicts/"))


def test_conflicts_are_open_until_they_are_resolved() -> None:
    facts = [("task/a", detected("1")), ("task/ab", detected("2")), ("task/a", detected("3", "q"))]
    state = folded(facts)
    assert [each.id for each in conflicts.open_conflicts(state, "a")] == ["1", "3"]
    assert [each.id for each in conflicts.concerning(state, "bob")] == ["1", "3", "2"]
    resolved = ev.ConflictResolved("1", "p", "chosen", "theirs", NEW, OLD)
    state = folded([*facts, ("task/a", resolved), ("task/a", resolved)])
    assert [(each.id, each.taken) for each in conflicts.conflicts(state, "a")] == [("1", "theirs"), ("3", "")]
    assert [each.id for each in conflicts.open_conflicts(state, "a")] == ["3"]
    assert [each.id for each in conflicts.concerning(state, "ann")] == ["3", "2"]
    assert [write.agents for write in conflicts.history(state, "a", "p").writes] == [("me",), ("me",)]


def test_what_a_strategy_wrote_is_nobodys() -> None:
    state = folded([("task/a", ev.ConflictResolved("1", "p", "three-way", "merged", NEW, OLD))])
    assert [write.agents for write in conflicts.history(state, "a", "p").writes] == [()]
    state = folded([("task/a", ev.ConflictResolved("1", "p", "chosen", "ours", NEW, NEW))])
    assert conflicts.history(state, "a", "p").writes == ()


def test_rules_are_the_last_that_were_set() -> None:
    first, second = (ev.ConflictPolicySet((Rule(name, "ask"),)) for name in "xy")
    state = folded([("task/a", first), ("task/a", second), ("task/b", first)])
    assert conflicts.rules(state, "a") == second.rules
    assert conflicts.rules(state, "c") is None
