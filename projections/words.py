"""The words of texts, and which are similar.

A word is a run of letters and digits, case-folded (Unicode's default caseless matching) and cut at `MAX_WORD`
characters. Words that one edit leads between are found by *deletion neighbourhoods* (Mor and Fraenkel 1982; the
"symmetric delete" of SymSpell): both words, each with at most one letter left out, have a form in common. So no list of
words is ever walked to find a misspelt one.
"""

from __future__ import annotations

import re

MAX_WORD = 40
_SIMILAR = range(4, 25)
_WORD = re.compile(r"[^\W_]+")


def words(*texts: str) -> frozenset[str]:
    """The words of `texts`."""
    return frozenset(word[:MAX_WORD] for text in texts for word in _WORD.findall(text.casefold()))


def ordered(text: str) -> list[str]:
    """The words of one text in the order they come, each once."""
    return list(dict.fromkeys(word[:MAX_WORD] for word in _WORD.findall(text.casefold())))


def neighbourhood(word: str) -> frozenset[str]:
    """The word, and the word with one letter left out, each way. Empty for what is no word of a language: misspelt
    numbers and ids are other numbers and ids."""
    if len(word) not in _SIMILAR or not word.isalpha():
        return frozenset()
    return frozenset([word, *(word[:index] + word[index + 1 :] for index in range(len(word)))])


def one_edit_apart(one: str, other: str) -> bool:
    """Whether one letter more, less or other, or two neighbours swapped, makes `other` of `one`; or nothing."""
    if len(one) > len(other):
        one, other = other, one
    if len(other) - len(one) > 1:
        return False
    begin = 0
    while begin < len(one) and one[begin] == other[begin]:
        begin += 1
    one, other = one[begin:], other[begin:]
    if len(one) < len(other):
        return one == other[1:]
    return one[1:] == other[1:] or (one[:2] == other[:2][::-1] and one[2:] == other[2:])
