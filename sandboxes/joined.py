"""Commands whose caller died: what became of them is fetched from the sandbox, and recorded as if it had lived.

The agent goes on without us and writes down what comes of a command. One that has ended is recorded; one that runs in
the background goes on; one that nobody waits for is ended and recorded with what it had printed. One that the agent
does not know was never begun, and never will be. No command is run twice.

Its secrets died with its caller, and without them they cannot be told from the rest of its output; of such a command no
output is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Output
from sandkeep.projections import Pending, registry
from sandkeep.sandboxes import agent, command
from sandkeep.sandboxes.agent import Broken, Refused
from sandkeep.sandboxes.engine import AGENT
from sandkeep.sandboxes.errors import EngineFailed, SandboxGone
from sandkeep.sandboxes.outcome import INTERRUPTED
from sandkeep.sandboxes.outcome import settle as store
from sandkeep.sandboxes.sandbox import Sandbox
from sandkeep.sandboxes.secrets import Secrets
from sandkeep.sandboxes.spool import Ended, Spool

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

ABANDONED = "abandoned"
"""Why a command was ended that nobody waits for."""

_ANSWER_SECONDS = 20.0


def settle(keep: Keep, task: registry.Task, pending: Pending, *, alone: bool) -> list[str]:
    """Record what became of an abandoned command, if that is known by now, and tell what was done.

    `alone` says that nothing else goes on in the task: without an agent, what runs beside a command ends with it.
    """
    record = next(keep.log.read(pending.position - 1))
    asked = record.event
    if not isinstance(asked, ev.CommandRequested):
        return []
    sandbox = Sandbox(keep, task.id)
    told = f"task {task.id}: CommandRequested of position {pending.position} "
    with Spool(sandbox.spool, asked.intent) as files:
        ended = agent.written(files, asked.intent)
        if ended is None and task.container is not None:
            status = keep.engine.status(task.container)
            if status == "paused":
                keep.engine.unpause(task.container)
            if status in ("running", "paused"):
                if keep.engine.form(task.container) != AGENT:
                    if not alone:
                        return []
                    keep.engine.restart(task.container)
                else:
                    ended, runs = _asked(sandbox, files, asked)
                    if runs:
                        return []
        if ended is None:
            store(keep, task.id, ev.CommandFailed(asked.intent, *INTERRUPTED))
        else:
            store(keep, task.id, _outcome(keep, asked, ended, files))
        files.remove()
    return [told + ("was interrupted" if ended is None else f"had ended ({ended.reason or ended.exit})")]


def _asked(sandbox: Sandbox, files: Spool, asked: ev.CommandRequested) -> tuple[Ended | None, bool]:
    """What the agent says became of a command, having ended it if nobody waits for it; and whether it goes on."""
    try:
        connection = sandbox.reconnect()
        if connection is None:
            return None, False
        with connection:
            if asked.background:
                if any(left.id == asked.intent and not left.ended for left in connection.commands()):
                    return None, True
                connection.attach(asked.intent)
            else:
                connection.end(asked.intent, ABANDONED)
            ended = agent.wait(connection, files, asked.intent, _ANSWER_SECONDS, None, sandbox.reconnect)
            if ended is not None and ended.swept:
                return ended, False
    except (SandboxGone, Refused):
        return None, False
    except (Broken, EngineFailed):
        ended = None
    sandbox.give_up("its agent does not end a command that nobody waits for")
    return ended, False


def _outcome(keep: Keep, asked: ev.CommandRequested, ended: Ended, files: Spool) -> ev.CommandExecuted:
    if asked.secrets:
        return command.executed(asked.intent, ended, *(Output(size=0, data=b"", truncated=True) for _ in range(2)))
    return command.collected(asked.intent, ended, files, keep.blobs, Secrets({}))
