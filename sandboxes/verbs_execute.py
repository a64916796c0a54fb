"""What the verb that runs a command does, in the foreground with its streams, or in the background. It holds no
logic."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from sandkeep.events import BadInput
from sandkeep.sandboxes import documents
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.execution import DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS
from sandkeep.sandboxes.own_workspace import OwnTask
from sandkeep.sandboxes.task import Task

_ALONE = (
    "a command in the background has no --stdin, --script or --secret: whoever finds that it has ended records what it"
    " wrote, and knows no secret to keep out of that; put what it needs into files of the workspace first"
)


def execute(
    door: Door,
    *,
    task: str,
    argv: Sequence[str] = (),
    timeout: float | None = None,
    env: Sequence[str] = (),
    secret: Sequence[str] = (),
    cwd: str = ".",
    stdin: str | None = None,
    script: str | None = None,
    in_background: bool = False,
    token: int | None = None,
) -> documents.Ran | documents.Process:
    """Run a command; see `Task.execute` and `Task.start`."""
    variables = dict(_variable(each) for each in env)
    secrets = {name: _secret(name) for name in secret}
    if stdin is not None and script is not None:
        raise BadInput("a script is the input of its shell; give --script or --stdin, and the other as a file")
    found = door.keep.task(task, token)
    begun = _own_workspace(found)
    if in_background:
        if secrets or stdin is not None or script is not None:
            raise BadInput(_ALONE)
        longest = MAX_TIMEOUT_SECONDS if timeout is None else timeout
        return documents.process(found.start(argv, timeout=longest, env=variables, cwd=cwd, progress=door.progress))
    words, limit = argv, DEFAULT_TIMEOUT_SECONDS if timeout is None else timeout
    with contextlib.ExitStack() as stack:
        given: bytes | BinaryIO | None = None
        if script is not None:
            words, given = ["sh", "-s", "--", *argv], Path(script).read_bytes()
        elif stdin is not None:
            given = stack.enter_context(open(0 if stdin == "-" else stdin, "rb", buffering=0, closefd=stdin != "-"))
        stack.enter_context(door.keep.locking.renewing(found.id, token))
        result = found.execute(
            words,
            timeout=limit,
            env=variables,
            secrets=secrets,
            cwd=cwd,
            stdin=given,
            on_output=door.output,
            stop=door.stop,
            progress=door.progress,
        )
    own = _own_workspace(found)
    if own != begun:
        door.note(f"this ran in a workspace of its own, task {own}; 'detach' merges it")
    if result.timed_out:
        taken = min(limit, round(result.duration_s, 1))  # the task's limit may be less than what was asked for
        door.note(f"the command was ended after {taken:g} s")
    if result.stdout.truncated or result.stderr.truncated:
        door.note("the command was ended because it wrote too much")
    if result.oom_killed:
        door.note("memory ran out, and the kernel ended a process of the command")
    if result.news:
        door.note(str(result.news))
    return documents.ran(result, door.keep.blobs, own)


def _own_workspace(task: Task) -> str | None:
    """The id of the own workspace that commands of a task run in, if they do and it is there."""
    return task.forked if isinstance(task, OwnTask) else None


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
