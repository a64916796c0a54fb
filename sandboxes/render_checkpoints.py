"""What the command line shows of checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from sandkeep.projections import Checkpoint
from sandkeep.sandboxes import render
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.render import Document
from sandkeep.sandboxes.retention import Surplus
from sandkeep.sandboxes.task_checkpoints import Listed


def checkpoint_document(checkpoint: Checkpoint) -> Document:
    """A checkpoint, for machines."""
    return {
        "id": checkpoint.id,
        "task": checkpoint.task,
        "digest": checkpoint.digest,
        "files": checkpoint.files,
        "bytes": checkpoint.bytes,
        "label": checkpoint.label,
        "torn": checkpoint.torn,
        "position": checkpoint.position,
        "created": render.moment(checkpoint.time_ns),
        "pinned": checkpoint.pinned,
        "tags": checkpoint.tags,
        "commands": checkpoint.commands,
        "frozen_s": checkpoint.frozen_ns / 1e9,
        "image": checkpoint.image or None,
        "expired": render.moment(checkpoint.expired_ns) if checkpoint.expired_ns else None,
        "reason": checkpoint.expired or None,
    }


def listed_document(listed: Listed) -> Document:
    """A checkpoint, and what it adds, for machines."""
    return checkpoint_document(listed.checkpoint) | {"added": listed.added}


def surplus_document(found: Surplus) -> Document:
    """A checkpoint that expires, for machines."""
    return {"task": found.checkpoint.task, "checkpoint": found.checkpoint.id, "reason": found.reason}


def print_checkpoints(found: Iterable[Checkpoint]) -> None:
    """A table of checkpoints, if there are any."""
    rows = [_row(each, str(each.bytes)) for each in found]
    if rows:
        render.print_rows(("CHECKPOINT", "TAKEN", "FILES", "BYTES", "LABEL"), rows)


def print_listed(found: Sequence[Listed]) -> None:
    """A table of checkpoints, and of what each adds."""
    rows = [_row(each.checkpoint, show_size(each.added)) for each in found]
    render.print_rows(("CHECKPOINT", "TAKEN", "FILES", "ADDS", "LABEL"), rows, "no checkpoints")


def notes(checkpoint: Checkpoint) -> list[str]:
    """What there is to know of a checkpoint beside its label."""
    said = [f"{len(checkpoint.torn)} torn"] if checkpoint.torn else []
    said += [f"{checkpoint.commands} commands ran, whose processes it has not"] if checkpoint.commands else []
    said += ["with its system"] if checkpoint.image else []
    said += ["pinned"] if checkpoint.pinned else []
    said += [f"#{tag}" for tag in checkpoint.tags]
    return said + ([f"expired: {checkpoint.expired}"] if checkpoint.expired_ns else [])


def _row(checkpoint: Checkpoint, size: str) -> tuple[str | Text, ...]:
    label = render.plain(checkpoint.label)
    for note in notes(checkpoint):
        label.append(f"  {render.plain(note)}", "red" if note.endswith(" torn") else "dim")
    when = render.moment(checkpoint.time_ns)[:19].replace("T", " ")
    return checkpoint.id, when, str(checkpoint.files), size, label
