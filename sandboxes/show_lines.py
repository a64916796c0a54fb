"""What the command line shows of lines that a program reads. It loads nothing, since a shell waits for it."""

from __future__ import annotations

from collections.abc import Mapping


def lines(found: list[str], asked: Mapping[str, object]) -> None:
    """Lines, as they are."""
    for each in found:
        print(each)
