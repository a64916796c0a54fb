"""The events of what agents change in a workspace that they share, and of their conflicts."""

from __future__ import annotations

import msgspec

from sandkeep.events.schema import Event, event


class Version(msgspec.Struct, frozen=True):
    """What is at a path. `digest` is of a file's content, a link's target or a branch's commit; empty if not kept."""

    kind: str
    digest: str
    size: int
    mode: int


class Change(msgspec.Struct, frozen=True):
    """A path and what was and is there; None for nothing. `renamed` is where the same content went to."""

    path: str
    before: Version | None
    after: Version | None
    renamed: str = ""


class Rule(msgspec.Struct, frozen=True):
    """How conflicts are settled at the paths that `pattern` matches."""

    pattern: str
    strategy: str


@event(version=1)
class PathsChanged(Event, frozen=True):
    """The workspace was found changed since position `since`, while the commands `intents` of `agents` ran in it.

    With several, it is not known which of them it was; with none, it was nobody's command. What was there before is
    kept.
    """

    agents: tuple[str, ...]
    intents: tuple[str, ...]
    since: int
    changes: tuple[Change, ...]


@event(version=1)
class ConflictDetected(Event, frozen=True):
    """`agents` wrote `ours` at `path` without having seen `theirs`, which `others` had written there.

    They knew it as `base`, unless not `based`: then that is not known any more.
    """

    conflict: str
    kind: str
    path: str
    agents: tuple[str, ...]
    others: tuple[str, ...]
    strategy: str
    base: Version | None
    ours: Version | None
    theirs: Version | None
    based: bool
    renamed: str = ""


@event(version=1)
class ConflictResolved(Event, frozen=True):
    """`before` gave way to `result`, by the strategy, or by whoever chose it."""

    conflict: str
    path: str
    strategy: str
    taken: str
    before: Version | None
    result: Version | None


@event(version=1)
class ConflictPolicySet(Event, frozen=True):
    """From now on the first of these rules that matches settles a conflict."""

    rules: tuple[Rule, ...]
