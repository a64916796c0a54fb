"""What the verbs for commands do: run one in the foreground with its streams, in the background, or in a terminal. They
hold no logic."""

from __future__ import annotations

import contextlib
import os
import shutil
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from sandkeep.events import BadInput
from sandkeep.sandboxes import background, documents, documents_work, keyboard
from sandkeep.sandboxes.agent import Window
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
            lasting=door.lasting,
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


def processes(door: Door, *, task: str) -> list[documents.Process]:
    """The commands that run in the background; see `Task.running`."""
    return [documents.process(each) for each in door.keep.task(task).running()]


def process_output(
    door: Door, *, task: str, command: str, stderr: bool = False, after: int = 0
) -> documents_work.Written:
    """What a command in the background has written so far; see `Running.output`."""
    found = background.find(door.keep, door.keep.task(task).id, command)
    stream, data, at = "stderr" if stderr else "stdout", bytearray(), after
    while more := found.output(stream, at):
        at += len(more)
        data += more[: documents.OUTPUT_BYTES - len(data)]
        # Whatever it was on, here it is what was asked for.
        door.output("stdout", more)
    return documents_work.Written(found.id, after, after + len(data), bytes(data))


def wait_process(door: Door, *, task: str, command: str, timeout: float | None = None) -> documents.Ran | None:
    """Wait for a command in the background; see `Running.wait`."""
    result = background.find(door.keep, door.keep.task(task).id, command).wait(timeout)
    return None if result is None else documents.ran(result, door.keep.blobs)


def stop_process(door: Door, *, task: str, command: str) -> documents.Ran:
    """End a command in the background; see `Running.stop`."""
    result = background.find(door.keep, door.keep.task(task).id, command).stop()
    return documents.ran(result, door.keep.blobs)


def terminal(door: Door, *, task: str, argv: Sequence[str] = (), token: int | None = None) -> documents_work.Ended:
    """Open a terminal in a task's sandbox, by ours; see `Task.terminal`."""
    found = door.keep.task(task, token)
    env = {"TERM": os.environ.get("TERM", "dumb")}
    renewed = door.keep.locking.renewing(found.id, token)
    with renewed, keyboard.in_mode(tty.setraw), open(0, "rb", buffering=0, closefd=False) as typed:
        result = found.terminal(argv or ["sh"], typed, door.output, _window, env=env)
    return documents_work.Ended(result.command, result.exit_code)


def _window() -> Window:
    size = shutil.get_terminal_size()
    return size.lines, size.columns


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
