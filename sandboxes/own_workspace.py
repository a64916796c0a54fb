"""Workspaces that agents have of their own: made when one is first worked in, merged when its agent detaches.

Where a task's rules say `own-workspace`, whoever holds its lock in collaborative mode works in a *fork* of it: a task
of its own, made from a checkpoint of this one, with its own sandbox, history and checkpoints. `Keep.task`, given the
token, and `Held.task` give an `OwnTask`, which sends there what concerns the workspace.

Decide: `WorkspaceForked` names the fork, then it is made under that name. Whoever dies in between leaves that to the
next use. One that could not be made is gone, and the next use makes another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, BinaryIO, final

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import (
    Checkpoint,
    Fork,
    Mode,
    StateView,
    checkpoints,
    conflicts,
    forks,
    locks,
    network,
    registry,
)
from sandkeep.sandboxes import collision, fork_decider, merging, resources
from sandkeep.sandboxes.agent import Window
from sandkeep.sandboxes.background import Running
from sandkeep.sandboxes.clock import BootTime
from sandkeep.sandboxes.description import MAX_TITLE
from sandkeep.sandboxes.errors import TaskBusy, WorkspaceNotFound
from sandkeep.sandboxes.execution import Result, Streamed
from sandkeep.sandboxes.merging import Merged
from sandkeep.sandboxes.network_policy import policy_events
from sandkeep.sandboxes.restore import Restored
from sandkeep.sandboxes.task import Task
from sandkeep.sandboxes.text import quiet
from sandkeep.sandboxes.workspace_diff import FileDiff

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_TRIES = 5


@final
class OwnTask(Task):
    """A task as one who has a workspace of their own in it sees it: its commands, checkpoints and workspace are those
    of the fork; all else, such as its tags and its end, is the task's."""

    fence: int

    def own(self) -> Task:
        """The fork, made if it is not there. Raises `StaleFence`, `TaskRefused`, and as `Keep.create_task` does."""
        return _ensure(self._keep, self.id, self.fence)

    @property
    def forked(self) -> str | None:
        """The id of the fork, if it is there and has not ended."""
        with self._keep.projections.reading() as state:
            found = forks.of_token(state, self.id, self.fence)
        return None if found is None or found.ended else found.task

    @property
    def workspace(self) -> Path:
        """The own workspace, on the host."""
        return self.own().workspace

    def execute(self, argv: Sequence[str], **options: Any) -> Result:
        """Run a command in the own workspace. See `Task.execute`."""
        return self.own().execute(argv, **options)

    def start(self, argv: Sequence[str], **options: Any) -> Running:
        """Start a command in the background of the own workspace. See `Task.start`."""
        return self.own().start(argv, **options)

    def terminal(
        self,
        argv: Sequence[str],
        keyboard: BinaryIO,
        on_output: Streamed,
        window: Callable[[], Window],
        **options: Any,
    ) -> Result:
        """Run a command in a terminal in the own workspace. See `Task.terminal`."""
        return self.own().terminal(argv, keyboard, on_output, window, **options)

    def running(self) -> list[Running]:
        """The commands that run in the background of the own workspace. See `Task.running`."""
        return self.own().running()

    def checkpoint(self, label: str = "", **options: Any) -> Checkpoint:
        """Record the own workspace. See `Task.checkpoint`."""
        return self.own().checkpoint(label, **options)

    def checkpoints(self, *, expired: bool = False) -> list[Checkpoint]:
        """The checkpoints of the own workspace, oldest first."""
        return self.own().checkpoints(expired=expired)

    def restore_checkpoint(self, checkpoint: str, **options: Any) -> Restored:
        """Set the own workspace back. See `Task.restore_checkpoint`."""
        return self.own().restore_checkpoint(checkpoint, **options)

    def diff(self, old: str = "", new: str = "", paths: Iterable[str] = (), *, text: bool = True) -> list[FileDiff]:
        """What differs in the own workspace. See `Task.diff`."""
        return self.own().diff(old, new, paths, text=text)


@final
class OwnWorkspaces:
    """The own workspaces of one task. Made by `Keep.own_workspaces`."""

    def __init__(self, keep: Keep, task: str, token: int | None) -> None:
        """Use `Keep.own_workspaces` instead."""
        self._keep = keep
        self._task = task
        self._token = token

    def list(self) -> list[Fork]:
        """Those that are not merged, oldest first."""
        with self._keep.projections.reading() as state:
            return list(forks.unmerged(state, self._task))

    def merge(self, which: str | None = None, *, discard: bool = False) -> Merged:
        """Merge one into the task's workspace, or `discard` what is in it: that of an agent, or the one with an id, or
        the only one there is.

        Refused with `LockHeld` while its agent holds the lock by the token that it was made for: it is merged when
        they detach. Raises `WorkspaceNotFound`, and as `merging.merge` does.
        """
        found = [
            fork
            for fork in self.list()
            if which is None or fork.agent == which or (which and fork.task.startswith(which))
        ]
        if len(found) != 1:
            raise WorkspaceNotFound(
                f"{len(found) or 'no'} unmerged own workspaces of task {self._task} fit {(which or 'that')[:80]!r};"
                f" 'sandkeep show-task {self._task}' lists those there are, to be named by id"
            )
        return (merging.discard if discard else merging.merge)(self._keep, found[0], self._token)


def task(keep: Keep, task_id: str, fence: int) -> Task:
    """The task as one who holds its lock by `fence` sees it."""
    with keep.projections.reading() as state:
        fork = forks.of_token(state, task_id, fence)
        apart = (fork is not None and not fork.ended) or _separates(state, task_id, fence)
    return (OwnTask if apart else Task)(keep, task_id, fence)


def _separates(state: StateView, task_id: str, token: int) -> bool:
    claim = locks.find(state, task_id).holder(token)
    if claim is None or claim.mode is not Mode.COLLABORATIVE:
        return False
    return collision.separates(conflicts.rules(state, task_id) or ())


def _ensure(keep: Keep, parent: str, token: int) -> Task:
    with keep.projections.reading() as state:
        fork = forks.of_token(state, parent, token)
        if fork is not None and not fork.ended and _is_made(state, fork):
            return Task(keep, fork.task, token)
    with keep.working(f"{parent}-{token}"):  # one maker at a time
        for _ in range(_TRIES):
            fork = _fork(keep, parent, token)
            with keep.projections.reading() as state:
                known, made = registry.find(state, fork.task), _is_made(state, fork)
            if known is None:
                _make(keep, fork)
            elif not made:  # whoever made it has died, and it is cleaned up
                keep.reconcile(again=True)
                continue
            return Task(keep, fork.task, token)
    raise TaskBusy(f"the own workspace of token {token} in task {parent} is not made yet; try again")


def _is_made(state: StateView, fork: Fork) -> bool:
    task = registry.find(state, fork.task)
    return task is not None and all(pending.kind != "TaskCreated" for pending in task.pending)


def _fork(keep: Keep, parent: str, token: int) -> Fork:
    """The fork of a token that has not ended; decided upon, if there is none."""
    with keep.projections.reading() as state:
        fork = forks.of_token(state, parent, token)
        claim = locks.find(state, parent).holder(token)
    if fork is not None and not fork.ended:
        return fork
    keep.locking.check(parent, token)  # refused before the work is done
    assert claim is not None
    base = Task(keep, parent).checkpoint("for an own workspace")
    event = ev.WorkspaceForked(token_hex(6), claim.agent, token, base.id)

    def decide(state: StateView, now: BootTime) -> list[Event]:
        return fork_decider.begin(state, event, parent, now)

    keep.locking.decide(parent, decide)
    with keep.projections.reading() as state:
        fork = forks.of_token(state, parent, token)
    assert fork is not None
    return fork


def _make(keep: Keep, fork: Fork) -> None:
    with keep.projections.reading() as state:
        parent = registry.find(state, fork.parent)
        base = next(each for each in checkpoints.checkpoints(state, fork.parent) if each.id == fork.checkpoint)
        reach = network.policy(state, fork.parent)
    assert parent is not None
    title = f"{fork.agent}'s own workspace: {parent.title}"[:MAX_TITLE]
    with keep.images.chosen(parent.image, quiet) as name, keep.working(fork.task):
        limits = resources.of(keep, parent.id).asked
        asked = ev.TaskCreated("", title, None, name, fork.agent, (), parent.id, limits)
        given = list(policy_events(reach))
        if chosen := keep.caches.of(parent.id):
            given.append(ev.CachesChosen(chosen))
        Task(keep, fork.task, fork.token).create(asked, given, quiet, base.digest)
