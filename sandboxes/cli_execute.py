"""The command line's verb that runs a command: in the foreground with its streams, or in the background. It holds no
logic."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from sandkeep.events import BadInput
from sandkeep.sandboxes import cli_conflicts, cli_processes, render
from sandkeep.sandboxes.background import Running
from sandkeep.sandboxes.execution import DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId, Token

_ALONE = (
    "a command in the background has no --stdin, --script or --secret: whoever finds that it has ended records what it"
    " wrote, and knows no secret to keep out of that; put what it needs into files of the workspace first"
)


def execute(
    task: TaskId,
    argv: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGV...", help="The program and its arguments.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="When it is up, all that the command started is ended (124). By default 600, a day in the background.",
        ),
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A variable; may be repeated.")] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A variable of yours whose value is kept out of the record; may be repeated."
        ),
    ] = None,
    cwd: Annotated[str, typer.Option(metavar="DIR", help="Where to run, inside the workspace.")] = ".",
    stdin: Annotated[str | None, typer.Option(metavar="FILE", help="What it reads; - is our own input.")] = None,
    script: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A shell script to run; ARGV are its arguments.")
    ] = None,
    in_background: Annotated[bool, typer.Option("--background", help="Do not wait; see 'processes'.")] = False,
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Run a command in a task's sandbox; its streams and its exit status are those of this program."""
    variables = dict(_variable(each) for each in env or ())
    secrets = {name: _secret(name) for name in secret or ()}
    if stdin is not None and script is not None:
        raise BadInput("a script is the input of its shell; give --script or --stdin, and the other as a file")
    with Keep.open(keep) as opened, contextlib.ExitStack() as stack:
        found = opened.task(task, token)
        begun = cli_conflicts.own_workspace(found)
        on_output = None if json else _write
        words = argv or []
        if in_background:
            if secrets or stdin is not None or script is not None:
                raise BadInput(_ALONE)
            longest = MAX_TIMEOUT_SECONDS if timeout is None else timeout
            _say(found.start(words, timeout=longest, env=variables, cwd=cwd, progress=render.say_slowly()), json)
            return
        limit = DEFAULT_TIMEOUT_SECONDS if timeout is None else timeout
        given: bytes | BinaryIO | None = None
        if script is not None:
            words, given = ["sh", "-s", "--", *words], script.read_bytes()
        elif stdin is not None:
            given = stack.enter_context(open(0 if stdin == "-" else stdin, "rb", buffering=0, closefd=stdin != "-"))
        with opened.locking.renewing(found.id, token):
            result = found.execute(
                words,
                timeout=limit,
                env=variables,
                secrets=secrets,
                cwd=cwd,
                stdin=given,
                on_output=on_output,
                progress=render.say_slowly(),
            )
        own = cli_conflicts.own_workspace(found)
        if json:
            document = render.result_document(result, opened.blobs)
            render.print_json(document if own is None else document | {"own_workspace": own})
            return
    if own != begun:
        print(f"sandkeep: this ran in a workspace of its own, task {own}; 'detach' merges it", file=sys.stderr)
    if result.timed_out:
        taken = min(limit, round(result.duration_s, 1))  # the task's limit may be less than what was asked for
        print(f"sandkeep: the command was ended after {taken:g} s", file=sys.stderr)
    if result.stdout.truncated or result.stderr.truncated:
        print("sandkeep: the command was ended because it wrote too much", file=sys.stderr)
    if result.oom_killed:
        print("sandkeep: memory ran out, and the kernel ended a process of the command", file=sys.stderr)
    if result.news:
        print(f"sandkeep: {render.plain(str(result.news))}", file=sys.stderr)
    raise typer.Exit(result.exit_code)


def _variable(assignment: str) -> tuple[str, str]:
    name, equals, value = assignment.partition("=")
    if not equals:
        raise BadInput(f"--env {assignment!r} sets nothing; write it as NAME=VALUE")
    return name, value


def _secret(name: str) -> str:
    try:
        return os.environ[name]
    except (KeyError, ValueError) as error:  # a name with a NUL or "=" is none that could be set
        raise BadInput(
            f"--secret {name!r} is no variable of yours; set it first, its value is read from there"
        ) from error


def _say(started: Running, json: bool) -> None:
    if json:
        render.print_json(cli_processes.process_document(started))
    else:
        print(started.id)


def _write(name: str, data: bytes) -> None:
    render.write((sys.stdout if name == "stdout" else sys.stderr).buffer, data)
