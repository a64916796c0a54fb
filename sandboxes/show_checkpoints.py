"""What the command line shows people of checkpoints, and of what differs between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.text import Text

from sandkeep.sandboxes import documents, documents_work, render, show_tasks
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.repair import Repaired
from sandkeep.sandboxes.workspace_diff import FileDiff

_STYLES = {"+": "green", "-": "red", "@": "cyan"}
_MARKS = {"added": "+", "removed": "-", "modified": "~"}


def taken(found: documents.Checkpoint, asked: Mapping[str, object]) -> None:
    """A checkpoint that has just been taken."""
    print(f"{found.id}  {found.files} files, {found.bytes} bytes, digest {found.digest}")
    if found.commands:
        print(f"{found.commands} commands ran meanwhile; processes are not recorded")


def restored(done: documents_work.Restored, asked: Mapping[str, object]) -> None:
    """What was set back, or, a line for each path, what would be."""
    if asked["dry_run"]:
        render.print_lines(render.plain(f"{each.action:<8}{each.kind:<8}{each.path}") for each in done.planned)
    else:
        print(f"restored {done.checkpoint}, digest {done.digest}; to undo, restore {done.undo}")


def listed(found: list[documents_work.ListedCheckpoint], asked: Mapping[str, object]) -> None:
    """A table of checkpoints, and of what each adds."""
    rows = [show_tasks.checkpoint_row(each, show_size(each.added)) for each in found]
    render.print_rows(("CHECKPOINT", "TAKEN", "FILES", "ADDS", "LABEL"), rows, "no checkpoints")


def noted(found: documents.Checkpoint, asked: Mapping[str, object]) -> None:
    """What there is to know of a checkpoint now."""
    print(render.plain("  ".join((found.id, *show_tasks.notes(found)))))


def expired(found: list[documents_work.ExpiredCheckpoint], asked: Mapping[str, object]) -> None:
    """The checkpoints that expire, a line each."""
    for each in found:
        print(render.plain(f"{each.task}  {each.checkpoint}  {each.reason}"))


def repaired(done: Repaired, asked: Mapping[str, object]) -> None:
    """What is still missing, and how much was brought back."""
    for each in done.affected:
        print(render.plain(f"missing: {each.path or '/'!r} of checkpoint {each.checkpoint} of task {each.task}"))
    print(f"{len(done.repaired)} blobs were brought back, {len(done.missing)} are missing")


def differences(found: list[FileDiff], asked: Mapping[str, object]) -> None:
    """What differs: a line for each path, and, unless only that is asked for, its lines. Coloured on a terminal."""
    render.print_lines(line for each in found for line in _lines(each, bool(asked["stat"])))


def _lines(found: FileDiff, stat: bool) -> Iterator[Text]:
    counted = f", +{found.added} -{found.removed}" if found.added or found.removed else ""
    head = render.plain(f"{_MARKS[found.change]} {found.path}  ({found.note}{counted})")
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
