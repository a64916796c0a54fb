"""What the command line shows of differences between workspaces, and of what was set back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from rich.text import Text

from sandkeep.sandboxes import render
from sandkeep.sandboxes.preview import Planned
from sandkeep.sandboxes.render import Document
from sandkeep.sandboxes.restore import Restored
from sandkeep.sandboxes.workspace_diff import FileDiff

_STYLES = {"+": "green", "-": "red", "@": "cyan"}
_MARKS = {"added": "+", "removed": "-", "modified": "~"}


def restored_document(task: str, done: Restored) -> Document:
    """What a restore did, or would do, for machines."""
    document: Document = {"task": task, **msgspec.structs.asdict(done)}
    return document | {"planned": [msgspec.structs.asdict(each) for each in done.planned]}


def diff_document(found: FileDiff) -> Document:
    """What became of a path, for machines."""
    document: Document = msgspec.structs.asdict(found)
    return document


def print_planned(planned: Iterable[Planned]) -> None:
    """What would be done, a line for each path."""
    render.print_lines(render.plain(f"{each.action:<8}{each.kind:<8}{each.path}") for each in planned)


def print_diff(found: Iterable[FileDiff], *, stat: bool) -> None:
    """What differs: a line for each path, and, unless only that is asked for, its lines. Coloured on a terminal."""
    render.print_lines(line for each in found for line in _lines(each, stat))


def _lines(found: FileDiff, stat: bool) -> Iterator[Text]:
    counted = f", +{found.added} -{found.removed}" if found.added or found.removed else ""
    mark = _MARKS[found.change]
    head = render.plain(f"{mark} {found.path}  ({found.note}{counted})")
    head.stylize("bold")
    yield head
    if stat:
        return
    for line in found.lines:
        shown = render.plain(line.expandtabs())
        shown.stylize(_STYLES.get(line[:1], ""))
        yield shown
    if found.cut:
        yield Text("... and more")
