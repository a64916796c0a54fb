"""What the command line shows people of checkpoints, and of what was set back."""

from __future__ import annotations

from collections.abc import Mapping

from sandkeep.sandboxes import documents, documents_work, render


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
