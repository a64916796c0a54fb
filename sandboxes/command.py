"""A command that is on record as asked for: run in a sandbox, waited for, and what came of it recorded.

By the agent of the sandbox, or where there is none through the image's shell. Whatever ends the wait, the command has
an outcome: what the agent says, a refusal, an interrupt. Only while neither the agent nor the engine can be reached it
has none; it is found later by its id, by whoever reconciles.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from sandkeep.events import BlobStore, LimitReached, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Output
from sandkeep.sandboxes import agent, conflict, execution, shell, spool, workspace
from sandkeep.sandboxes.agent import Broken, Refused, Spec, Window
from sandkeep.sandboxes.conflict_work import News
from sandkeep.sandboxes.errors import EngineFailed, EngineUnreachable, SandboxGone, TaskRefused
from sandkeep.sandboxes.execution import FLOODED, TIMED_OUT, Result, Streamed
from sandkeep.sandboxes.outcome import settle, words
from sandkeep.sandboxes.sandbox import Place, Sandbox
from sandkeep.sandboxes.secrets import Secrets
from sandkeep.sandboxes.shell import ShellSpool
from sandkeep.sandboxes.spool import STREAMS, Ended, Spool

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

REASONS = frozenset({"", "timeout", "output", "stopped", "abandoned", "interrupted", "lost"})
"""Why commands are ended. What else a sandbox says goes into no record."""

NO_AGENT = TaskRefused(
    "the image of this sandbox has no Python, and there was none to lend, without which a command can have no input,"
    " background or terminal; say 'sandkeep build-image base' and 'sandkeep stop-task', then run the command again"
)

PATIENCE_SECONDS = 15.0
"""How long after its time was up an agent may be silent about a command, before everything in the sandbox is ended."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command that somebody asks for, checked: what to run, and what of it may not be stored."""

    argv: tuple[str, ...]
    env: dict[str, str]
    folder: str
    timeout: float
    hidden: Secrets
    secrets: tuple[str, ...] = ()
    stdin: bytes | BinaryIO | None = None
    background: bool = False
    window: Callable[[], Window] | None = None
    most: int = 0
    """The bytes that it may write to each stream; 0 for as many as any."""
    stop: threading.Event | None = None
    """Ends it once it is set."""

    def request(self, made: str, blobs: BlobStore) -> ev.CommandRequested:
        """What is put on record before it is run, under the intent `made`. Input that is large goes to `blobs`."""
        given: Output | None = None
        if isinstance(self.stdin, bytes):
            given = spool.kept(io.BytesIO(self.stdin), len(self.stdin), False, blobs, self.hidden)
        return ev.CommandRequested(
            made,
            tuple(map(self.hidden.text, self.argv)),
            self.hidden.text(self.folder),
            tuple(sorted(self.env)),
            int(self.timeout * 1e9),
            self.secrets,
            given,
            self.background,
            self.window is not None,
        )

    def spec(self, *, follow: bool) -> Spec:
        """The same for the agent."""
        return Spec(
            self.argv,
            self.folder,
            self.env,
            self.timeout,
            spool.most(self.most),
            stdin=self.stdin is not None,
            follow=follow,
            window=None if self.window is None else self.window(),
        )


def ask(
    argv: Sequence[str],
    timeout: float,
    env: Mapping[str, str] | None,
    secrets: Mapping[str, str] | None,
    cwd: str,
    *,
    stdin: bytes | BinaryIO | None = None,
    background: bool = False,
    window: Callable[[], Window] | None = None,
    stop: threading.Event | None = None,
) -> Asked:
    """What somebody asks for, if it can be run and recorded. Raises `BadInput`, `BadTimeout` and `OutsideWorkspace`."""
    variables, hidden = execution.check_variables(env or {}, secrets or {})
    return Asked(
        argv=execution.check_argv(argv),
        env=variables,
        folder=str(workspace.inside(cwd)),
        timeout=execution.check_timeout(timeout),
        hidden=hidden,
        secrets=tuple(sorted(secrets or ())),
        stdin=stdin,
        background=background,
        window=window,
        stop=stop,
    )


def carry_out(
    keep: Keep, sandbox: Sandbox, place: Place, made: str, asked: Asked, on_output: Streamed | None
) -> Result:
    """Run what was asked for, wait for it, and record what came of it."""
    run = _by_shell if place.connection is None else _by_agent
    try:
        event = run(keep, sandbox, place, made, asked, on_output)
    except SandkeepError as error:
        if isinstance(error, EngineUnreachable) and place.connection is not None:
            raise  # it may run on: what becomes of it is found by its id, and recorded then
        code, message = words(error)
        settle(keep, sandbox.id, ev.CommandFailed(made, code, asked.hidden.text(message)))
        sandbox.forget(made)
        if isinstance(error, EngineUnreachable | EngineFailed):
            # It may still run, unwatched: the next command gets a new sandbox, which ends this one.
            sandbox.give_up("the engine failed while a command ran in it")
        raise
    except BaseException:  # the caller's callback, or Ctrl-C: the command must not outlive the call
        with contextlib.suppress(EngineUnreachable):  # then it is ended by whoever reconciles
            if place.connection is None or sandbox.end(made, "interrupted") is None:
                place.end_all()
            settle(keep, sandbox.id, ev.CommandFailed(made, "interrupted", "the caller ended it"))
            sandbox.forget(made)
        raise
    news = conflict.end(keep, sandbox.id, made)
    settle(keep, sandbox.id, event)
    sandbox.forget(made)
    return result(event, news)


def result(event: ev.CommandExecuted, news: News | None = None) -> Result:
    """What a command did, from what is on record of it."""
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


def launch(keep: Keep, sandbox: Sandbox, place: Place, made: str, asked: Asked) -> None:
    """Start what was asked for, and leave it to the agent once it runs."""
    try:
        if place.connection is None:
            raise NO_AGENT
        place.connection.run(made, asked.spec(follow=False))
        message = place.connection.next(PATIENCE_SECONDS)
        if message is None:
            raise EngineFailed("the sandbox's agent does not start the command; run it again in a new sandbox")
    except Refused as refused:
        error = refusal(sandbox, refused, asked)
        settle(keep, sandbox.id, ev.CommandFailed(made, *words(error)))
        raise error from refused
    except SandkeepError as failure:
        settle(keep, sandbox.id, ev.CommandFailed(made, *words(failure)))
        raise
    except Broken:
        return  # whether it runs is found by whoever looks next


def _by_agent(
    keep: Keep, sandbox: Sandbox, place: Place, made: str, asked: Asked, on_output: Streamed | None
) -> ev.CommandExecuted:
    connection = place.connection
    assert connection is not None
    with Spool(sandbox.spool, made) as files:
        pump = None if on_output is None else partial(give, files, on_output)
        try:
            connection.run(made, asked.spec(follow=on_output is not None))
            if asked.stdin is not None:
                connection.feed(io.BytesIO(asked.stdin) if isinstance(asked.stdin, bytes) else asked.stdin)
            patience = asked.timeout + PATIENCE_SECONDS
            ended = agent.wait(connection, files, made, patience, pump, sandbox.reconnect, asked.window, asked.stop)
        except Refused as refused:
            raise refusal(sandbox, refused, asked) from refused
        if ended is None or not ended.swept:
            place.end_all()
        if ended is None:
            ended = Ended(made, 0, "timeout", True, False, int(asked.timeout * 1e9), 0, ())
        if pump is not None:
            pump()
        return collected(made, ended, files, keep.blobs, asked.hidden)


def _by_shell(
    keep: Keep, sandbox: Sandbox, place: Place, made: str, asked: Asked, on_output: Streamed | None
) -> ev.CommandExecuted:
    if asked.stdin is not None:
        raise NO_AGENT
    with ShellSpool(sandbox.spool, made, asked.most) as files:
        pump = None if on_output is None else partial(give, files, on_output)
        ended = shell.run(
            keep.engine, place.container, files, asked.argv, asked.env, asked.folder, asked.timeout, pump, place.end_all
        )
        if pump is not None:
            pump()
        streams = (files.output(name, keep.blobs, asked.hidden) for name in STREAMS.values())
        return executed(made, ended, *streams)


def collected(command: str, ended: Ended, files: Spool, blobs: BlobStore, hidden: Secrets) -> ev.CommandExecuted:
    """What became of a command, with its output from the spool."""
    return executed(command, ended, *(files.output(name, blobs, hidden, ended) for name in STREAMS.values()))


def give(files: Spool | ShellSpool, on_output: Streamed) -> None:
    """Give the caller what was written since the last time."""
    for name, file in STREAMS.items():
        while data := files.fresh(file):
            on_output(name, data)


def executed(command: str, ended: Ended, stdout: Output, stderr: Output) -> ev.CommandExecuted:
    """What became of a command, for the record."""
    reason = ended.reason if ended.reason in REASONS else "lost"
    code = {"timeout": TIMED_OUT, "output": FLOODED}.get(ended.reason, ended.exit)
    times = (ended.duration_ns, ended.reason == "timeout")
    return ev.CommandExecuted(command, code, *times, stdout, stderr, ended.cpu_ns, ended.oom, reason)


def refusal(sandbox: Sandbox, refused: Refused, asked: Asked) -> SandkeepError:
    """What the agent refused, as the error that it stands for. A sandbox that nothing can begin in is given up."""
    match refused.code:
        case "command-not-found":
            return shell.not_found(asked.argv[0])
        case "no-such-folder":
            return shell.no_folder(asked.folder)
        case "no-memory":
            sandbox.give_up("its memory is full")
            return LimitReached("the sandbox's memory is full, and nothing can begin there; run it again, in a new one")
        case "no-process":
            return LimitReached("the sandbox has as many processes as it may; end some, or wait until they have ended")
        case "other-sandbox":
            return SandboxGone("the sandbox was replaced meanwhile; run the command again")
    return EngineFailed(f"the sandbox's agent refused the command ({refused.code}); run it again in a new sandbox")
