"""The command line's verbs that compare a task's files with its checkpoints, and set them back. They hold no logic; see
`Task.restore_checkpoint` and `Task.diff`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sandkeep.sandboxes import render, render_diff
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId, Token

app = typer.Typer()


@app.command("restore-checkpoint")
def restore_checkpoint(
    task: TaskId,
    checkpoint: Annotated[str, typer.Argument(help="The checkpoint's id, or the beginning of it.")],
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="Only these, and what is below them.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done, path by path.")] = False,
    privileges: Annotated[bool, typer.Option("--privileges", help="Make devices and set-user-id files too.")] = False,
    files_only: Annotated[bool, typer.Option("--files-only", help="Leave its tags and decisions as they are.")] = False,
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Set a task back to a checkpoint, workspace, tags and decisions; what it was is recorded first, so this can be
    undone. With paths, only files are."""
    with Keep.open(keep) as opened, render.progress() as progress:
        found = opened.task(task, token)
        done = found.restore_checkpoint(
            checkpoint,
            paths=paths or (),
            dry_run=dry_run,
            privileges=privileges,
            files_only=files_only,
            progress=lambda files: progress(f"recording files: {files}"),
        )
    for path in done.stripped:
        print(f"sandkeep: without its privileges: {render.plain(path)}", file=sys.stderr)
    if json:
        render.print_json(render_diff.restored_document(found.id, done))
    elif dry_run:
        render_diff.print_planned(done.planned)
    else:
        print(f"restored {done.checkpoint}, digest {done.digest}; to undo, restore {done.undo}")


@app.command("diff")
def diff(
    task: TaskId,
    old: Annotated[str, typer.Argument(metavar="[OLD]", help="A checkpoint; the last one if none is named.")] = "",
    new: Annotated[str, typer.Argument(metavar="[NEW]", help="Another; the workspace as it is if none is.")] = "",
    path: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Only this, and what is below it; may be repeated.")
    ] = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only a line for each path.")] = False,
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Show what differs between two checkpoints of a task, or between one and its workspace as it is."""
    with Keep.open(keep) as opened:
        told = opened.task(task, token).diff(old, new, path or (), text=not stat)
    if json:
        render.print_json([render_diff.diff_document(each) for each in told])
    else:
        render_diff.print_diff(told, stat=stat)
