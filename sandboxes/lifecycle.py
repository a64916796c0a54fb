"""The life of a task's sandbox beside its commands: started, paused, resumed, stopped; and ended tasks reopened.

    no container ──first command──▶ running ◀──▶ frozen (paused by a user, or idle)
         ▲                             │
         └── stopped, lost, task ended ┘

Each step is *decide, effect, outcome*. A crash in between is settled by `steward`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sandkeep.events import BadInput, Event, Receipt, late
from sandkeep.events import catalogue as ev
from sandkeep.projections import StateView, network, registry
from sandkeep.projections import resources as uses
from sandkeep.sandboxes import decider, intent, outcome
from sandkeep.sandboxes.errors import TaskRefused
from sandkeep.sandboxes.limits import LIMITS
from sandkeep.sandboxes.outcome import failing_as
from sandkeep.sandboxes.recorded import Recorded
from sandkeep.sandboxes.text import quiet

if TYPE_CHECKING:
    from pathlib import Path

    from sandkeep.sandboxes import memory, monitor
    from sandkeep.sandboxes.keep import Keep
    from sandkeep.sandboxes.sandbox import Sandbox
else:
    globals().update(late.bound("sandkeep.sandboxes", "memory monitor sandbox:Sandbox"))

Decision = Callable[[registry.Task | None], list[Event]]

_MAX_REASON = 2000


class Lifecycle(Recorded):
    """The life of one task of an open keep."""

    def __init__(self, keep: Keep, task_id: str, fence: int | None = None) -> None:
        """Use `Keep.task` instead."""
        super().__init__(keep, task_id)
        self.fence = fence
        self.folder = keep.path / "tasks" / task_id

    @late.once
    def sandbox(self) -> Sandbox:
        """The task's container."""
        return Sandbox(self._keep, self.id)

    @property
    def workspace(self) -> Path:
        """The workspace on the host."""
        return self.folder / "workspace"

    def start_sandbox(self, progress: Callable[[str], None] = quiet, *, wait: bool = True) -> None:
        """Start the sandbox if none runs, as the next command would. Raises as `execute` does; without `wait`,
        `BudgetExhausted` at once where others would have to make room first."""

        def check() -> None:
            decider.begin(self.state, ev.SandboxRequested("", "", LIMITS))  # refused before the work
            self._keep.locking.check(self.id, self.fence)

        with self.sandbox.working(check, progress, wait=wait) as place, place:
            return

    def pause(self) -> None:
        """Freeze the sandbox; commands are refused until `resume`. Refused with `TaskBusy` while commands run."""
        self._clear()
        with self._keep.working(self.id), intent.held(self._keep.intents) as made:
            self._act(partial(decider.pause, intent=ev.PauseRequested(made)))
            with failing_as(self._keep, self.id, ev.PauseFailed, made):
                task = self.state
                if task.container is not None and not task.idle:
                    self._keep.engine.pause(task.container)
            self._settle(ev.TaskPaused(made))

    def resume(self) -> None:
        """Let a paused task go on."""
        self._clear()
        with self._keep.working(self.id), intent.held(self._keep.intents) as made:
            self._act(partial(decider.resume, intent=ev.ResumeRequested(made)))
            with failing_as(self._keep, self.id, ev.ResumeFailed, made):
                container = self.state.container
                # What has ended meanwhile is found by the next command.
                if container is not None and self._keep.engine.status(container) == "paused":
                    self._keep.engine.unpause(container)
            self._settle(ev.TaskResumed(made))

    def stop(self) -> None:
        """Remove the sandbox, and with it whatever still runs there and what is in /tmp. The workspace stays, and the
        next command starts another. Refused with `TaskBusy` while commands run; nothing happens if there is none."""
        self._clear()
        with self._keep.working(self.id), intent.held(self._keep.intents) as made:
            decider.stop(self.state, request := ev.SandboxStopRequested(made))
            self._keep.locking.check(self.id, self.fence)
            if self.state.container is None:
                return
            self._act(partial(decider.stop, intent=request))
            with failing_as(self._keep, self.id, ev.SandboxStopFailed, made):
                monitor.measure(self._keep, self.id)
                self.sandbox.remove()
            self._settle(ev.SandboxStopped(made))

    def rest(self) -> bool:
        """Freeze the sandbox until the next command, unless something goes on in the task, it offers ports to others,
        or it stands still already for want of memory; true if it was frozen. Waits for nobody."""
        with self._keep.attempting(self.id) as mine, intent.held(self._keep.intents) as made:
            if not mine or not self._idle(ev.SandboxPauseRequested(made)):
                return False
            with failing_as(self._keep, self.id, ev.SandboxPauseFailed, made):
                container = str(self.state.container)
                self._keep.engine.pause(container)
            self._settle(ev.SandboxPaused(made, container))
            return True

    def reopen(self, reason: str = "") -> None:
        """Let a completed or failed task go on, in the workspace that it had.

        Raises `TaskRefused` once its clean-up has begun, `BadInput`, `StaleFence` and `LockHeld`.
        """
        if len(reason) > _MAX_REASON or not (reason == "" or reason.isprintable()):
            raise BadInput(f"a reason has at most {_MAX_REASON} printable characters; shorten or reword it")
        self._clear()
        with self._keep.working(self.id):
            decider.reopen(self.state, event := ev.TaskReopened(reason))
            if next(self.history(types=(ev.CleanupRequested.__name__,)), None) is not None:
                raise TaskRefused(f"the clean-up of task {self.id} has begun; finish it, and create a new task")
            self._act(partial(decider.reopen, event=event))
        memory.trail(self._keep, self.id)

    def _idle(self, request: ev.SandboxPauseRequested) -> bool:
        """Store the intent to freeze the sandbox, unless there is a reason not to."""

        def decide(state: StateView) -> list[Event]:
            use = uses.find(state, self.id)
            if (use is not None and use.extension is not None) or network.offers(state, self.id):
                return []
            return decider.idle(registry.find(state, self.id), request)

        receipt = self._keep.log.decide(registry.STREAM + self.id, decide, actor=self._keep.actor)
        return receipt.last >= receipt.first

    def _clear(self) -> bool:
        """Settle what a process that died has left under way, which would keep the task busy for ever; true if any."""
        found = any(intent.abandoned(self._keep.intents, pending.intent) for pending in self.state.pending)
        if found:
            self._keep.reconcile(again=True)
        return found

    def _settle(self, event: ev.Outcome) -> None:
        outcome.settle(self._keep, self.id, event)

    def _decide(self, decision: Decision) -> Receipt:
        return self._keep.decide(self.id, decision)

    def _act(self, decision: Decision) -> Receipt:
        """As `_decide`, for what an agent asks for, if the lock admits it."""
        return self._keep.locking.act(self.id, decision, self.fence)
