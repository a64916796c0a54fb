"""The command line's verbs that compare a task's files with its checkpoints, and set them back. They hold no logic; see
`Task.restore_checkpoint` and `Task.diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from sandkeep.sandboxes import render, render_diff
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId, Token

app = typer.Typer()


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
