"""The rules of conflicts by themselves."""

from __future__ import annotations

import pytest

from sandkeep.events.catalogue import Change, Rule, Version
from sandkeep.projections.conflicts import PathHistory, Write
from sandkeep.sandboxes.collision import Collision, collide, kind, merge_mode, strategy


def version(name: str) -> Version:
    return Version("file", name, 1, 0o644)


def history(*writes: tuple[int, tuple[str, ...]], dropped: int = 0) -> PathHistory:
    return PathHistory(
        "p", tuple(Write(at, who, version(f"before {at}"), version(f"after {at}")) for at, who in writes), dropped
    )


CHANGE = Change("p", version("theirs"), version("ours"))


def test_what_an_agent_knows_is_its_base_or_its_own_last_write() -> None:
    known = history((5, ("bob",)), (6, ("ann",)), (7, ("bob",)))
    found = collide(CHANGE, ("ann",), {"ann": 2}, known)
    assert found is not None
    assert (found.base, found.based, found.others) == (version("before 7"), True, ("bob",))
    assert collide(CHANGE, ("ann",), {"ann": 7}, known) is None
    found = collide(CHANGE, ("ann",), {"ann": 2}, history((5, ("bob",)), (6, ()), (7, ("bob", "eve"))))
    assert found is not None
    assert (found.base, found.others) == (version("before 5"), ("bob", "eve"))


def test_a_base_that_is_not_kept_any_more_is_not_made_up() -> None:
    for dropped, based in ((2, True), (3, False)):
        found = collide(CHANGE, ("ann",), {"ann": 2}, history((5, ("bob",)), dropped=dropped))
        assert found is not None
        assert found.based is based


def test_what_nobody_did_collides_with_nothing() -> None:
    known = history((5, ("bob",)))
    assert collide(CHANGE, (), {}, known) is None
    assert collide(CHANGE, ("ann",), {"ann": 2}, history((5, ()))) is None


@pytest.mark.parametrize(
    ("agents", "writes", "collides"),
    [
        (("ann",), [("ann", "bob")], True),
        (("ann", "bob"), [("ann",)], False),
        (("ann", "bob"), [("ann", "bob")], False),
        (("ann", "bob"), [("eve",)], True),
        (("ann", "bob"), [("ann",), ("eve",)], True),
        (("ann", "bob"), [("ann", "bob", "eve")], False),
    ],
)
def test_with_several_agents_only_what_is_certain_counts(
    agents: tuple[str, ...], writes: list[tuple[str, ...]], collides: bool
) -> None:
    known = history(*((5 + number, who) for number, who in enumerate(writes)))
    assert (collide(CHANGE, agents, {}, known) is not None) is collides


@pytest.mark.parametrize(
    ("path", "before", "after", "renamed", "overlaps", "expected"),
    [
        ("a", "x", "y", "", 0, "same-file"),
        ("a", "x", "y", "", 2, "same-region"),
        ("a", None, "y", "", 0, "delete-edit"),
        ("a", "x", None, "", 0, "delete-edit"),
        ("a", "x", None, "b", 0, "rename"),
        ("sub/go.sum", "x", "y", "", 1, "lock-file"),
        ("go.sum", "x", None, "", 0, "delete-edit"),
        (".git/refs/heads/go.sum", "x", "y", "", 0, "branch"),
        ("lib/", "x", None, "", 0, "submodule"),
    ],
)
def test_each_kind(
    path: str, before: str | None, after: str | None, renamed: str, overlaps: int, expected: str
) -> None:
    change = Change(path, (before and version(before)) or None, (after and version(after)) or None)
    assert kind(Collision(change, ("bob",), None, True, renamed), overlaps) == expected


def test_the_first_rule_that_matches_counts() -> None:
    rules = [Rule("*.lock", "ask"), Rule("docs/*", "reject"), Rule("a/*.md", "last-writer-wins"), Rule("*.MD", "ask")]
    expected = {
        "x.lock": "ask",
        "docs/x.lock": "ask",
        "docs/a/b": "reject",
        "a/b.md": "last-writer-wins",
        "b.md": "three-way",
    }
    assert {path: strategy(path, rules) for path in expected} == expected


def test_a_mode_is_merged_like_a_content() -> None:
    base, other = version("x"), Version("file", "x", 1, 0o755)
    assert [merge_mode(base, *sides) for sides in ((base, other), (other, base), (base, base))] == [0o755, 0o755, 0o644]
