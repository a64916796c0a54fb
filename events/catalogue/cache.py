"""The events of caches: which of them a task may have, and what was removed from one."""

from __future__ import annotations

import msgspec

from sandkeep.events.schema import Event, event


class CacheChoice(msgspec.Struct, frozen=True):
    """A cache of the keep, by its name, to read or also to write to."""

    name: str
    writable: bool = False


@event(version=1)
class CachesChosen(Event, frozen=True):
    """The task's sandboxes see these caches, as far as the keep's settings grant them when one is started."""

    caches: tuple[CacheChoice, ...]


@event(version=1)
class CachePruned(Event, frozen=True):
    """So many `files` of so many `bytes` were removed from a cache, and `left` bytes are in it: for its `size`, because
    somebody `asked` for it, or since it is `undeclared` by now."""

    reason: str
    files: int
    bytes: int
    left: int
