"""JSON with comments: what is put in or cut out is all that changes, whatever else the text holds."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandkeep.sandboxes import jsonc
from sandkeep.sandboxes.jsonc import NotJson

ENTRY: jsonc.Value = {"command": "prog", "args": ["a"]}
PATH = ("servers", "ours")

_names = st.sampled_from(["a", "b", "servers", "x y", "", "ü", 'quo"te', "//", "/*"])
_space = st.text(" \t", max_size=3)


@st.composite
def trivia(draw: st.DrawFn, newline: str) -> str:
    """Spaces, line ends and comments."""
    made = ""
    for kind in draw(st.lists(st.sampled_from(["space", "line", "block", "end"]), max_size=3)):
        if kind == "space":
            made += draw(_space)
        elif kind == "end":
            made += newline + draw(_space)
        elif kind == "block":
            made += f"/* {draw(st.sampled_from(['x', '{', '}', ',', '//', newline]))} */"
        else:
            made += f"// {draw(st.sampled_from(['x', '}', ',', '/*', chr(34)]))}{newline}"
    return made


@st.composite
def written(draw: st.DrawFn, newline: str, depth: int = 3, *, top: bool = False) -> str:
    """A value as somebody may have written it."""
    if not top and (depth == 0 or draw(st.booleans())):
        scalars = st.sampled_from(["1", "-0.5e3", "true", "null", '"s"', r'"\"}//"', "[]", '[1, /* in */ {"k": 2},]'])
        return draw(scalars)
    names = draw(st.lists(_names, max_size=3, unique=True))
    space = trivia(newline)
    made = "{" + draw(space)
    for index, name in enumerate(names):
        # What stands where our entry is to be must be an object, or there is nothing to test.
        value = draw(written(newline, depth - 1, top=name == "servers"))
        made += f"{json.dumps(name)}{draw(space)}:{draw(space)}{value}{draw(space)}"
        if index < len(names) - 1 or draw(st.booleans()):
            made += "," + draw(space)
    return made + "}"


texts = st.sampled_from(["\n", "\r\n"]).flatmap(
    lambda newline: st.tuples(
        st.sampled_from(["", "\ufeff"]), trivia(newline), written(newline, top=True), trivia(newline)
    ).map("".join)
)


def comments(text: str) -> list[str]:
    """The comments of a text, in their order."""
    found = re.findall(r'"(?:[^"\\]|\\.)*"|(//[^\r\n]*|/\*.*?\*/)', text, re.DOTALL)
    return [each for each in found if each]


def without(document: Any, path: tuple[str, ...]) -> Any:
    """A document without what is at a path, and without what that leaves empty."""
    name, *deeper = path
    inside = without(document.get(name, {}), tuple(deeper)) if deeper else {}
    return {key: value for key, value in document.items() if key != name} | ({name: inside} if inside else {})


@settings(max_examples=80)
@given(texts)
def test_what_is_put_in_is_there_and_nothing_else_is_lost(text: str) -> None:
    made = jsonc.put(text, PATH, ENTRY)
    before: Any = jsonc.parse(text)
    assert jsonc.parse(made) == before | {"servers": before.get("servers", {}) | {"ours": ENTRY}}
    assert comments(made) == comments(text)
    assert jsonc.put(made, PATH, ENTRY) == made
    changed = jsonc.put(made, (*PATH, "command"), "other")
    assert changed == made.replace('"prog"', '"other"')
    assert re.sub(r"(?<!\r)\n", "", made).count("\n") == (0 if "\r\n" not in text else made.count("\n"))


@settings(max_examples=80)
@given(texts)
def test_what_is_cut_out_is_gone_and_nothing_else_is_lost(text: str) -> None:
    made = jsonc.cut(jsonc.put(text, PATH, ENTRY), PATH)
    before = jsonc.parse(text)
    assert without(jsonc.parse(made), PATH) == without(before, PATH)
    assert comments(made) == comments(text)
    assert jsonc.cut(made, PATH) == made


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        '{"a": 1,}\n',
        '{\n  "a": 1 // one\n}\n',
        '{\n\t"a": 1, /* one */\n\t// two\n}\n',
        '{\r\n    "a": [1, 2],\r\n}\r\n',
        '{"servers": {"theirs": {}}, "z": 0}',
        '{\n  "servers": {\n    "theirs": {} // x\n  },\n  "z": 0\n}',
        "{\n  // nothing yet\n}",
    ],
)
def test_cutting_undoes_putting_byte_for_byte(text: str) -> None:
    assert jsonc.cut(jsonc.put(text, PATH, ENTRY), PATH) == text


def test_an_entry_looks_like_what_stands_around_it() -> None:
    text = '{\n    "servers": {\n        "theirs": 1 // x\n    }\n}\n'
    assert jsonc.put(text, PATH, ENTRY) == (
        '{\n    "servers": {\n        "theirs": 1, // x\n        "ours": {\n            "command": "prog",\n'
        '            "args": ["a"]\n        }\n    }\n}\n'
    )


def test_of_two_members_with_one_name_the_last_counts_and_both_are_cut() -> None:
    text = '{"servers": {"ours": 1, "x": 2, "ours": 3}}'
    assert jsonc.parse(jsonc.put(text, PATH, 4)) == {"servers": {"x": 2, "ours": 4}}
    assert jsonc.cut(text, PATH) == '{"servers": { "x": 2}}'


def test_what_follows_on_the_line_does_not_become_a_comment() -> None:
    text = '{"servers": { // c\n "ours": 1, "x": 2}}'
    assert jsonc.parse(jsonc.cut(text, PATH)) == {"servers": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "too early"),
        ('{"a": 1', "too early"),
        ('{"a" 1}', "line 1, column 6"),
        ('{\n  "a": 1\n  "b": 2}', "line 3, column 3"),
        ("{'a': 1}", "line 1, column 2"),
        ('{"a": 01}', "column 8"),
        ('{"a": "\\q"}', "escape"),
        ('{"a": /* x', "line 1"),
        ('{"a": 1} x', "column 10"),
        ("[" * 200, "deep"),
        ('{"a": ' + "9" * 5000 + "}", "too long"),
        ('["a"]', "no object"),
        ('{"servers": []}', "servers is no object"),
    ],
)
def test_what_is_no_such_json_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(NotJson, match=re.escape(words)):
        jsonc.put(text, PATH, ENTRY)


@pytest.mark.parametrize("text", ['{"a": 1' + " " * 50_000 + '"b"}', '{"a":1' + "/* */" * 20_000 + "x"])
def test_a_hostile_text_takes_no_time(text: str) -> None:
    with pytest.raises(NotJson):
        jsonc.put(text, PATH, ENTRY)
