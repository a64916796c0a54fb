"""The command line's verbs for the life of a sandbox: pause, resume and stop it, and let an ended task go on.

They hold no logic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sandkeep.sandboxes import render
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId, Token
from sandkeep.sandboxes.task import Task

app = typer.Typer()


@app.command("pause-task")
def pause_task(task: TaskId, token: Token = None, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Freeze a task's sandbox; commands are refused until resume-task."""
    _do(keep, task, token, json, Task.pause)


@app.command("resume-task")
def resume_task(task: TaskId, token: Token = None, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Let a paused task go on."""
    _do(keep, task, token, json, Task.resume)


@app.command("stop-task")
def stop_task(task: TaskId, token: Token = None, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Remove a task's sandbox. The workspace stays, and the next command starts another sandbox."""
    _do(keep, task, token, json, Task.stop)


@app.command("reopen-task")
def reopen_task(
    task: TaskId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why it goes on.")] = "",
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Let a completed or failed task go on in the workspace that it had, unless it has been cleaned up."""
    _do(keep, task, token, json, lambda found: found.reopen(reason))


def _do(keep: Path, task: str, token: int | None, json: bool, act: Callable[[Task], None]) -> None:
    with Keep.open(keep) as opened:
        found = opened.task(task, token)
        act(found)
        state = found.state
    render.print_state(state, json)
