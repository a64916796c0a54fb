"""JSON with comments, edited in place: one member is set or cut out, and every other byte stays as it is.

What is read is RFC 8259 with what the configuration of editors allows besides: `//` and `/* */` comments, a comma
behind the last element, and a byte order mark. The text is scanned, never written anew from what it means. Everything
here is pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import msgspec

_DEPTH = 100
# Possessive, so that no text makes them try again and again.
_TRIVIA = re.compile(r"(?:[ \t\r\n]++|//[^\r\n]*+|/\*.*?\*/)*+", re.DOTALL)
_SAME_LINE = re.compile(r"(?:[ \t]++|//[^\r\n]*+|/\*[^\r\n]*?\*/)*+(?=[\r\n])")
_LINE_ENDS = re.compile(r"[ \t]*+[\r\n]")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_WORD = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

Value = dict[str, "Value"] | list["Value"] | str | int | float | bool | None


class NotJson(ValueError):
    """The text is no JSON with comments; the words say where and why."""


class _Node(msgspec.Struct):
    """A value and where it stands. `comma` is where the comma behind it is, or -1."""

    start: int
    end: int
    value: Value
    members: list[_Member]
    is_object: bool = False
    comma: int = -1


class _Member(msgspec.Struct):
    name: str
    start: int
    node: _Node


def parse(text: str) -> Value:
    """What the text means. Raises `NotJson`."""
    return _scan(text).value


def put(text: str, path: Sequence[str], value: Value) -> str:
    """The text with `value` at `path`; the objects on the way are made if they are not there, in the style of what
    stands around them. Raises `NotJson`, also where something other than an object is in the way."""
    node, start = _scan(text), 0
    for depth, name in enumerate(path):
        if not node.is_object:
            raise NotJson(f"{'.'.join(path[:depth]) or 'it'} is no object")
        found = _last(node, name)
        if found is None:
            for outer in reversed(path[depth + 1 :]):
                value = {outer: value}
            return _insert(text, node, name, value)
        node, start = found.node, found.start
    if node.value == value and type(node.value) is type(value):
        return text
    shown = _shown(value, _indent(text, start), _unit(text), _newline(text))
    return text[: node.start] + shown + text[node.end :]


def cut(text: str, path: Sequence[str]) -> str:
    """The text without what is at `path`, and without the object around it if nothing else is in there but the first
    in the path. Raises `NotJson`."""
    while (found := _find(text, path)) is not None:
        text = _remove(text, *found)
    if len(path) > 1:
        above = _find(text, path[:-1])
        if above is not None and _is_bare(text, above[0].members[above[1]]):
            return cut(text, path[:-1])
    return text


def _is_bare(text: str, member: _Member) -> bool:
    """Whether it is an empty object, and nobody has said anything about it."""
    _, end = _string(text, member.start)
    return member.node.value == {} and "".join(text[end : member.node.end].split()) == ":{}"


def _find(text: str, path: Sequence[str]) -> tuple[_Node, int] | None:
    """The object that holds what is at `path`, and which of its members that is."""
    node = _scan(text)
    for depth, name in enumerate(path):
        found = _last(node, name)
        if found is None:
            return None
        if depth == len(path) - 1:
            return node, node.members.index(found)
        node = found.node
    return None


def _last(node: _Node, name: str) -> _Member | None:
    """The member that counts: of those with one name, readers take the last."""
    return next((member for member in reversed(node.members) if member.name == name), None)


def _insert(text: str, node: _Node, name: str, value: Value) -> str:
    newline, unit = _newline(text), _unit(text)
    head = json.dumps(name, ensure_ascii=False) + ": "
    if not node.members:
        outer = _indent(text, node.start)
        at = node.start + 1
        inner = outer + unit
        member = newline + inner + head + _shown(value, inner, unit, newline)
        if (line := _SAME_LINE.match(text, at)) is not None:
            return text[: line.end()] + member + text[line.end() :]
        if (comment := _TRIVIA.match(text, at)) is not None and comment[0].strip():
            at = comment.end()
        return text[:at] + member + newline + outer + text[node.end - 1 :]
    last = node.members[-1]
    trailing = last.node.comma >= 0
    behind = last.node.comma + 1 if trailing else last.node.end
    comma = "" if trailing else ","
    line = _SAME_LINE.match(text, behind)
    if line is None:
        member = " " + head + json.dumps(value, ensure_ascii=False)
        return text[:behind] + comma + member + "," * trailing + text[behind:]
    inner = _indent(text, last.start)
    member = newline + inner + head + _shown(value, inner, unit, newline)
    return text[:behind] + comma + text[behind : line.end()] + member + "," * trailing + text[line.end() :]


def _remove(text: str, node: _Node, index: int) -> str:
    member = node.members[index]
    end = member.node.end
    start = len(text[: member.start].rstrip(" \t"))
    if _LINE_ENDS.match(text, max(end, member.node.comma + 1)):  # the whole line goes
        start -= 2 * text.endswith("\r\n", 0, start) or text.endswith("\n", 0, start)
    if member.node.comma >= 0:
        # What stands between a value and its comma may be a comment.
        return text[:start] + text[end : member.node.comma] + text[member.node.comma + 1 :]
    if index > 0:
        comma = node.members[index - 1].node.comma
        return text[:comma] + text[comma + 1 : start] + text[end:]
    if not (text[node.start + 1 : start] + text[end : node.end - 1]).strip():
        return text[: node.start + 1] + text[node.end - 1 :]
    return text[:start] + text[end:]


def _shown(value: Value, indent: str, unit: str, newline: str) -> str:
    """A value as people write it, one member a line; a list on one line."""
    if isinstance(value, dict) and value:
        inner = indent + unit
        lines = (f"{inner}{json.dumps(name)}: {_shown(each, inner, unit, newline)}" for name, each in value.items())
        return "{" + newline + f",{newline}".join(lines) + newline + indent + "}"
    return json.dumps(value, ensure_ascii=False)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _unit(text: str) -> str:
    found = re.search(r"[\r\n]([ \t]+)\"", text)
    return found[1] if found else "  "


def _indent(text: str, at: int) -> str:
    """The white space at the beginning of the line that `at` is on."""
    line = max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1
    found = re.compile(r"[ \t]*").match(text, line)
    return found[0] if found else ""


def _scan(text: str) -> _Node:
    at = _skip(text, 1 if text.startswith("\ufeff") else 0)
    node = _value(text, at, _DEPTH)
    if (end := _skip(text, node.end)) != len(text):
        raise _unexpected(text, end)
    return node


def _value(text: str, at: int, depth: int) -> _Node:
    if depth == 0:
        raise NotJson(f"it is nested more than {_DEPTH} deep")
    match text[at : at + 1]:
        case "{":
            return _object(text, at, depth)
        case "[":
            return _list(text, at, depth)
        case '"':
            value, end = _string(text, at)
            return _Node(at, end, value, [])
    word = _WORD.match(text, at)
    if word is None:
        raise _unexpected(text, at)
    try:
        return _Node(at, word.end(), json.loads(word[0]), [])
    except ValueError as error:  # a number of more digits than Python reads
        raise NotJson(f"the number in {_place(text, at)} is too long") from error


def _object(text: str, start: int, depth: int) -> _Node:
    members: list[_Member] = []
    at = _skip(text, start + 1)
    while text[at : at + 1] != "}":
        begin = at
        name, at = _string(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise _unexpected(text, at)
        node = _value(text, _skip(text, at + 1), depth - 1)
        members.append(_Member(name, begin, node))
        at = _comma(text, node, "}")
    return _Node(start, at + 1, {each.name: each.node.value for each in members}, members, is_object=True)


def _list(text: str, start: int, depth: int) -> _Node:
    values: list[Value] = []
    at = _skip(text, start + 1)
    while text[at : at + 1] != "]":
        node = _value(text, at, depth - 1)
        values.append(node.value)
        at = _comma(text, node, "]")
    return _Node(start, at + 1, values, [])


def _comma(text: str, node: _Node, close: str) -> int:
    """Where the next element begins, or the closing bracket is, behind an element."""
    at = _skip(text, node.end)
    if text[at : at + 1] == ",":
        node.comma = at
        return _skip(text, at + 1)
    if text[at : at + 1] != close:
        raise _unexpected(text, at)
    return at


def _string(text: str, at: int) -> tuple[str, int]:
    found = _STRING.match(text, at)
    if found is None:
        raise _unexpected(text, at)
    try:
        return json.loads(found[0]), found.end()
    except ValueError as error:
        raise NotJson(f"the string in {_place(text, at)} has an escape that JSON has not") from error


def _skip(text: str, at: int) -> int:
    found = _TRIVIA.match(text, at)
    return at if found is None else found.end()


def _unexpected(text: str, at: int) -> NotJson:
    if at >= len(text):
        return NotJson("it ends too early")
    return NotJson(f"{text[at]!r} is not expected in {_place(text, at)}")


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line}, column {at - text.rfind(chr(10), 0, at)}"
