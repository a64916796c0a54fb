"""Merging an agent's own workspace into the task that it was forked from.

What the agent changed since the fork is found by comparing the fork's checkpoint with the own workspace as it is, and
written into the task's workspace as that agent's work (see `three_way` and `git_sides`). Both sides are recorded first,
so that all of it can be undone, and both sandboxes stand still meanwhile. Decide: `MergeRequested`, and what collides
goes on record before it is overwritten. Effect. Outcome: `WorkspaceMerged`. Then the own workspace's task is completed
and cleaned up; its checkpoints stay.

Cut off at any point it can be run again, to the same result: what is done already is no difference any more, and what
collided is known. Whoever merges is `working` on both tasks, the own workspace's first.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import BlobStore, Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Change
from sandkeep.projections import Checkpoint, Conflict, Fork, StateView, TaskState, checkpoints, conflicts, forks
from sandkeep.sandboxes import decider, fork_decider, git_sides, intent, memory, place, refs, survey, three_way
from sandkeep.sandboxes.clock import BootTime
from sandkeep.sandboxes.collision import Collision
from sandkeep.sandboxes.conflict_work import Work
from sandkeep.sandboxes.errors import CheckpointRefused, MergeIncomplete, TaskBusy, TaskRefused
from sandkeep.sandboxes.manifest import Kind
from sandkeep.sandboxes.task import Task
from sandkeep.sandboxes.three_way import Overlap, Plan, Step
from sandkeep.sandboxes.tree import Tree

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_logger = logging.getLogger(__name__)


class Merged(msgspec.Struct, frozen=True):
    """What became of an own workspace: how many paths were `written`, what collided, settled or not, and the checkpoint
    that undoes it; or, if it was discarded, the last `checkpoint` of it alone."""

    task: str
    own: str
    agent: str
    checkpoint: str
    undo: str = ""
    written: int = 0
    conflicts: tuple[Conflict, ...] = ()

    def __str__(self) -> str:
        if not self.undo:
            return f"{self.agent}'s own workspace {self.own} was discarded; checkpoint {self.checkpoint} has it"
        still = [each for each in self.conflicts if not each.taken]
        return (
            f"{self.agent}'s own workspace {self.own} was merged: {self.written} paths written,"
            f" {len(self.conflicts)} collided, {len(still)} of them still open; to undo, restore {self.undo}"
        )


class Side(Task):
    """A task whose workspace is one side of a merge."""

    @contextlib.contextmanager
    def still(self) -> Iterator[int]:
        """The workspace, open as a descriptor, while its sandbox stands still."""
        with self.sandbox.frozen():
            # A command may have taken its own permission to the workspace away.
            self.workspace.chmod(0o755)
            with self._root() as root:
                yield root

    def record(self, root: int, label: str) -> Checkpoint:
        """A checkpoint of it, with everything in it. Raises `CheckpointRefused`: what is missing would pass for
        deleted."""
        taken = self._checkpoint(root, label, lambda files: None)
        if taken.torn:
            raise CheckpointRefused(f"{taken.torn[0]!r} in task {self.id} does not hold still; stop what writes it")
        return taken

    def settle_abandoned(self) -> None:
        """Settle what a process that died has left under way."""
        self._clear()


def merge(keep: Keep, fork: Fork, token: int | None) -> Merged:
    """Merge an own workspace and end it.

    Raises what `fork_decider.merge` does, `TaskBusy` while commands run on either side, `CheckpointRefused`, and
    `MergeIncomplete` if it was only done in part: to be done again.
    """
    with _ready(keep, fork) as own, intent.held(keep.intents) as made:
        parent = Side(keep, fork.parent)
        with keep.working(parent.id):
            request = ev.MergeRequested(made, own.id, "", "")
            with keep.projections.reading() as state:  # refused before the work is done
                fork_decider.merge(state, fork, request, token, keep.locking.now())
            with own.still() as mine, parent.still() as theirs:
                work = Work(keep, parent.id, made)
                work.look()
                last = own.record(mine, f"to be merged into {parent.id}")
                undo = parent.record(theirs, f"before {own.id} is merged")
                plan = _without_settled(keep, fork, _plan(keep, fork, last, undo, mine, theirs))
                request = ev.MergeRequested(made, own.id, last.id, undo.id)
                _decide(keep, fork, request, token)
                try:
                    work.detect(_collisions(keep, fork, plan), fork.agent)
                    write(theirs, plan.steps, keep.blobs)
                    work.look(detecting=False)
                    work.settle(fork.agent, fork.position)
                except (SandkeepError, OSError) as error:
                    failure = MergeIncomplete(
                        f"the own workspace {own.id} is only in part merged into task {parent.id}: {error};"
                        f" see to that and merge it again, or restore {undo.id} to have what was there before"
                    )
                    keep.decide(
                        parent.id,
                        partial(decider.settle, outcome=ev.MergeFailed(made, failure.code, str(failure)[:2000])),
                    )
                    raise failure from error
            keep.decide(parent.id, partial(decider.settle, outcome=ev.WorkspaceMerged(made, own.id, last.id)))
        _complete(keep, own, f"merged into {parent.id}")
    memory.trail(keep, fork.parent)
    _clean_up(keep, fork)
    return Merged(fork.parent, own.id, fork.agent, last.id, undo.id, len(plan.steps), _conflicts(keep, fork))


def discard(keep: Keep, fork: Fork, token: int | None) -> Merged:
    """End an own workspace without merging it; its last checkpoint stays. Raises as `merge` does."""
    with _ready(keep, fork) as own:
        with own.still() as mine:
            last = own.record(mine, f"discarded instead of merged into {fork.parent}")
            _decide(keep, fork, ev.WorkspaceDiscarded(own.id, last.id), token)
        _complete(keep, own, f"discarded instead of merged into {fork.parent}")
    memory.trail(keep, fork.parent)
    _clean_up(keep, fork)
    return Merged(fork.parent, own.id, fork.agent, last.id)


def finish(keep: Keep) -> list[str]:
    """Clean up the own workspaces that have ended, and tell which, a line each. The steward does this."""
    with keep.projections.reading() as state:
        found = list(forks.ended(state))
    done: list[str] = []
    for fork in found:
        own = Side(keep, fork.task)
        with contextlib.suppress(TaskBusy), keep.working(own.id):  # somebody looks into it; the next time, then
            _complete(keep, own, f"it was {fork.ended}")
        if _clean_up(keep, fork):
            done.append(f"task {own.id}: the own workspace of {fork.agent} was {fork.ended}, and is cleaned up")
    return done


def write(root: int, steps: tuple[Step, ...], blobs: BlobStore) -> None:
    """Do the steps in the workspace open as `root`, durably."""
    for step in steps:
        try:
            if step.folder:
                place.put_folder(root, step.path, step.entry)
            else:
                place.put(root, step.path, step.entry, blobs)
        except (FileNotFoundError, NotADirectoryError):
            if step.entry is not None:
                raise  # what was to be removed may be gone already
    for folder in {os.path.dirname(step.path) for step in steps}:
        place.sync_folder(root, folder)


@contextlib.contextmanager
def _ready(keep: Keep, fork: Fork) -> Iterator[Side]:
    """The own workspace, with nothing under way in it and nothing to begin."""
    own = Side(keep, fork.task)
    own.settle_abandoned()
    Side(keep, fork.parent).settle_abandoned()
    with keep.working(own.id):
        decider.still(own.state)
        yield own


def _plan(keep: Keep, fork: Fork, last: Checkpoint, undo: Checkpoint, mine: int, theirs: int) -> Plan:
    with keep.projections.reading() as state:
        base = next(each for each in checkpoints.checkpoints(state, fork.parent) if each.id == fork.checkpoint)
    was, own, there = (Tree(each.digest, keep.blobs) for each in (base, last, undo))
    files = three_way.plan(was, own, there)
    git = git_sides.plan(was, own, there, partial(refs.follows, mine), partial(refs.follows, theirs), keep.blobs)
    for tree, each in itertools.product((was, own, there), files.overlaps):
        entry = tree.entry(survey.raw(each.path))
        if entry is not None and entry.kind is Kind.LINK:
            keep.blobs.put(entry.target)  # a manifest holds it itself, and a conflict names it
    return Plan((*files.steps, *git.steps), (*files.overlaps, *git.overlaps))


def _without_settled(keep: Keep, fork: Fork, plan: Plan) -> Plan:
    """The plan without what a merge that was cut off has done, and was settled since."""
    with keep.projections.reading() as state:
        known = [each for each in conflicts.conflicts(state, fork.parent) if each.position > fork.position]
    settled = {each.path: (each.ours, each.result) for each in known if each.taken and each.agents == (fork.agent,)}
    done = {each.path for each in plan.overlaps if settled.get(each.path) == (each.ours, each.theirs)}
    return Plan(
        tuple(step for step in plan.steps if survey.text(step.path) not in done),
        tuple(each for each in plan.overlaps if each.path not in done),
    )


def _collisions(keep: Keep, fork: Fork, plan: Plan) -> list[Collision]:
    with keep.projections.reading() as state:
        return [_collision(state, fork, each) for each in plan.overlaps]


def _collision(state: StateView, fork: Fork, found: Overlap) -> Collision:
    writes = conflicts.history(state, fork.parent, found.path).writes
    others = {name for write in writes if write.position > fork.position for name in write.agents} - {fork.agent}
    change = Change(found.path, found.theirs, found.ours, found.renamed)
    return Collision(change, tuple(sorted(others)), found.base, True, found.renamed)


def _conflicts(keep: Keep, fork: Fork) -> tuple[Conflict, ...]:
    """What collided, in this merge and in those of the same workspace that were cut off before."""
    with keep.projections.reading() as state:
        found = [each for each in conflicts.conflicts(state, fork.parent) if each.position > fork.position]
    return tuple(each for each in found if each.agents == (fork.agent,))


def _decide(keep: Keep, fork: Fork, event: Event, token: int | None) -> None:
    def decide(state: StateView, now: BootTime) -> list[Event]:
        return fork_decider.merge(state, fork, event, token, now)

    keep.locking.decide(fork.parent, decide)


def _complete(keep: Keep, own: Side, summary: str) -> None:
    """End the own workspace's task. The caller is `working` on it."""
    if own.state.state in (TaskState.CREATED, TaskState.ACTIVE, TaskState.PAUSED):
        keep.decide(own.id, partial(decider.complete, summary=summary))


def _clean_up(keep: Keep, fork: Fork) -> bool:
    """Whether the own workspace's task is cleaned up. If not, that holds nothing up: the steward tries again."""
    try:
        Side(keep, fork.task).abandon()
        return True
    except (TaskRefused, TaskBusy):  # another is at it, or was
        return False
    except (SandkeepError, OSError) as error:
        _logger.warning("the own workspace %s cannot be cleaned up now: %s", fork.task, error)
        return False
