"""The caches of a keep: what a sandbox is shown of them, what they take and who uses them, and what is removed.

`caches` says what they are. One process at a time removes something from them; what sandboxes do meanwhile goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import BadInput
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import CacheChoice
from sandkeep.projections import CacheUse
from sandkeep.projections import caches as projection
from sandkeep.sandboxes import cache_folder, caches, disk, intent, quantity, workspace
from sandkeep.sandboxes.cache_folder import Content
from sandkeep.sandboxes.caches import Cache, Seen
from sandkeep.sandboxes.clock import boot_clock

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_MEASURED = "cache-"
_logger = logging.getLogger(__name__)


class Listed(msgspec.Struct, frozen=True):
    """A cache: as it is declared, None if it is not any more; what is in it; which tasks have it that are not cleaned
    up; and what is on record of it."""

    name: str
    declared: Cache | None
    content: Content
    tasks: tuple[str, ...]
    use: CacheUse


class Pruned(msgspec.Struct, frozen=True):
    """What was removed from a cache, and what is left."""

    name: str
    removed: Content
    left: Content


@final
class CacheStore:
    """`Keep.caches`."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._folder = keep.path / "caches"

    def chosen(self, asked: Iterable[str] | None) -> tuple[CacheChoice, ...]:
        """What a new task that asks for these is given. Raises `BadInput`, `BadSettings` and `PolicyDenied`."""
        return caches.choose(caches.load(self._keep.path), asked)

    def of(self, task: str) -> tuple[CacheChoice, ...]:
        """What a task was given."""
        with self._keep.projections.reading() as state:
            return projection.choices(state, task)

    def granted(self, chosen: tuple[CacheChoice, ...]) -> tuple[CacheChoice, ...]:
        """What of it the settings grant now. Raises `BadSettings`."""
        return caches.granted(caches.load(self._keep.path), chosen) if chosen else ()

    def show(self, chosen: Iterable[CacheChoice]) -> tuple[Seen, ...]:
        """What a sandbox is to see; the folders are made if they are not there."""
        declared = caches.load(self._keep.path)
        return tuple(
            Seen(each.name, self._make(each.name), each.writable, declared[each.name].variable)
            for each in chosen
            if each.name in declared
        )

    def listed(self) -> list[Listed]:
        """All that are declared, or are there, by name. Takes as long as it takes to look at every file in them."""
        declared, uses, tasks = caches.load(self._keep.path), dict[str, CacheUse](), dict[str, list[str]]()
        with self._keep.projections.reading() as state:
            uses |= {each.name: each for each in projection.uses(state)}
            for task, choices in projection.given(state):
                for each in choices:
                    tasks.setdefault(each.name, []).append(task)
        return [
            Listed(
                name,
                declared.get(name),
                cache_folder.content(self._folder / name) if name in self._names() else Content(),
                tuple(sorted(tasks.get(name, ()))),
                uses.get(name, CacheUse(name)),
            )
            for name in sorted({*declared, *self._names()})
        ]

    def prune(self, name: str | None = None, *, everything: bool = False) -> list[Pruned]:
        """Bring the cache `name`, or all, to the size that is declared, by removing what was not used for longest; one
        that is not declared any more is removed. With `everything`, empty them. What is removed is recorded.

        Sandboxes that see them go on, and may miss what they had just found. Raises `BadInput`, `BadSettings` and
        `OSError`.
        """
        declared = caches.load(self._keep.path)
        if name is not None and name not in {*declared, *self._names()}:
            raise BadInput(f"this keep has no cache {name[:40]!r}; 'sandkeep caches' lists those there are")
        with intent.exclusive(self._keep.path / "run" / "caches.lock"):
            wanted = self._names() if name is None else [each for each in self._names() if each == name]
            return [self._prune(each, declared.get(each), everything) for each in wanted]

    def tick(self) -> list[str]:
        """Prune those that it is time to look at, and tell what was done. For the steward. What is not declared any
        more is left to `prune`: a slip in the settings should cost nothing. What fails for one is logged, and holds up
        no other."""
        declared, done = caches.load(self._keep.path), []
        for name in sorted({*declared} & {*self._names()}):
            if not disk.is_due(self._keep, _MEASURED + name, declared[name].size, boot_clock()()):
                continue
            try:
                with disk.measuring(self._keep, _MEASURED + name) as found:
                    pruned = self.prune(name)
                    found(sum(each.left.bytes for each in pruned))
            except OSError as error:
                _logger.warning("the cache %s cannot be looked at: %s", name, error)
                continue
            done += [
                f"cache {name}: removed {each.removed.files} files, {quantity.show_size(each.removed.bytes)}"
                for each in pruned
                if each.removed.files
            ]
        return done

    def remembered(self, name: str) -> int | None:
        """How many bytes the steward last found in a cache, if it ever looked."""
        found = disk.remembered(self._keep, _MEASURED + name)
        return None if found is None else found.bytes

    def _prune(self, name: str, declared: Cache | None, everything: bool) -> Pruned:
        folder = self._folder / name
        if declared is None or everything:
            removed, left = cache_folder.empty(folder)
        else:
            removed, left = cache_folder.prune(folder, declared.size)
        if declared is None and not left.files:
            folder.rmdir()
        if removed.files:
            reason = "undeclared" if declared is None else "asked" if everything else "size"
            event = ev.CachePruned(reason, removed.files, removed.bytes, left.bytes)
            self._keep.log.append(projection.STREAM + name, [event], actor=self._keep.actor)
        return Pruned(name, removed, left)

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []

    def _make(self, name: str) -> Path:
        folder = self._folder / name
        self._folder.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o755, exist_ok=True)
        # A task that may write to it may have closed it to all others.
        folder.chmod(0o755)
        if os.getuid() == 0:
            os.chown(folder, *workspace.owner(), follow_symlinks=False)
        return folder
