"""What one task's sandbox may use and uses: the Python interface of limits, and of the answers to who needs more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from sandkeep.events import BadInput, late
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Limits
from sandkeep.projections import Extension, Use
from sandkeep.sandboxes import disk, limits, resources
from sandkeep.sandboxes.errors import BadLimits

if TYPE_CHECKING:
    from sandkeep.sandboxes import monitor, pressure
    from sandkeep.sandboxes.cgroup import Sample
    from sandkeep.sandboxes.keep import Keep
else:
    globals().update(late.bound("sandkeep.sandboxes", "monitor pressure"))

_MOST_REASON = 500


@final
class TaskResources:
    """What one task's sandbox may use. Holds no state of its own."""

    def __init__(self, keep: Keep, task_id: str, fence: int | None = None) -> None:
        """Use `Keep.resources` instead."""
        self._keep = keep
        self._fence = fence
        self.id = task_id

    @property
    def use(self) -> Use:
        """What is on record of the task's resources."""
        return resources.of(self._keep, self.id)

    @property
    def limits(self) -> Limits:
        """What its sandbox may use: the one that lives, or else the next."""
        use = self.use
        return use.limits or use.asked or resources.default(self._keep, self.id)

    @property
    def disk(self) -> disk.Share:
        """What it may take of the disk, and takes."""
        found, limit = disk.remembered(self._keep, self.id), self.limits.disk_bytes
        return disk.Share(limit, None if found is None else found.bytes, disk.MEANS if limit else "nothing")

    def sample(self) -> Sample | None:
        """What its sandbox uses now; None if none lives, or nobody can tell."""
        return monitor.sample(self._keep, self.use)

    def set(self, asked: Mapping[str, object], reason: str = "") -> Limits:
        """Change what is named, like {"memory": "4GiB"}, for this sandbox and all later ones of the task.

        What an engine cannot change of a live sandbox (`tmp`, `open_files`, and the size of a single file) holds from
        the next one on. Raises `BadLimits`, `BudgetExhausted`, `TaskRefused`, `LockHeld`, `StaleFence`, and
        `EngineFailed` if the sandbox uses more already: then all is as it was.
        """
        found = limits.chosen(asked, self.limits)
        if found is None:
            raise BadLimits(f"no limit is named; name some of {', '.join(limits.NAMES)}")
        found = self._keep.engine.fit(found)
        resources.change(self._keep, self.id, found, _reason(reason), self._fence)
        return found

    def extend(self, memory: object = None, reason: str = "") -> Extension:
        """Give the sandbox that stands still for want of memory as much as it asked for, or `memory`, and let it go on.

        The ceiling does not hold for this, the budget does. Raises `ExtensionNotFound`, `BadLimits`, `BudgetExhausted`.
        """
        least = resources.of(self._keep, self.id)
        named = None if memory is None else limits.chosen({"memory": memory}, self.limits)
        if named is not None and least.limits is not None and named.memory_bytes <= least.limits.memory_bytes:
            raise BadLimits("memory: that is no more than the sandbox has; give it more, or deny it more")
        why = _reason(reason)

        def granted(extension: Extension) -> ev.ExtensionGranted:
            given = extension.wanted_bytes if named is None else named.memory_bytes
            return ev.ExtensionGranted(extension.id, given, why)

        return pressure.answer(self._keep, self.id, granted)

    def deny(self, reason: str = "", *, stop: bool = False) -> Extension:
        """Let the sandbox go on with what it has, or `stop` it, its workspace recorded. Raises `ExtensionNotFound`."""
        why = _reason(reason)
        return pressure.answer(
            self._keep, self.id, lambda extension: ev.ExtensionDenied(extension.id, stop, why or "it was denied")
        )


def _reason(reason: str) -> str:
    if len(reason) > _MOST_REASON or not (reason == "" or reason.isprintable()):
        raise BadInput(f"a reason has at most {_MOST_REASON} printable characters on one line; shorten or reword it")
    return reason
