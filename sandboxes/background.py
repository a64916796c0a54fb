"""Commands that run in the background: listed, waited for, stopped.

They belong to the task, not to who started them: any process may look at them, and whoever finds that one has ended
puts its outcome on record. That is the process that waits for it or stops it, or the steward.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, final

from sandkeep.events import BadInput, Record, late
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import intent
from sandkeep.sandboxes.agent import STOPPED
from sandkeep.sandboxes.errors import SandboxGone, TaskRefused
from sandkeep.sandboxes.recorded import Recorded
from sandkeep.sandboxes.spool import STREAMS, Spool

if TYPE_CHECKING:
    from sandkeep.sandboxes import command, joined
    from sandkeep.sandboxes.execution import Result
    from sandkeep.sandboxes.keep import Keep
    from sandkeep.sandboxes.sandbox import Sandbox
else:  # what a list of what runs has no use for
    globals().update(late.bound("sandkeep.sandboxes", "command joined sandbox:Sandbox"))

_MANY_SECONDS = 10**6
_LOOK_SECONDS = 0.02


@final
class Running:
    """A command in the background. Made by `Task.start` and `Task.running`; may be used by several threads."""

    def __init__(self, keep: Keep, task_id: str, command_id: str) -> None:
        self._keep = keep
        self._task = task_id
        self.id = command_id
        """The command's id."""

    @property
    def request(self) -> ev.CommandRequested:
        """What was asked for."""
        for record in self._history():
            if isinstance(event := record.event, ev.CommandRequested) and event.intent == self.id:
                return event
        raise _unknown(self._task, self.id)

    def output(self, stream: str = "stdout", after: int = 0, most: int = 1 << 20) -> bytes:
        """What it has written to "stdout" or "stderr" behind the first `after` bytes, `most` bytes of it.

        Once its outcome is on record that has all of it, and there is nothing here.
        """
        with Spool(Sandbox(self._keep, self._task).spool, self.id) as files:
            return files.read(STREAMS[stream], after, most)

    def wait(self, timeout: float | None = None) -> Result | None:
        """Wait until it has ended, and return what it did; None if it runs on when `timeout` seconds are over."""
        deadline = time.monotonic() + (_MANY_SECONDS if timeout is None else timeout)
        return self._settled(deadline, "")

    def stop(self) -> Result:
        """End it with all that it started, and return what it did."""
        found = self._settled(time.monotonic() + joined.PATIENCE_SECONDS, STOPPED)
        if found is None:
            raise SandboxGone("the sandbox does not end the command; complete the task, or wait")
        return found

    def _settled(self, deadline: float, end: str) -> Result | None:
        asked = self.request
        while not intent.abandoned(self._keep.intents, self.id):  # who starts it has not given it to the agent yet
            if time.monotonic() >= deadline:
                return None
            time.sleep(_LOOK_SECONDS)
        state = Recorded(self._keep, self._task).state
        if any(pending.intent == self.id for pending in state.pending):
            with contextlib.suppress(TaskRefused):  # somebody else was first
                if joined.settle(self._keep, state, asked, end=end, deadline=deadline) is None:
                    return None
        for record in self._history():
            event = record.event
            if isinstance(event, ev.CommandExecuted) and event.intent == self.id:
                return command.result(event)
            if isinstance(event, ev.CommandFailed) and event.intent == self.id:
                raise SandboxGone("the command ended with its sandbox, and what it did is not known; start it again")
        return None

    def _history(self) -> list[Record]:
        types = ("CommandRequested", "CommandExecuted", "CommandFailed")
        return list(Recorded(self._keep, self._task).history(types=types))


def running(keep: Keep, task_id: str) -> list[Running]:
    """The commands of a task that run in the background."""
    found = Recorded(keep, task_id)
    waited = {pending.intent for pending in found.state.pending if pending.kind == "CommandRequested"}
    if not waited:
        return []
    requests = (record.event for record in found.history(types=("CommandRequested",)))
    return [
        Running(keep, task_id, event.intent)
        for event in requests
        if isinstance(event, ev.CommandRequested) and event.background and event.intent in waited
    ]


def find(keep: Keep, task_id: str, command_id: str) -> Running:
    """The background command whose id begins with `command_id`. Raises `BadInput`."""
    found = [each for each in running(keep, task_id) if command_id and each.id.startswith(command_id)]
    if len(found) != 1:
        raise _unknown(task_id, command_id)
    return found[0]


def _unknown(task_id: str, command_id: str) -> BadInput:
    return BadInput(
        f"no command {command_id!r} runs in the background; 'sandkeep processes {task_id}' lists those that do"
    )
