"""What the command line shows people of agents, their locks and their own workspaces."""

from __future__ import annotations

from collections.abc import Mapping

from sandkeep.sandboxes import documents_work, render


def attached(held: documents_work.Attached, asked: Mapping[str, object]) -> None:
    """The token, for a variable of a shell."""
    print(held.token)


def detached(done: documents_work.Detached, asked: Mapping[str, object]) -> None:
    """That an agent is detached, and what became of its own workspace."""
    print(f"{done.task}  detached")
    if isinstance(done.merged, documents_work.Merged):
        merged(done.merged, asked)


def merged(done: documents_work.Merged, asked: Mapping[str, object]) -> None:
    """What became of an own workspace."""
    if not done.undo:
        became = f"was discarded; checkpoint {done.checkpoint} has it"
    else:
        still = [each for each in done.conflicts if not each.taken]
        became = (
            f"was merged: {done.written} paths written, {len(done.conflicts)} collided, {len(still)} of them still"
            f" open; to undo, restore {done.undo}"
        )
    print(render.plain(f"{done.agent}'s own workspace {done.own} {became}"))
