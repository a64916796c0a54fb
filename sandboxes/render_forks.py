"""What the command line shows of own workspaces, and of what became of them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sandkeep.projections import Fork
from sandkeep.sandboxes import render
from sandkeep.sandboxes.merging import Merged
from sandkeep.sandboxes.render import Document


def fork_document(fork: Fork) -> Document:
    """An own workspace that is not merged, for machines."""
    return {
        "task": fork.task,
        "agent": fork.agent,
        "token": fork.token,
        "checkpoint": fork.checkpoint,
        "position": fork.position,
        "created": render.moment(fork.time_ns),
    }


def print_forks(found: Iterable[Fork]) -> None:
    """A table of own workspaces that are not merged, if there are any."""
    rows = [
        (
            fork.task,
            render.plain(fork.agent),
            str(fork.token),
            render.moment(fork.time_ns)[:19].replace("T", " "),
        )
        for fork in found
    ]
    if rows:
        render.print_rows(("OWN WORKSPACE", "AGENT", "TOKEN", "MADE"), rows)


def merged_document(merged: Merged) -> Document:
    """What became of an own workspace, for machines."""
    document: Document = msgspec.structs.asdict(merged)
    return document | {"conflicts": [render.conflict_document(each) for each in merged.conflicts]}


def print_merged(merged: Merged) -> None:
    """What became of an own workspace."""
    print(render.plain(str(merged)))
