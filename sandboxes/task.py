"""A task: what can be done with it.

Everything that changes the world outside the log is *decide, effect, outcome*: an intent event, the act, an event that
says what came of it. The decision is refused inside the log's write lock if the task's state does not allow it. A
process that dies in between leaves the intent without an outcome; see `steward`.

A `Task` holds no state of its own and may be used by several threads. Commands of one task may run side by side.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from sandkeep.events import BadInput, BlobDamaged, BlobMissing, Event, Receipt, SandkeepError, late
from sandkeep.events import catalogue as ev
from sandkeep.projections import Checkpoint, TaskState, branches, checkpoints
from sandkeep.sandboxes import decider, description, intent
from sandkeep.sandboxes.errors import EngineUnreachable, RestoreRefused
from sandkeep.sandboxes.execution import DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS
from sandkeep.sandboxes.lifecycle import Decision, Lifecycle
from sandkeep.sandboxes.outcome import failing_as, words
from sandkeep.sandboxes.text import quiet

if TYPE_CHECKING:
    from sandkeep.sandboxes import (
        background,
        checkpoint_decider,
        chosen,
        command,
        comparison,
        conflict,
        egress,
        expiry,
        leavings,
        memory,
        monitor,
        recording,
        resources,
        restore,
        slot,
        system,
        workspace,
    )
    from sandkeep.sandboxes.agent import Window
    from sandkeep.sandboxes.command import Asked
    from sandkeep.sandboxes.execution import Result, Streamed
    from sandkeep.sandboxes.locks import Held
    from sandkeep.sandboxes.sandbox import Place
    from sandkeep.sandboxes.snapshot_walk import Names, Progress, Snapshot, readable
    from sandkeep.sandboxes.workspace_diff import FileDiff
else:  # what a question about the task has no use for
    _LISTED = """background checkpoint_decider chosen command comparison conflict egress expiry leavings memory
    monitor recording resources restore slot snapshot_walk:readable system workspace"""
    globals().update(late.bound("sandkeep.sandboxes", _LISTED))

_MAX_LABEL = _MAX_TORN = 200


class Task(Lifecycle):
    """A task of an open keep. Made by `Keep.create_task` and `Keep.task`."""

    def create(
        self, asked: ev.TaskCreated, given: Sequence[Event], progress: Callable[[str], None], tree: str = ""
    ) -> None:
        """Make the task that is `asked` for, with what it is `given`, its workspace from a recorded `tree` if there is
        one. It is called once, and the caller, who is `working` on it, has checked everything."""
        progress("preparing the workspace")
        with intent.held(self._keep.intents) as made:
            event = msgspec.structs.replace(asked, intent=made)
            begun = partial(checkpoint_decider.create, task_id=self.id, event=event, given=given)
            self._keep.locking.act_on(self.id, begun, self.fence)
            try:
                with failing_as(self._keep, self.id, ev.WorkspaceFailed, made):
                    self.sandbox.prepare_folders()
                    commit = workspace.prepare(self.workspace, None if asked.source is None else Path(asked.source))
                    if tree:
                        restore.fill(self.workspace, tree, self._keep.blobs)
            except (SandkeepError, OSError) as error:
                reason = words(error)[1]
                self._decide(partial(decider.give_up, reason=reason))
                self._clean_up(self._decide)
                raise
            self._settle(ev.WorkspacePrepared(made, commit))

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
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        cwd: str = ".",
        stdin: bytes | BinaryIO | None = None,
        on_output: Streamed | None = None,
        stop: threading.Event | None = None,
        lasting: bool = False,
        progress: Callable[[str], None] = quiet,
    ) -> Result:
        """Run a command in the sandbox and wait for it. A non-zero exit code is a result, not an error.

        The task's first command starts the sandbox, and so does the next one after it was stopped or lost; the image is
        made or pulled first if the engine lacks it. `progress` is called with what of this takes long.

        `timeout` is in seconds, and no more than the task's limit; when it is up, all that the command started is
        ended, however it forked, and `exit_code` is 124. What else runs in the sandbox goes on. `cwd` lies in the
        workspace. `stdin` is what the command reads; bytes are recorded, an open file is not. A script is `["sh",
        "-s"]` with the script as `stdin`. `on_output` is called, on this thread, with output as it comes; what it
        raises, or to set `stop`, ends it as a timeout does; a `lasting` one goes on in the background if we end.
        The result is in the log when this returns.

        `secrets` are variables too, but what is stored of the command holds `[secret NAME]` in their place, the result
        as well; what `on_output` is given is the caller's own, and raw. See `secrets` for what is recognised.

        Raises `BadInput`, `BadTimeout`, `OutsideWorkspace`, `CommandNotFound`, `TaskRefused`, `LimitReached`,
        `ImageNotFound`, `SandboxGone`, `BudgetExhausted`, `ExtensionOpen`, `DiskFull`, and `EngineUnreachable`: then
        what became of the command is found when the engine is back.
        """
        asked = command.ask(argv, timeout, env, secrets, cwd, stdin=stdin, stop=stop, background=lasting)
        return self._execute(asked, on_output, progress)

    def terminal(
        self,
        argv: Sequence[str],
        keyboard: BinaryIO,
        on_output: Streamed,
        window: Callable[[], Window],
        *,
        timeout: float = MAX_TIMEOUT_SECONDS,
        env: Mapping[str, str] | None = None,
        cwd: str = ".",
        progress: Callable[[str], None] = quiet,
    ) -> Result:
        """Run a command in a terminal of its own and wait for it: what comes from `keyboard` is typed into it.

        `window` is asked for its rows and columns, also while the command runs. All that it shows comes as "stdout". If
        `keyboard` ends, so does the input (control-D). Raises as `execute`.
        """
        asked = command.ask(argv, timeout, env, None, cwd, stdin=keyboard, window=window)
        return self._execute(asked, on_output, progress)

    def start(
        self,
        argv: Sequence[str],
        *,
        timeout: float = MAX_TIMEOUT_SECONDS,
        env: Mapping[str, str] | None = None,
        cwd: str = ".",
        progress: Callable[[str], None] = quiet,
    ) -> background.Running:
        """Start a command in the background and return when it runs. It goes on when this process ends.

        It is ended when its time is up, when it is stopped, and with the task. Raises as `execute`.
        """
        asked = command.ask(argv, timeout, env, None, cwd, background=True)
        with self._requested(asked, progress) as (made, place, given):
            command.launch(self._keep, self.sandbox, place, made, given)
        return background.Running(self._keep, self.id, made)

    def running(self) -> list[background.Running]:
        """The commands that run in the background, oldest first; also those that have ended unnoticed."""
        return background.running(self._keep, self.id)

    def _execute(self, asked: Asked, on_output: Streamed | None, progress: Callable[[str], None]) -> Result:
        with self._requested(asked, progress) as (made, place, given):
            return command.carry_out(self._keep, self.sandbox, place, made, given, on_output)

    @contextlib.contextmanager
    def _requested(self, asked: Asked, progress: Callable[[str], None]) -> Iterator[tuple[str, Place, Asked]]:
        """A command put on record, where it is to run, and as it is to run there."""
        most = resources.admit(self._keep, self.id)
        timeout = min(asked.timeout, most.command_ns / 1e9) if most.command_ns else asked.timeout
        asked = msgspec.structs.replace(asked, timeout=timeout, most=most.output_bytes)
        with contextlib.suppress(EngineUnreachable):  # a sandbox whose agent answers can do without
            self._keep.reconcile()
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(intent.held(self._keep.intents))
            request = asked.request(made, self._keep.blobs)

            def check() -> None:
                decider.begin(self.state, request)  # refused before a sandbox is started for it
                self._keep.locking.check(self.id, self.fence)

            with self.sandbox.working(check, progress) as place:
                stack.enter_context(place)
                ways = stack.enter_context(egress.way_out(self._keep, self.id, place.container))
                conflict.begin(self._keep, self.id)
                self._act(partial(decider.begin, intent=request))
            self._keep.trailing.wait(self.id)  # the command may read the pages
            yield made, place, msgspec.structs.replace(asked, env=ways | asked.env)

    def checkpoint(
        self,
        label: str = "",
        *,
        pin: bool = False,
        tags: Iterable[str] = (),
        with_system: bool = False,
        progress: Callable[[int], None] = lambda files: None,
    ) -> Checkpoint:
        """Record the whole workspace, durably, and return the checkpoint; with `pin` or `tags` it is kept, and with
        `with_system` the sandbox's own file system is recorded too, if it may be written to (see `system`).

        Commands may run: all is read while they do, then the sandbox stands still for as long as it takes to find and
        read what they changed meanwhile. What others change is read again, and named in `torn` if it will not hold
        still. So is what commands change while no engine answers. Raises `CheckpointRefused` if it cannot be recorded
        completely, `TaskRefused` if there is no workspace, and `LimitReached` if checkpoints may hold no more.
        """
        if len(label) > _MAX_LABEL or not (label == "" or label.isprintable()):
            raise BadInput(f"a label has at most {_MAX_LABEL} printable characters; shorten or reword it")
        tags = description.check_tags(tags)
        expiry.make_room(self._keep, self.id)
        # Not while the workspace is set back or removed: half of that would pass for the truth.
        with self._keep.working(self.id), self._root() as root:
            runs = False
            with contextlib.suppress(EngineUnreachable):
                runs = self.sandbox.runs()
            # An image is made by the engine, which has to know that the container stands still.
            hold = self.sandbox.frozen if with_system else self.sandbox.still
            return self._checkpoint(root, label, progress, hold() if runs else None, pin, tags, with_system)

    def checkpoints(self, *, expired: bool = False) -> list[Checkpoint]:
        """The task's checkpoints, oldest first; with `expired`, those too that cannot be restored any more."""
        with self._keep.projections.reading() as state:
            return list(checkpoints.checkpoints(state, self.id, expired=expired))

    def restore_checkpoint(
        self,
        checkpoint: str,
        *,
        paths: Iterable[str] = (),
        dry_run: bool = False,
        privileges: bool = False,
        files_only: bool = False,
        progress: Callable[[int], None] = lambda files: None,
    ) -> restore.Restored:
        """Set the task back to the checkpoint with this id, or with the only id that begins with it: the workspace and,
        unless `files_only`, its tags and what counts as decided. What it may reach and use stays as it is, and so does
        the history, which goes on as a new branch. If `paths` are named, only they and what is below them are set back.
        With `privileges` devices and set-user-id come back too. A `dry_run` only tells what would be done.

        The workspace is recorded first, so that this can be undone; the sandbox is frozen meanwhile; and the result is
        recorded again and compared. Refused with `TaskBusy` while commands run. Raises `CheckpointNotFound`,
        `CheckpointGone`, `PathNotFound`, `OutsideWorkspace`, `BlobMissing`, `BlobDamaged` and `RestoreRefused` before
        anything is touched, `RestoreIncomplete` after.
        """
        target, only = restore.find(self.checkpoints(expired=True), checkpoint, self.id), chosen.parse(paths)
        blobs = self._keep.blobs
        restore.refuse_empty(target, blobs)
        if dry_run:
            return comparison.dry_run(self._keep, target, only, privileges=privileges)
        self._clear()
        back = () if files_only or only else branches.told(self.history(), target.position, target.image)
        with self._keep.working(self.id), intent.held(self._keep.intents) as made:
            decider.restore(self.state, ev.RestoreRequested(made, target.id, ""))  # refused before the work is done
            self._keep.locking.check(self.id, self.fence)
            # Frozen from the start, so that what runs in the background changes nothing that `undo` does not hold.
            with self.sandbox.frozen():
                # A command may have taken its own permission to the workspace away.
                self.workspace.chmod(0o755)
                with self._root() as root:
                    whole = not files_only and not only and self.state.writable
                    undo = self._checkpoint(root, f"before restoring {target.id}", progress, with_system=whole)
                    wanted = chosen.graft(undo.digest, target.digest, only, blobs)
                    request = ev.RestoreRequested(made, target.id, undo.id, tuple(map(readable, only)))
                    begun = partial(checkpoint_decider.restore, task_id=self.id, intent=request)
                    self._keep.locking.act_on(self.id, begun, self.fence)
                    try:
                        touched = restore.apply(root, undo.digest, wanted, blobs, privileges=privileges)
                        found = self._recorded(root, touched=touched).digest
                        stripped = restore.check(found, wanted, blobs, privileges=privileges)
                    except (BlobMissing, BlobDamaged, RestoreRefused) as error:
                        self._settle(ev.RestoreFailed(made, *words(error)))
                        raise
                    except (SandkeepError, OSError) as error:
                        failure = restore.incomplete(target.id, undo.id, error)
                        self._settle(ev.RestoreFailed(made, *words(failure)))
                        raise failure from error
            if whole:
                self.sandbox.drop()  # the next one starts from what the checkpoint has
            self._settle(ev.CheckpointRestored(made, target.id, found, *back))
        return restore.Restored(target.id, found, undo.id, stripped)

    def diff(self, old: str = "", new: str = "", paths: Iterable[str] = (), *, text: bool = True) -> list[FileDiff]:
        """What differs between two checkpoints, or between one and the workspace as it is now, if no `new` one is
        named; without an `old` one it is the last. If `paths` are named, only they and what is below them count.
        Without `text` the lines are only counted. No checkpoint is taken.

        Raises `CheckpointNotFound`, `CheckpointGone`, `OutsideWorkspace`, `BlobMissing`, `BlobDamaged`, and
        `CheckpointRefused` if the workspace cannot be read.
        """
        known, only = self.checkpoints(expired=True), chosen.parse(paths)
        return comparison.diff(self._keep, self.id, known, old, new, only, text=text)

    def tag(self, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Give the task tags, and take tags from it. Raises `BadInput` and `LimitReached`."""
        self._decide(partial(decider.tag, event=description.tagged(add, remove)))

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
            with failing_as(self._keep, self.id, ev.CleanupFailed, made), memory.closed(self.folder):
                if self.sandbox.may_exist():
                    self.sandbox.remove()
                self.sandbox.remove_folders()
                self._keep.seen.forget(self.id)
            self._settle(ev.TaskCleaned(made))
        leavings.remove(self._keep, self.id)

    def _end(self, decision: Decision) -> None:
        self._clear()
        for left in self.running():
            left.stop()
        with self._keep.working(self.id):
            # Asks the engine first: without it nothing could be ended.
            mine = self.sandbox.containers() if self.sandbox.may_exist() else []
            self._act(decision)
            monitor.measure(self._keep, self.id)
            container = self.state.container
            egress.close_way(self._keep, self.id)
            for each in mine:
                self._keep.engine.remove(each)
            slot.drop(self._keep, self.id)
            if container is not None:
                removed = ev.SandboxRemoved(container)
                self._decide(partial(decider.lose, event=removed))
        memory.trail(self._keep, self.id)

    def _root(self) -> contextlib.AbstractContextManager[int]:
        return recording.opened(self.workspace, self.id)

    def _checkpoint(
        self,
        root: int,
        label: str,
        progress: Callable[[int], None],
        still: contextlib.AbstractContextManager[bool] | None = None,
        pin: bool = False,
        tags: tuple[str, ...] = (),
        with_system: bool = False,
    ) -> Checkpoint:
        name, image = secrets.token_hex(6), ""
        with contextlib.ExitStack() as stack:
            if with_system:  # both at one moment
                image, still = stack.enter_context(system.kept(self._keep, self.state, name, still)), None
            taken = recording.record(self._keep, self.id, root, progress, still)
            event = ev.CheckpointCreated(
                *(name, taken.digest, taken.files, taken.bytes, label, taken.torn[:_MAX_TORN]),
                commands=sum(pending.kind == ev.CommandRequested.__name__ for pending in self.state.pending),
                frozen_ns=taken.frozen_ns,
                image=image,
            )
            receipt = self._decide(partial(decider.record_checkpoint, event=event, pin=pin, tags=tags))
        memory.trail(self._keep, self.id)
        return next(each for each in self.checkpoints() if each.position == receipt.first)

    def _recorded(self, root: int, progress: Progress = lambda files: None, touched: Names | None = None) -> Snapshot:
        return recording.record(self._keep, self.id, root, progress, touched=touched)
