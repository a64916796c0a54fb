"""What a task is about: the words it is given when it is created, and the tags it may be given later."""

from __future__ import annotations

from collections.abc import Iterable

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev

MAX_TITLE = 200
MAX_TAGS = 32
"""The most tags of a task, and the most that are given or taken at once."""

_MAX_TAG = 64


def check_title(title: str) -> str:
    """The title without spaces around it. Raises `BadInput` if it is empty, too long or holds control characters."""
    title = title.strip()
    if not 1 <= len(title) <= MAX_TITLE or not title.isprintable():
        raise BadInput(f"a title has 1 to {MAX_TITLE} printable characters on one line; shorten or reword it")
    return title


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags, each once, in order. Raises `BadInput`."""
    if isinstance(tags, str):
        raise BadInput("tags are a list of words; for one tag give [TAG]")
    found = tuple(sorted(set(tags)))
    for tag in found:
        if not 1 <= len(tag) <= _MAX_TAG or not tag.isprintable() or tag != tag.strip():
            raise BadInput(f"{tag[:_MAX_TAG]!r} is no tag; a tag has 1 to {_MAX_TAG} printable characters")
    if len(found) > MAX_TAGS:
        raise BadInput(f"{len(found)} tags are too many; give {MAX_TAGS} at most")
    return found


def tagged(add: Iterable[str], remove: Iterable[str]) -> ev.TaskTagged:
    """The event that gives and takes these tags. Raises `BadInput`."""
    added, removed = check_tags(add), check_tags(remove)
    if both := sorted({*added} & {*removed}):
        raise BadInput(f"{both[0]!r} cannot be given and taken at once; choose one")
    if not added and not removed:
        raise BadInput("no tag is named; name those to give or to take")
    return ev.TaskTagged(added, removed)
