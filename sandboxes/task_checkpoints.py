"""The checkpoints of one task: which there are, what they hold, and which of them are kept on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import BadInput, Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import Checkpoint, StateView, checkpoints, registry
from sandkeep.sandboxes import checkpoint_decider, description, memory, restore

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_MAX_REASON = 500
_ASKED = "somebody asked for it"
_Decision = Callable[[StateView, str, str], list[Event]]


class Listed(msgspec.Struct, frozen=True):
    """A checkpoint, and how many bytes it adds to the one before it, as they are before compression; the first adds
    all. One that has expired adds nothing."""

    checkpoint: Checkpoint
    added: int


@final
class TaskCheckpoints:
    """The checkpoints of one task. Made by `Keep.checkpoints`. A checkpoint is named by its id or by the beginning of
    it; what there is no such one of raises `BadId`, `CheckpointNotFound` or `CheckpointGone`."""

    def __init__(self, keep: Keep, task: str) -> None:
        """Use `Keep.checkpoints` instead."""
        self._keep = keep
        self._task = task

    def list(self, *, expired: bool = False) -> Sequence[Listed]:
        """The checkpoints, oldest first; with `expired`, those too that cannot be restored any more."""
        every = _known(self._keep, self._task)
        live = [each for each in every if not each.expired_ns]
        sizes = dict(zip((each.id for each in live), self._keep.growth.each(live), strict=True))
        return [Listed(each, sizes.get(each.id, 0)) for each in every if expired or each.id in sizes]

    def pin(self, checkpoint: str) -> Checkpoint:
        """Keep a checkpoint until it is unpinned, whatever the rules and budgets say."""
        return self._decide(checkpoint, checkpoint_decider.pin)

    def unpin(self, checkpoint: str) -> Checkpoint:
        """Let the rules say again whether a checkpoint is kept."""
        return self._decide(checkpoint, checkpoint_decider.unpin)

    def tag(self, checkpoint: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Checkpoint:
        """Give a checkpoint tags, and take tags from it; as long as it has any it is kept. Raises `BadInput` and
        `LimitReached`."""
        asked = description.tagged(add, remove)
        return self._decide(checkpoint, lambda state, task, each: checkpoint_decider.tag(state, task, each, asked))

    def expire(self, checkpoint: str, reason: str = "") -> Checkpoint:
        """Let a checkpoint go, whatever the rules say. What only it holds is removed after a grace period.

        Raises `CheckpointNeeded` for one that is pinned, tagged, the newest, or that something is made of.
        """
        if len(reason) > _MAX_REASON or not (reason == "" or reason.isprintable()):
            raise BadInput(f"a reason has at most {_MAX_REASON} printable characters; shorten or reword it")

        def expired(state: StateView, task: str, each: str) -> list[Event]:
            return checkpoint_decider.expire_one(state, task, ev.CheckpointExpired(each, reason or _ASKED))

        return self._decide(checkpoint, expired)

    def _decide(self, checkpoint: str, decide: _Decision) -> Checkpoint:
        """Store what is decided of a checkpoint, and return what it is then."""
        found = restore.find(_known(self._keep, self._task), checkpoint, self._task)
        self._keep.log.decide(
            registry.STREAM + self._task, lambda state: decide(state, self._task, found.id), actor=self._keep.actor
        )
        memory.trail(self._keep, self._task)
        return next(each for each in _known(self._keep, self._task) if each.id == found.id)


def _known(keep: Keep, task: str) -> list[Checkpoint]:
    with keep.projections.reading() as state:
        return list(checkpoints.checkpoints(state, task, expired=True))
