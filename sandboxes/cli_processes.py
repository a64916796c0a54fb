"""The command line's verbs for commands that run in the background, and for a terminal. They hold no logic."""

from __future__ import annotations

import os
import shutil
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from sandkeep.sandboxes import background, render
from sandkeep.sandboxes.agent import Window
from sandkeep.sandboxes.background import Running
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId, Token

app = typer.Typer()

_CommandId = Annotated[str, typer.Argument(metavar="COMMAND", help="The command's id, or the beginning of it.")]


@app.command("processes")
def processes(task: TaskId, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """List the commands that run in the background of a task."""
    with Keep.open(keep) as opened:
        found = opened.task(task).running()
        if json:
            render.print_json([process_document(each) for each in found])
        else:
            for each in found:
                print(render.plain(f"{each.id}  {' '.join(each.request.argv)}"))


@app.command("process-output")
def process_output(
    task: TaskId,
    command: _CommandId,
    stderr: Annotated[bool, typer.Option("--stderr", help="What it wrote to standard error instead.")] = False,
    after: Annotated[int, typer.Option(metavar="BYTES", min=0, help="Only what came behind these.")] = 0,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Show what a command in the background has written so far."""
    with Keep.open(keep) as opened:
        found = background.find(opened, opened.task(task).id, command)
        data, at = b"", after
        while more := found.output("stderr" if stderr else "stdout", at):
            at += len(more)
            if json:
                data = (data + more)[: render.JSON_OUTPUT_BYTES]
            else:
                render.write(sys.stdout.buffer, more)
    if json:
        render.print_json({"command": found.id, "after": after, "next": at, "output_base64": data})


@app.command("wait-process")
def wait_process(
    task: TaskId,
    command: _CommandId,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="How long; for ever, if left out.")] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Wait until a command in the background has ended. Exit status: its own; 124 if it runs on."""
    with Keep.open(keep) as opened:
        result = background.find(opened, opened.task(task).id, command).wait(timeout)
        if json:
            render.print_json(None if result is None else render.result_document(result, opened.blobs))
            return
    raise typer.Exit(124 if result is None else result.exit_code)


@app.command("stop-process")
def stop_process(task: TaskId, command: _CommandId, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """End a command in the background, with all that it started."""
    with Keep.open(keep) as opened:
        result = background.find(opened, opened.task(task).id, command).stop()
        if json:
            render.print_json(render.result_document(result, opened.blobs))
        else:
            print(f"{result.command}  stopped")


@app.command("terminal")
def terminal(
    task: TaskId,
    argv: Annotated[list[str] | None, typer.Argument(metavar="-- ARGV...", help="By default, a shell.")] = None,
    token: Token = None,
    keep: KeepPath = HERE,
) -> None:
    """Open a terminal in a task's sandbox. What it shows is recorded."""
    with Keep.open(keep) as opened:
        found = opened.task(task, token)
        env = {"TERM": os.environ.get("TERM", "dumb")}
        with opened.locking.renewing(found.id, token), _raw(), open(0, "rb", buffering=0, closefd=False) as keyboard:
            result = found.terminal(argv or ["sh"], keyboard, _show, _window, env=env)
    raise typer.Exit(result.exit_code)


def process_document(process: Running) -> render.Document:
    """A command in the background, for machines."""
    asked = process.request
    return {"command": process.id, "argv": asked.argv, "cwd": asked.cwd, "timeout_s": asked.timeout_ns / 1e9}


@contextmanager
def _raw() -> Iterator[None]:
    """Our own terminal passes every key on, and is as before in the end."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _show(name: str, data: bytes) -> None:
    render.write(sys.stdout.buffer, data)


def _window() -> Window:
    size = shutil.get_terminal_size()
    return size.lines, size.columns
