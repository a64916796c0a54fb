"""A command that is on record as asked for: run in a sandbox, waited for, and what came of it recorded.

By the agent of the sandbox, or where there is none through the image's shell. Whatever ends the wait, the command has
an outcome: what the agent says, a refusal, an interrupt. Only while neither the agent nor the engine can be reached it
has none; it is found later by its id, by whoever reconciles.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from sandkeep.events import BlobStore, LimitReached, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Output
from sandkeep.sandboxes import agent, conflict, shell, spool
from sandkeep.sandboxes.agent import Broken, Refused, Spec
from sandkeep.sandboxes.errors import EngineFailed, EngineUnreachable, SandboxGone, TaskRefused
from sandkeep.sandboxes.execution import FLOODED, TIMED_OUT, Result, Streamed
from sandkeep.sandboxes.outcome import settle, words
from sandkeep.sandboxes.sandbox import Place, Sandbox
from sandkeep.sandboxes.secrets import Secrets
from sandkeep.sandboxes.shell import ShellSpool
from sandkeep.sandboxes.spool import STREAMS, Ended, Spool

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

PATIENCE_SECONDS = 15.0
"""How long after its time was up an agent may be silent about a command, before everything in the sandbox is ended."""


class Asked(msgspec.Struct, frozen=True):
    """A command that was asked for and is on record: what to run, and what of it may not be stored."""

    command: str
    argv: tuple[str, ...]
    env: dict[str, str]
    folder: str
    timeout: float
    hidden: Secrets
    stdin: BinaryIO | None = None


def carry_out(keep: Keep, sandbox: Sandbox, place: Place, asked: Asked, on_output: Streamed | None) -> Result:
    """Run what was asked for, wait for it, and record what came of it."""
    run = _by_shell if place.connection is None else _by_agent
    try:
        event = run(keep, sandbox, place, asked, on_output)
    except SandkeepError as error:
        if isinstance(error, EngineUnreachable) and place.connection is not None:
            raise  # it may run on: what becomes of it is found by its id, and recorded then
        code, message = words(error)
        settle(keep, sandbox.id, ev.CommandFailed(asked.command, code, asked.hidden.text(message)))
        if isinstance(error, EngineUnreachable | EngineFailed):
            # It may still run, unwatched: the next command gets a new sandbox, which ends this one.
            sandbox.give_up("the engine failed while a command ran in it")
        raise
    except BaseException:  # the caller's callback, or Ctrl-C: the command must not outlive the call
        if place.connection is None or sandbox.end(asked.command, "interrupted") is None:
            place.end_all()
        settle(keep, sandbox.id, ev.CommandFailed(asked.command, "interrupted", "the caller ended it"))
        raise
    news = conflict.end(keep, sandbox.id, asked.command)
    settle(keep, sandbox.id, event)
    sandbox.forget(asked.command)
    return Result(
        event.intent,
        event.exit_code,
        event.duration_ns / 1e9,
        event.timed_out,
        event.stdout,
        event.stderr,
        news,
        event.oom_killed,
    )


def _by_agent(
    keep: Keep, sandbox: Sandbox, place: Place, asked: Asked, on_output: Streamed | None
) -> ev.CommandExecuted:
    connection = place.connection
    assert connection is not None
    spec = Spec(
        asked.argv,
        asked.folder,
        asked.env,
        asked.timeout,
        spool.OUTPUT_BYTES,
        stdin=asked.stdin is not None,
        follow=on_output is not None,
    )
    with Spool(sandbox.spool, asked.command) as files:
        pump = None if on_output is None else partial(_give, files, on_output)
        try:
            with contextlib.suppress(Broken):  # which waiting finds too, and deals with
                connection.run(asked.command, spec)
                if asked.stdin is not None:
                    connection.feed(asked.stdin)
            patience = asked.timeout + PATIENCE_SECONDS
            ended = agent.wait(connection, files, asked.command, patience, pump, sandbox.reconnect)
        except Refused as refused:
            raise refusal(refused, asked.argv, asked.folder) from refused
        if ended is None or not ended.swept:
            place.end_all()
        if ended is None:
            ended = Ended(asked.command, 0, "timeout", True, False, int(asked.timeout * 1e9), 0, ())
        if pump is not None:
            pump()
        return collected(asked.command, ended, files, keep.blobs, asked.hidden)


def _by_shell(
    keep: Keep, sandbox: Sandbox, place: Place, asked: Asked, on_output: Streamed | None
) -> ev.CommandExecuted:
    if asked.stdin is not None:
        raise TaskRefused("a sandbox without Python can give a command no input; write it to a file of the workspace")
    with ShellSpool(sandbox.spool, asked.command) as files:
        pump = None if on_output is None else partial(_give, files, on_output)
        ended = shell.run(
            keep.engine, place.container, files, asked.argv, asked.env, asked.folder, asked.timeout, pump, place.end_all
        )
        if pump is not None:
            pump()
        streams = (files.output(name, keep.blobs, asked.hidden) for name in STREAMS.values())
        return executed(asked.command, ended, *streams)


def collected(command: str, ended: Ended, files: Spool, blobs: BlobStore, hidden: Secrets) -> ev.CommandExecuted:
    """What became of a command, with its output from the spool."""
    return executed(command, ended, *(files.output(name, blobs, hidden, ended) for name in STREAMS.values()))


def _give(files: Spool | ShellSpool, on_output: Streamed) -> None:
    """Give the caller what was written since the last time."""
    for name, file in STREAMS.items():
        while data := files.fresh(file):
            on_output(name, data)


def executed(command: str, ended: Ended, stdout: Output, stderr: Output) -> ev.CommandExecuted:
    """What became of a command, for the record."""
    code = {"timeout": TIMED_OUT, "output": FLOODED}.get(ended.reason, ended.exit)
    times = (ended.duration_ns, ended.reason == "timeout")
    return ev.CommandExecuted(command, code, *times, stdout, stderr, ended.cpu_ns, ended.oom, ended.reason)


def refusal(refused: Refused, argv: tuple[str, ...], folder: str) -> SandkeepError:
    """What the agent refused, as the error that it stands for."""
    match refused.code:
        case "command-not-found":
            return shell.not_found(argv[0])
        case "no-such-folder":
            return shell.no_folder(folder)
        case "no-process":
            return LimitReached("the sandbox has as many processes as it may; end some, or wait until they have ended")
        case "other-sandbox":
            return SandboxGone("the sandbox was replaced meanwhile; run the command again")
    return EngineFailed(f"the sandbox's agent refused the command ({refused.code}); run it again in a new sandbox")
