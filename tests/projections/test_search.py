"""Finding by words: all that fit are found, the best first, the newest first among these."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import BadInput, Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import Fit, MemoryState, find_tasks, index, search
from sandkeep.projections.registry import tasks
from sandkeep.projections.words import one_edit_apart, ordered, words

from .support import folded

VOCABULARY = ["fix", "fixed", "parser", "parsers", "parse", "test", "tests", "text", "a1b2", "über", "lo"]
QUERIES = st.lists(st.sampled_from([*VOCABULARY, "parsre", "tset", "fi", "par", "zzzz"]), min_size=1, max_size=3)


def made(name: str, title: str, *tags: str) -> tuple[str, Event]:
    return f"task/{name}", ev.TaskCreated("i", title, None, "base", None, tags)


def found(state: MemoryState, query: str, limit: int = 20) -> list[tuple[str, str]]:
    return [(each.task.id, each.fit) for each in find_tasks(state, query, limit=limit)]


def fit(there: frozenset[str], asked: list[str]) -> Fit | None:
    def begun(word: str) -> bool:
        return any(each.startswith(word) for each in there) if len(word) >= 3 else word in there

    def similar(word: str) -> bool:
        proper = len(word) >= 4 and word.isalpha()
        return begun(word) or (
            proper and any(len(each) >= 4 and each.isalpha() and one_edit_apart(word, each) for each in there)
        )

    if all(word in there for word in asked):
        return Fit.WORDS
    if all(map(begun, asked)):
        return Fit.BEGINNINGS
    return Fit.SIMILAR if all(map(similar, asked)) else None


@given(st.lists(st.lists(st.sampled_from(VOCABULARY), max_size=4), max_size=12), QUERIES, st.integers(1, 8))
def test_what_is_found_is_what_a_scan_would_find(titles: list[list[str]], query: list[str], limit: int) -> None:
    state = folded([made(f"t{number}", " ".join(title)) for number, title in enumerate(titles)])
    ranks = list(Fit)
    fits = [(fit(words(task.title), ordered(" ".join(query))), task) for task in tasks(state)]
    expected = sorted((ranks.index(each), -task.created_at, task.id) for each, task in fits if each is not None)
    assert found(state, " ".join(query), limit) == [(name, ranks[rank]) for rank, _, name in expected[:limit]]


def test_words_are_found_in_any_order_in_title_and_tags() -> None:
    state = folded([made("a", "Fix the LEXER", "Urgent"), made("b", "lexer"), made("c", "urgent fix", "lexer")])
    assert found(state, "lexer fix urgent") == [("c", "words"), ("a", "words")]
    assert found(state, "urg lex") == [("c", "beginnings"), ("a", "beginnings")]
    assert found(state, "lexre urgnet") == [("c", "similar"), ("a", "similar")]
    assert found(state, "nothing") == []


def test_words_that_two_edits_lead_between_are_not_similar() -> None:
    state = folded([made("a", "bcdefg")])  # a form in common with "abcdef", which lacks one letter of each
    assert found(state, "abcdef") == []
    assert found(state, "bcdeg") == [("a", "similar")]


def test_an_id_is_found_by_its_beginning_before_all_else() -> None:
    state = folded([made("0123456789ab", "x"), made("0123ffffffff", "y"), made("ffff", "about 0123")])
    assert found(state, "0123") == [("0123456789ab", "id"), ("0123ffffffff", "id"), ("ffff", "words")]
    assert found(state, " 0123456789AB ") == [("0123456789ab", "id")]
    assert found(state, "012") == [("ffff", "beginnings")]
    assert found(state, "0123", limit=1) == [("0123456789ab", "id")]


def test_tags_that_are_taken_away_are_found_no_more() -> None:
    history = [made("a", "title", "urgent", "later"), made("b", "urgent")]
    assert found(folded(history), "urgent") == [("b", "words"), ("a", "words")]
    history.append(("task/a", ev.TaskTagged(("soon",), ("urgent", "later"))))
    state = folded(history)
    assert found(state, "urgent") == [("b", "words")]
    assert found(state, "later") == found(state, "latre") == []
    assert found(state, "sooon") == [("a", "similar")]
    assert state.get(index.VOCABULARY + b"later") is None
    assert [key for key, _ in state.scan(index.NEAR) if key.endswith(b"\0later")] == []


def test_a_beginning_stands_for_the_words_that_most_tasks_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_WORDS", 1)
    state = folded([made(f"t{number}", "worda wordb" if number < 8192 else "wordb wordc") for number in range(8200)])
    assert {each for each, _ in found(state, "word", limit=10)} == {f"t{number}" for number in range(8190, 8200)}


@pytest.mark.parametrize("query", ["", "…", " ".join(f"w{number}" for number in range(17))])
def test_a_query_has_words(query: str) -> None:
    with pytest.raises(BadInput, match="words to look for; give 1 to 16"):
        find_tasks(MemoryState(), query)


@pytest.mark.parametrize("limit", [0, 101])
def test_a_number_of_tasks_that_cannot_be_found_is_refused(limit: int) -> None:
    with pytest.raises(BadInput, match="ask for 1 to 100"):
        find_tasks(MemoryState(), "x", limit=limit)


def test_hostile_queries_find_nothing() -> None:
    state = folded([made("a", "title")])
    for query in (
        "a\0b" * 50,
        "x" * 10_000,
        "task/../a",
        "%' OR 1=1",
        "\udcff abc".encode("utf-8", "replace").decode(),
    ):
        assert found(state, query) == []
