"""Reading `keep.toml`, so that all that is wrong with it is found at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, final

import msgspec

from sandkeep.events import BadInput
from sandkeep.sandboxes import quantity
from sandkeep.sandboxes.errors import BadSettings

T = TypeVar("T")


def read(keep: Path, parse: Callable[[Mapping[str, Any], list[str]], T]) -> T:
    """What `parse` makes of the `keep.toml` in the folder `keep`; what is wrong it adds to the list that it is given.
    Raises `BadSettings`, which names all of that."""
    path = keep / "keep.toml"
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:  # of TOML, or of UTF-8
        raise BadSettings(f"{path} cannot be read: {error}; correct it, or restore it from a copy") from error
    problems: list[str] = []
    found = parse(document, problems)
    if problems:
        count = f"{len(problems)} errors" if len(problems) > 1 else "an error"
        raise BadSettings(f"{path} has {count}: {'; '.join(problems)}; correct it")
    return found


@final
class Fields:
    """The fields of a table, each taken once; what is wrong with them goes to `problems`."""

    def __init__(self, table: Mapping[str, object], where: str, problems: list[str]) -> None:
        self._left = dict(table)
        self._where = where
        self._problems = problems

    def take(self, name: str, parse: Callable[[object], float], least: float, most: float, default: float) -> float:
        """A number from `least` to `most`."""
        if name not in self._left:
            return default
        given = self._left.pop(name)
        try:
            found = parse(given)
        except BadInput as error:
            self._problems.append(f"{self._where}{name}: {error}")
            return default
        if not least <= found <= most:
            show = quantity.show_size if parse is quantity.size else "{:.12g}".format
            self._problems.append(f"{self._where}{name}: {show(found)} is not from {show(least)} to {show(most)}")
            return default
        return found

    def choose(self, name: str, choices: tuple[object, object]) -> object:
        """The first choice unless another is given."""
        found = self._left.pop(name, choices[0])
        if type(found) is not type(choices[0]) or found not in choices:
            words = " or ".join(msgspec.json.encode(choice).decode() for choice in choices)
            self._problems.append(f"{self._where}{name}: {str(found)[:40]!r} is not {words}")
        return found

    def match(self, name: str, pattern: re.Pattern[str], default: str) -> str:
        """A text that fits the pattern."""
        if name not in self._left:
            return default
        found = self._left.pop(name)
        if not isinstance(found, str) or not pattern.fullmatch(found):
            self._problems.append(f"{self._where}{name}: {str(found)[:40]!r} does not fit {pattern.pattern}")
            return default
        return found

    def end(self) -> None:
        """What is left over is nothing that we know."""
        self._problems.extend(f"{self._where}{name[:40]}: there is no such setting" for name in sorted(self._left))


def table_of(document: Mapping[str, Any], name: str, problems: list[str]) -> Mapping[str, Any]:
    """The table `name` of a document, empty if it has none."""
    found = document.get(name, {})
    if isinstance(found, dict):
        return found
    problems.append(f"{name} is no table; write it as [{name}]")
    return {}
