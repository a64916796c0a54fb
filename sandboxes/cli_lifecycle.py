"""The command line's verbs for the life of sandboxes: pause, resume and stop them, let ended tasks go on; the steward,
and the doctor. They hold no logic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sandkeep.sandboxes import render
from sandkeep.sandboxes.doctor import examine, healthy
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId, Token
from sandkeep.sandboxes.task import Task

app = typer.Typer()

_LOOK_SECONDS = 0.5


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


@app.command("steward")
def steward(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Do a keep's background work until interrupted: settle what crashed, freeze what is idle, fill the pool.

    One process does it for a keep; another one waits to take over. With --json, one document a line.
    """

    def told(line: str) -> None:
        if json:
            render.print_json({"did": line})
        else:
            print(render.plain(line), flush=True)

    with Keep.open(keep) as opened:
        running = opened.steward(told)
        try:
            with running:
                while not running.join(_LOOK_SECONDS):
                    continue
        except KeyboardInterrupt:
            return  # that is how it is meant to end


@app.command("doctor")
def doctor(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Look at the engine, the keep, its steward and this host, and say what to do. Exit status 1 if it is needed."""
    found = examine(keep.absolute(), Engine())
    if json:
        render.print_json({"ok": healthy(found), "findings": found})
    else:
        for finding in found:
            mark = "✗" if finding.act else "·" if finding.advice else "✓"
            advice = f": {finding.advice}" if finding.advice else ""
            print(f"{mark} {finding.area:9}  {render.plain(finding.what + advice)}")
    raise typer.Exit(0 if healthy(found) else 1)


def _do(keep: Path, task: str, token: int | None, json: bool, act: Callable[[Task], None]) -> None:
    with Keep.open(keep) as opened:
        found = opened.task(task, token)
        act(found)
        state = found.state
    render.print_state(state, json)
