"""One table of a TOML file, put at its end or cut out, and every other byte stays as it is.

The table begins with a comment of ours, by which it is found again. TOML lets a table stand behind all others, so
nothing in between is touched; `tomllib` judges the result, and what is not exactly as wanted is refused. Everything
here is pure.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MARK = "# made by 'sandkeep install'; 'sandkeep uninstall' takes it out"

Setting = str | int | list[str]


class NotToml(ValueError):
    """The text is no TOML, or the table cannot be put or cut; the words say why."""


def parse(text: str) -> dict[str, Any]:
    """What the text means. Raises `NotToml`."""
    try:
        return tomllib.loads(text, parse_float=str)  # as it is written: not every number equals itself
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise NotToml(str(error)) from error


def put(text: str, path: Sequence[str], settings: Mapping[str, Setting], kept: Sequence[str]) -> str:
    """The text with the table `path`, which has `settings`. If it is there already, only those of its settings that are
    not named in `kept` are set anew. Raises `NotToml`."""
    before = parse(text)
    there = _at(before, path)
    wanted = {name: value for name, value in settings.items() if there is None or name not in kept}
    if there is not None and all(there.get(name) == value for name, value in wanted.items()):
        return text
    meant = _with(before, path, (there or {}) | wanted)
    for tried in _puts(text, path, wanted, new=there is None):
        if _reads(tried) == meant:
            return tried
    raise NotToml(f"[{'.'.join(path)}] is written in a way that cannot be changed without touching what is not ours")


def cut(text: str, path: Sequence[str]) -> str:
    """The text without the table `path`, if that is there. Raises `NotToml`."""
    before = parse(text)
    if _at(before, path) is None:
        return text
    meant = [_without(before, path, empty=empty) for empty in (False, True)]
    for start, end in _spans(text, path):
        if _reads(tried := text[:start] + text[end:]) in meant:
            return tried
    raise NotToml(f"[{'.'.join(path)}] is not written as we would, or has other tables inside; take it out by hand")


def _puts(text: str, path: Sequence[str], settings: Mapping[str, Setting], *, new: bool) -> Iterator[str]:
    newline = "\r\n" if "\r\n" in text else "\n"
    if new:
        lines = [MARK, f"[{'.'.join(path)}]", *(f"{name} = {_shown(value)}" for name, value in settings.items()), ""]
        # Never two line ends behind a text that has none at its end: so it can be told which it was.
        yield text + newline * bool(text) + newline.join(lines)
        return
    for start, end in _spans(text, path):
        table = text[start:end]
        for name, value in settings.items():
            line = re.compile(rf"^{re.escape(name)}[ \t]*=[^\r\n]*", re.MULTILINE)
            if (found := line.search(table)) is not None:
                table = f"{table[: found.start()]}{name} = {_shown(value)}{table[found.end() :]}"
        yield text[:start] + table + text[end:]


def _spans(text: str, path: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where our table may stand: from each comment of ours to the next header of another table. What begins a line
    inside a string may look like either, so whoever uses this looks at what comes of it."""
    ours = re.compile(r"[ \t]*\[[ \t]*" + r"[ \t]*\.[ \t]*".join(map(re.escape, path)) + r"[ \t]*[.\]]")
    for mark in re.finditer(rf"^{re.escape(MARK)}[ \t]*\r?$\n?", text, re.MULTILINE):
        start = mark.start()
        start -= 2 * text.endswith("\r\n", 0, start) or text.endswith("\n", 0, start)
        end = at = mark.end()
        for line in text[at:].splitlines(keepends=True):
            if line.lstrip(" \t").startswith("[") and not ours.match(line):
                break
            at += len(line)
            if line.strip() and not line.lstrip().startswith("#"):
                end = at
        yield start, end


def _shown(value: Setting) -> str:
    # A JSON string is a TOML basic string, but for DEL, which no setting of ours has.
    return json.dumps(value, ensure_ascii=False)


def _reads(text: str) -> dict[str, Any] | None:
    try:
        return parse(text)
    except NotToml:
        return None


def _at(document: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any] | None:
    found: Any = document
    for depth, name in enumerate(path):
        found = found.get(name)
        if found is None:
            return None
        if not isinstance(found, dict):
            raise NotToml(f"{'.'.join(path[: depth + 1])} is no table")
    return dict(found)


def _with(document: Mapping[str, Any], path: Sequence[str], table: Mapping[str, Any]) -> dict[str, Any]:
    name, *deeper = path
    return {**document, name: _with(document.get(name, {}), deeper, table) if deeper else dict(table)}


def _without(document: Mapping[str, Any], path: Sequence[str], *, empty: bool) -> dict[str, Any]:
    """The document without the table; one around it that has become empty stays if `empty`."""
    name, *deeper = path
    inside = _without(document[name], deeper, empty=empty) if deeper else None
    others = {key: value for key, value in document.items() if key != name}
    return {**others, name: inside} if inside or (inside is not None and empty) else others
