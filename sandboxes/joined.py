"""Commands whose caller died: what became of them is fetched from the sandbox, and recorded as if it had lived.

The agent goes on without us and writes down what comes of a command. One that has ended is recorded; one that runs in
the background goes on; one that nobody waits for is ended and recorded with what it had printed. One that the agent
does not know was never begun, and never will be. No command is run twice.

Its secrets died with its caller, and without them they cannot be told from the rest of its output; of such a command no
output is stored.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Output
from sandkeep.projections import Pending, registry
from sandkeep.sandboxes import agent, command, conflict, intent
from sandkeep.sandboxes.agent import Broken, Refused
from sandkeep.sandboxes.container import AGENT, SHELL
from sandkeep.sandboxes.errors import EngineFailed, SandboxGone, TaskRefused
from sandkeep.sandboxes.execution import Result, Streamed
from sandkeep.sandboxes.outcome import INTERRUPTED
from sandkeep.sandboxes.outcome import settle as store
from sandkeep.sandboxes.recorded import Recorded
from sandkeep.sandboxes.sandbox import Sandbox
from sandkeep.sandboxes.secrets import Secrets
from sandkeep.sandboxes.spool import Ended, Spool

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

ABANDONED = "abandoned"
"""Why a command was ended that nobody waits for."""

PATIENCE_SECONDS = 20.0
"""How long an agent is given to end a command and to tell about it."""


def abandoned(keep: Keep, task: registry.Task, pending: Pending, *, alone: bool) -> list[str]:
    """Settle a command whose caller died, unless it goes on in the background, and tell what was done.

    `alone` says that nothing else goes on in the task: without an agent, what runs beside a command ends with it.
    """
    asked = next(keep.log.read(pending.position - 1)).event
    if not isinstance(asked, ev.CommandRequested):
        return []
    end = "" if asked.background else ABANDONED
    outcome = settle(keep, task, asked, end=end, deadline=time.monotonic(), alone=alone)
    if outcome is None:
        return []
    became = "was interrupted"
    if isinstance(outcome, ev.CommandExecuted):
        became = f"was ended ({outcome.reason})" if outcome.reason else "had ended"
    return [f"task {task.id}: CommandRequested of position {pending.position} {became}"]


def settle(
    keep: Keep, task: registry.Task, asked: ev.CommandRequested, *, end: str, deadline: float, alone: bool = True
) -> ev.Outcome | None:
    """Record what became of a command: when it has ended by itself before the `deadline` (of the monotonic clock), or
    has been ended, for the reason `end`. None if it goes on.

    Raises `TaskRefused` if somebody else recorded it first.
    """
    sandbox = Sandbox(keep, task.id)
    with Spool(sandbox.spool, asked.intent) as files:
        ended = agent.written(files, asked.intent)
        if ended is None and task.container is not None and (form := _form(keep, sandbox, task.container)) is not None:
            if form != SHELL:
                ended, runs = _asked(sandbox, files, asked, end, deadline)
                if runs:
                    return None
            elif alone:
                sandbox.restart(task.container)
            else:
                return None
        outcome: ev.Outcome = ev.CommandFailed(asked.intent, *INTERRUPTED)
        if ended is not None:
            outcome = _outcome(keep, asked, ended, files)
        store(keep, task.id, outcome)
        files.remove()
    return outcome


def follow(
    keep: Keep, task_id: str, asked: ev.CommandRequested, on_output: Streamed | None, stop: threading.Event | None
) -> Result | None:
    """Wait for a command whose caller died as that would have waited, and return what it did; what it has written is
    given to `on_output` from its beginning. None if it was never begun, or nobody knows what became of it.

    Whoever settles what crashes left behind may have been first; then it was ended, and this is what is on record.
    """
    with intent.taken_over(keep.intents, asked.intent) as mine:
        if mine and any(pending.intent == asked.intent for pending in Recorded(keep, task_id).state.pending):
            sandbox = Sandbox(keep, task_id)
            with Spool(sandbox.spool, asked.intent) as files:
                ended = _awaited(sandbox, files, asked, on_output, stop)
                outcome: ev.Outcome = ev.CommandFailed(asked.intent, *INTERRUPTED)
                if ended is not None:
                    outcome = _outcome(keep, asked, ended, files)
                news = conflict.end(keep, task_id, asked.intent)
                with contextlib.suppress(TaskRefused):  # somebody else was first
                    store(keep, task_id, outcome)
                    files.remove()
                    return command.result(outcome, news) if isinstance(outcome, ev.CommandExecuted) else None
    return recorded(keep, task_id, asked.intent)


def recorded(keep: Keep, task_id: str, made: str) -> Result | None:
    """What a command of a task did, if that is on record."""
    for record in Recorded(keep, task_id).history(types=(ev.CommandExecuted.__name__,)):
        if isinstance(event := record.event, ev.CommandExecuted) and event.intent == made:
            return command.result(event)
    return None


def _awaited(
    sandbox: Sandbox,
    files: Spool,
    asked: ev.CommandRequested,
    on_output: Streamed | None,
    stop: threading.Event | None,
) -> Ended | None:
    """What became of a command that may still run; None if nobody knows."""
    pump = None if on_output is None else partial(command.give, files, on_output)
    ended = agent.written(files, asked.intent)
    if ended is None and (connection := sandbox.reconnect()) is not None:
        patience = asked.timeout_ns / 1e9 + command.PATIENCE_SECONDS
        with connection, contextlib.suppress(Refused, SandboxGone):
            connection.attach(asked.intent, follow=pump is not None)
            ended = agent.wait(connection, files, asked.intent, patience, pump, sandbox.reconnect, stop=stop)
    if pump is not None:
        pump()
    return ended


def _form(keep: Keep, sandbox: Sandbox, container: str) -> str | None:
    """What runs commands in a container, which runs then; None if it has ended. The engine is asked if need be."""
    connection = agent.greet(sandbox.spool, container)
    if connection is not None:
        connection.sock.close()
        return AGENT
    status = keep.engine.status(container)
    if status == "paused":
        keep.engine.unpause(container)
    return keep.engine.form(container) if status in ("running", "paused") else None


def _asked(
    sandbox: Sandbox, files: Spool, asked: ev.CommandRequested, end: str, deadline: float
) -> tuple[Ended | None, bool]:
    """What the agent says became of a command; and whether it goes on."""
    ended = None
    try:
        connection = sandbox.reconnect()
        if connection is None:
            return None, False
        with connection:
            patience = PATIENCE_SECONDS
            if end:
                connection.end(asked.intent, end)
            else:
                runs = any(left.id == asked.intent and not left.ended for left in connection.commands())
                if runs and (patience := deadline - time.monotonic()) <= 0:
                    return None, True
                connection.attach(asked.intent)
            ended = agent.wait(connection, files, asked.intent, patience, None, sandbox.reconnect, reason=end)
            if ended is None and not end:
                return None, True
            if ended is not None and ended.swept:
                return ended, False
    except (SandboxGone, Refused):
        return None, False
    except (Broken, EngineFailed):
        pass
    sandbox.give_up("its agent does not end a command that nobody waits for")
    return ended, False


def _outcome(keep: Keep, asked: ev.CommandRequested, ended: Ended, files: Spool) -> ev.CommandExecuted:
    if asked.secrets:
        return command.executed(asked.intent, ended, *(Output(size=0, data=b"", truncated=True) for _ in range(2)))
    return command.collected(asked.intent, ended, files, keep.blobs, Secrets({}))
