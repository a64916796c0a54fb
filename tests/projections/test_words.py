from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.projections.words import MAX_WORD, neighbourhood, one_edit_apart, ordered, words

LETTERS = st.text("abc", max_size=6)


def edited(word: str) -> set[str]:
    """All that one edit makes of a word of these letters, made by doing each."""
    places = range(len(word) + 1)
    made = {word}
    made |= {word[:place] + letter + word[place:] for place in places for letter in "abc"}
    made |= {word[:place] + word[place + 1 :] for place in places}
    made |= {word[:place] + letter + word[place + 1 :] for place in places[:-1] for letter in "abc"}
    made |= {word[:place] + word[place : place + 2][::-1] + word[place + 2 :] for place in places}
    return made


@given(LETTERS, LETTERS)
def test_words_are_similar_if_one_edit_leads_between_them(one: str, other: str) -> None:
    assert one_edit_apart(one, other) == (other in edited(one))
    assert one_edit_apart(other, one) == one_edit_apart(one, other)


@given(st.text("abc", min_size=4, max_size=8), st.data())
def test_similar_words_have_a_form_in_common(word: str, data: st.DataObject) -> None:
    other = data.draw(st.sampled_from(sorted(edited(word))))
    if len(other) >= 4:
        assert neighbourhood(word) & neighbourhood(other)


def test_only_words_of_a_language_have_neighbours() -> None:
    assert neighbourhood("lock") == {"lock", "ock", "lck", "lok", "loc"}
    assert [neighbourhood(word) for word in ("abc", "a1b2c3", "12345", "x" * 25, "")] == [frozenset()] * 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Fix the lexer", ["fix", "the", "lexer"]),
        ("fix fix FIX", ["fix"]),
        ("snake_case, kebab-case; #123", ["snake", "case", "kebab", "123"]),
        ("Straße ÜBER naïve", ["strasse", "über", "naïve"]),
        ("… - _ \0", []),
        ("x" * 99, ["x" * MAX_WORD]),
    ],
)
def test_the_words_of_a_text(text: str, found: list[str]) -> None:
    assert ordered(text) == found
    assert words(text) == frozenset(found)
    assert words("other", text) == {"other", *found}
