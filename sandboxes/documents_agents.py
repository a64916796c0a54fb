"""What verbs answer with that only agents ask for; see `documents`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sandkeep.sandboxes import documents
from sandkeep.sandboxes.documents import Task

if TYPE_CHECKING:
    from sandkeep.projections import registry


class OutputPart(msgspec.Struct, frozen=True):
    """A part of what a command wrote: `bytes` of it, from `offset` on, as text in which what is not UTF-8 is replaced.
    There are `size` in all, so far if it still `runs`; `next` is where the next part begins, null at the end."""

    task: str
    command: str
    stream: str
    offset: int
    bytes: int
    size: int
    text: str
    runs: bool
    next: int | None


class Run(msgspec.Struct, frozen=True):
    """A command that was run. Without an `exit_code` it goes on, or nobody knows what became of it, as `ended` says;
    that it is also how one was ended that did not end by itself."""

    number: int
    command: str
    argv: tuple[str, ...]
    agent: str
    begun: str
    exit_code: int | None
    ended: str


class Decided(msgspec.Struct, frozen=True):
    """What was decided, by whom, and why."""

    text: str
    reason: str
    agent: str
    at: str


class ChangedFile(msgspec.Struct, frozen=True):
    """What became of a file: `change` is "added", "removed" or "modified"."""

    path: str
    change: str


class Holder(msgspec.Struct, frozen=True):
    """An agent that is attached to a task."""

    agent: str
    mode: str


class LastCheckpoint(msgspec.Struct, frozen=True):
    """The newest checkpoint that can be restored."""

    id: str
    label: str
    created: str


class Briefing(msgspec.Struct, frozen=True):
    """What somebody must know who goes on with a task: what was done last, decided, and changed since the last
    checkpoint, what runs, who works on it too, and how its tests stood.

    `runs` are the last commands, newest first, of `runs_in_all`; `tests` is the last of them that looks like a run of
    tests. `changed` is null if the workspace cannot be read; `plan` is what plan.md of its memory folder says.
    """

    workspace: str | None
    plan: str
    runs_in_all: int
    runs: list[Run]
    tests: Run | None
    running: list[Run]
    decided: list[Decided]
    changed: list[ChangedFile] | None
    changed_in_all: int
    checkpoint: LastCheckpoint | None
    attached: list[Holder]
    open_conflicts: int


class Resumed(Task, frozen=True):
    """A task that goes on, with a briefing for whoever goes on with it."""

    briefing: Briefing


def resumed(found: registry.Task, briefing: Briefing) -> Resumed:
    """The document of a task that goes on."""
    return Resumed(**msgspec.structs.asdict(documents.task(found)), briefing=briefing)
