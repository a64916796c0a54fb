"""A task: what can be done with it.

Everything that changes the world outside the log is *decide, effect, outcome*: an intent event, the act, an event that
says what came of it. The decision is refused inside the log's write lock if the task's state does not allow it. A
process that dies in between leaves the intent without an outcome; see `steward`.

A `Task` holds no state of its own and may be used by several threads. Commands of one task may run side by side.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import BadInput, Event, Receipt, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.projections import Checkpoint, TaskState, checkpoints, registry
from sandkeep.sandboxes import (
    conflict,
    decider,
    description,
    execution,
    intent,
    memory,
    monitor,
    resources,
    restore,
    snapshot,
    workspace,
)
from sandkeep.sandboxes.engine import INTENT, KEEP, TASK, Mounts
from sandkeep.sandboxes.errors import (
    CheckpointRefused,
    EngineFailed,
    EngineUnreachable,
    RestoreIncomplete,
)
from sandkeep.sandboxes.execution import Result, Streamed
from sandkeep.sandboxes.recorded import Recorded
from sandkeep.sandboxes.restore import Restored
from sandkeep.sandboxes.spool import Spool

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep
    from sandkeep.sandboxes.locks import Held

_MAX_LABEL = 200
_MAX_TORN = 200
_MAX_WORDS = 2000
Decision = Callable[[registry.Task | None], list[Event]]
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@final
class Task(Recorded):
    """A task of an open keep. Made by `Keep.create_task` and `Keep.task`."""

    def __init__(self, keep: Keep, task_id: str, fence: int | None = None) -> None:
        """Use `Keep.task` instead."""
        super().__init__(keep, task_id)
        self.fence = fence
        self.folder = keep.path / "tasks" / task_id
        self._spool = keep.path / "run" / "spool" / task_id

    @property
    def workspace(self) -> Path:
        """The workspace on the host."""
        return self.folder / "workspace"

    def create(self, asked: ev.TaskCreated, image_id: str, progress: Callable[[str], None]) -> None:
        """Make the task that is `asked` for; `Keep.create_task` has checked everything and calls this once."""
        progress("preparing the workspace")
        with self._keep.working(self.id), intent.held(self._keep.intents) as made:
            event = msgspec.structs.replace(asked, intent=made)
            self._decide(partial(decider.create, event=event))
            try:
                with self._failing_as(ev.WorkspaceFailed, made):
                    self._spool.mkdir(mode=0o700, parents=True)
                    (self.folder / "memory").mkdir(mode=0o755, parents=True)
                    commit = workspace.prepare(self.workspace, None if asked.source is None else Path(asked.source))
                    workspace.give(self._spool)
                self._settle(ev.WorkspacePrepared(made, commit))
                progress("starting the sandbox")
                self._sandbox(image_id)
            except (SandkeepError, OSError) as error:
                reason = _words(error)[1]
                self._decide(partial(decider.give_up, reason=reason))
                self._clean_up(self._decide)
                raise

    def lock(
        self,
        mode: str = "exclusive",
        *,
        timeout: float | None = None,
        lease: float = 60.0,
        agent: str | None = None,
        session: str | None = None,
    ) -> Held:
        """Hold the task's lock, renewed until it is released; see `LockManager.acquire`."""
        return self._keep.locking.acquire(
            self.id, mode=mode, timeout=timeout, lease=lease, agent=agent, session=session
        )

    def execute(
        self,
        argv: Sequence[str],
        *,
        timeout: float = execution.DEFAULT_TIMEOUT_SECONDS,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        cwd: str = ".",
        on_output: Streamed | None = None,
    ) -> Result:
        """Run a command in the sandbox and wait for it. A non-zero exit code is a result, not an error.

        `timeout` is in seconds, and no more than the task's limit; when it is up, *everything* that runs in the sandbox
        is ended, so that nothing of the command survives, and `exit_code` is 124. `cwd` lies in the workspace.
        `on_output` is called, on this thread, with output as it comes; what it raises ends the command as a timeout
        does. A lost sandbox is started anew. The result is in the log when this returns.

        `secrets` are variables too, but what is stored of the command holds `[secret NAME]` in their place, the result
        as well; what `on_output` is given is the caller's own, and raw. See `secrets` for what is recognised.

        Raises `BadInput`, `BadTimeout`, `OutsideWorkspace`, `CommandNotFound`, `TaskRefused`, `SandboxGone`,
        `BudgetExhausted`, `ExtensionOpen`, `DiskFull`, and `EngineUnreachable`: then nobody knows what became of the
        command until the engine is back.
        """
        argv, env, hidden = execution.check_argv(argv), *execution.check_variables(env or {}, secrets or {})
        folder, timeout = str(workspace.inside(cwd)), execution.check_timeout(timeout)
        most = resources.admit(self._keep, self.id)
        timeout = min(timeout, most.command_ns / 1e9) if most.command_ns else timeout
        self._keep.reconcile()
        with contextlib.ExitStack() as stack:
            command = stack.enter_context(intent.held(self._keep.intents))
            words = tuple(map(hidden.text, argv))
            request = ev.CommandRequested(command, words, hidden.text(folder), tuple(sorted(env)), int(timeout * 1e9))
            with self._keep.working(self.id):
                decider.begin(self.state, request)  # refused before a sandbox is started for it
                self._keep.locking.check(self.id, self.fence)
                spool = stack.enter_context(Spool(self._spool, command, most.output_bytes))
                container = self._sandbox()
                conflict.begin(self._keep, self.id)
                self._act(partial(decider.begin, intent=request))
            end_all = partial(self._end_all, container)
            try:
                code, taken, timed_out = execution.run(
                    self._keep.engine, container, spool, argv, env, folder, timeout, on_output, end_all
                )
                stdout, stderr = (spool.output(name, self._keep.blobs, hidden) for name in ("out", "err"))
            except SandkeepError as error:
                code_, message = _words(error)
                self._settle(ev.CommandFailed(command, code_, hidden.text(message)))
                if isinstance(error, EngineUnreachable | EngineFailed):
                    # It may still run, unwatched: the next command gets a new sandbox, which ends this one.
                    lost = ev.SandboxLost(container, "the engine failed while a command ran in it")
                    self._decide(partial(decider.lose, event=lost))
                raise
            except BaseException:  # the caller's callback, or Ctrl-C: the command must not outlive the call
                end_all()
                self._settle(ev.CommandFailed(command, "interrupted", "the caller ended it"))
                raise
            news = conflict.end(self._keep, self.id, command)
            self._settle(ev.CommandExecuted(command, code, int(taken * 1e9), timed_out, stdout, stderr))
        return Result(command, code, taken, timed_out, stdout, stderr, news)

    def checkpoint(self, label: str = "", *, progress: Callable[[int], None] = lambda files: None) -> Checkpoint:
        """Record the whole workspace, durably, and return the checkpoint.

        Files that change meanwhile are read again, and named in `torn` if they will not hold still. Raises
        `CheckpointRefused` if it cannot be recorded completely, and `TaskRefused` if there is no workspace.
        """
        if len(label) > _MAX_LABEL or not (label == "" or label.isprintable()):
            raise BadInput(f"a label has at most {_MAX_LABEL} printable characters; shorten or reword it")
        # Not while the workspace is set back or removed: half of that would pass for the truth.
        with self._keep.working(self.id), self._root() as root:
            return self._checkpoint(root, label, progress)

    def checkpoints(self) -> list[Checkpoint]:
        """The task's checkpoints, oldest first."""
        with self._keep.projections.reading() as state:
            return list(checkpoints.checkpoints(state, self.id))

    def restore_checkpoint(self, checkpoint: str, *, progress: Callable[[int], None] = lambda files: None) -> Restored:
        """Set the workspace back to the checkpoint with this id, or with the only id that begins with it.

        The workspace is recorded first, so that this can be undone; the sandbox is frozen meanwhile; and the result is
        recorded again and compared by digest. Refused with `TaskBusy` while commands run. Raises `CheckpointNotFound`,
        `BlobMissing` and `BlobDamaged` before anything is touched, `RestoreIncomplete` after.
        """
        self._clear()
        target = restore.find(self.checkpoints(), checkpoint, self.id)
        blobs = self._keep.blobs
        restore.check(target.digest, blobs)
        with self._keep.working(self.id), intent.held(self._keep.intents) as made:
            decider.restore(self.state, ev.RestoreRequested(made, target.id, ""))  # refused before the work is done
            self._keep.locking.check(self.id, self.fence)
            # Frozen from the start, so that what runs in the background changes nothing that `undo` does not hold.
            with self._frozen():
                # A command may have taken its own permission to the workspace away.
                self.workspace.chmod(0o755)
                with self._root() as root:
                    undo = self._checkpoint(root, f"before restoring {target.id}", progress)
                    request = ev.RestoreRequested(made, target.id, undo.id)
                    self._act(partial(decider.restore, intent=request))
                    found, problem = "", "it was changed meanwhile"
                    try:
                        restore.apply(root, undo.digest, target.digest, blobs)
                        found = snapshot.take(root, blobs).digest
                    except (SandkeepError, OSError) as error:
                        problem = str(error)
            if found != target.digest:
                failure = RestoreIncomplete(
                    f"the workspace is only in part what checkpoint {target.id} says: {problem};"
                    f" restore it again, or {undo.id} to have what was there before"
                )
                self._settle(ev.RestoreFailed(made, *_words(failure)))
                raise failure
            self._settle(ev.CheckpointRestored(made, target.id, found))
        return Restored(target.id, target.digest, undo.id)

    def tag(self, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Give the task tags, and take tags from it. Raises `BadInput` and `LimitReached`."""
        self._decide(partial(decider.tag, event=description.tagged(add, remove)))

    def pause(self) -> None:
        """Freeze the sandbox; commands are refused until `resume`. Refused with `TaskBusy` while commands run."""
        self._clear()
        with self._keep.working(self.id), intent.held(self._keep.intents) as made:
            self._act(partial(decider.pause, intent=ev.PauseRequested(made)))
            with self._failing_as(ev.PauseFailed, made):
                if (container := self.state.container) is not None:
                    self._keep.engine.pause(container)
            self._settle(ev.TaskPaused(made))

    def resume(self) -> None:
        """Let a paused task go on."""
        self._clear()
        with self._keep.working(self.id), intent.held(self._keep.intents) as made:
            self._act(partial(decider.resume, intent=ev.ResumeRequested(made)))
            with self._failing_as(ev.ResumeFailed, made):
                if (container := self.state.container) is not None:
                    self._keep.engine.unpause(container)
            self._settle(ev.TaskResumed(made))

    def complete(self, summary: str = "") -> None:
        """The work is done: the sandbox is removed; workspace and checkpoints stay until `clean_up`."""
        self._end(partial(decider.complete, summary=summary))

    def fail(self, reason: str) -> None:
        """The work is given up: as `complete`, with another end."""
        self._end(partial(decider.fail, reason=reason))

    def clean_up(self) -> None:
        """Remove the sandbox and the workspace of an ended task. Its record and its checkpoints stay."""
        if self._clear() and self.state.state is TaskState.CLEANED:
            return  # it had been begun before
        with self._keep.working(self.id):
            self._clean_up(self._act)

    def abandon(self) -> None:
        """As `clean_up`, for the steward: no lock holds up what a crash has left half made or half removed."""
        with self._keep.working(self.id):
            self._clean_up(self._decide)

    def _clean_up(self, decide: Callable[[Decision], Receipt]) -> None:
        with intent.held(self._keep.intents) as made:
            decide(partial(decider.clean_up, intent=ev.CleanupRequested(made)))
            with self._failing_as(ev.CleanupFailed, made), memory.closed(self.folder):
                self._remove_containers()
                for folder in (self.folder, self._spool):
                    workspace.remove(folder)
            self._settle(ev.TaskCleaned(made))

    def _containers(self) -> list[str]:
        return [found.container for found in self._keep.engine.containers(self._keep.id) if found.task == self.id]

    def _remove_containers(self) -> None:
        for container in self._containers():
            self._keep.engine.remove(container)

    def _end(self, decision: Decision) -> None:
        self._clear()
        with self._keep.working(self.id):
            mine = self._containers()  # asks the engine first: without it nothing could be ended
            self._act(decision)
            monitor.measure(self._keep, self.id)
            container = self.state.container
            for each in mine:
                self._keep.engine.remove(each)
            if container is not None:
                removed = ev.SandboxRemoved(container)
                self._decide(partial(decider.lose, event=removed))
        memory.trail(self._keep, self.id)

    def _sandbox(self, image_id: str | None = None) -> str:
        """The task's running container, started if there is none. The caller is `working` on the task."""
        engine, task = self._keep.engine, self.state
        if task.container is not None:
            status = engine.status(task.container)
            if status == "paused" and task.state is not TaskState.PAUSED:
                engine.unpause(task.container)  # left behind by a restore that was cut off
                status = "running"
            if status in ("running", "paused"):
                return task.container
            lost = ev.SandboxLost(task.container, f"it was found {status or 'removed'}")
            self._decide(partial(decider.lose, event=lost))
        with intent.held(self._keep.intents) as made:
            name = image_id or engine.resolve_image(task.image, lambda message: None)[1]
            limits = resources.allot(self._keep, task, name, made)
            with self._failing_as(ev.SandboxFailed, made):
                self._remove_containers()
                mounts = Mounts(self.workspace, self.folder / "memory", self._spool)
                labels = {KEEP: self._keep.id, TASK: self.id, INTENT: made}
                container = engine.start(name, mounts, limits, labels)
            self._settle(ev.SandboxStarted(made, container))
            return container

    def _end_all(self, container: str) -> None:
        """End every process of a sandbox. None may begin meanwhile, to be ended with them or to find it stopped."""
        with self._keep.working(self.id):
            self._keep.engine.restart(container)

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """The sandbox stands still, if one runs."""
        engine, container = self._keep.engine, self.state.container
        if container is None or engine.status(container) != "running":
            yield
            return
        engine.pause(container)
        try:
            yield
        finally:
            engine.unpause(container)

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        """The workspace, open as a descriptor."""
        try:
            root = os.open(self.workspace, _FOLDER)
        except OSError as error:
            raise CheckpointRefused(
                f"task {self.id} has no workspace ({error.strerror}); it is gone once a task is cleaned up"
            ) from error
        try:
            yield root
        finally:
            os.close(root)

    def _checkpoint(self, root: int, label: str, progress: Callable[[int], None]) -> Checkpoint:
        taken = snapshot.take(root, self._keep.blobs, progress)
        event = ev.CheckpointCreated(
            secrets.token_hex(6), taken.digest, taken.files, taken.bytes, label, taken.torn[:_MAX_TORN]
        )
        receipt = self._decide(partial(decider.record, event=event))
        memory.trail(self._keep, self.id)
        counted = (event.digest, event.files, event.bytes, label, event.torn)
        return Checkpoint(event.checkpoint, self.id, *counted, receipt.first, receipt.time_ns)

    @contextlib.contextmanager
    def _failing_as(self, failure: type[ev.Failure], made: str) -> Iterator[None]:
        """Record what the block raises as the outcome of the intent `made`, and raise it."""
        try:
            yield
        except (SandkeepError, OSError) as error:
            self._settle(failure(made, *_words(error)))
            raise

    def _clear(self) -> bool:
        """Settle what a process that died has left under way, which would keep the task busy for ever; true if any."""
        found = any(intent.abandoned(self._keep.intents, pending.intent) for pending in self.state.pending)
        if found:
            self._keep.reconcile(again=True)
        return found

    def _settle(self, outcome: ev.Outcome) -> None:
        self._decide(partial(decider.settle, outcome=outcome))
        memory.trail(self._keep, self.id)

    def _decide(self, decision: Decision) -> Receipt:
        return self._keep.decide(self.id, decision)

    def _act(self, decision: Decision) -> Receipt:
        """As `_decide`, for what an agent asks for, if the lock admits it."""
        return self._keep.locking.act(self.id, decision, self.fence)


def _words(error: SandkeepError | OSError) -> tuple[str, str]:
    """Code and message of an error, as a `Failure` holds them."""
    return (error.code if isinstance(error, SandkeepError) else "os-error"), str(error)[:_MAX_WORDS]
