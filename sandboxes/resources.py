"""What a task's sandbox may use: its limits, what they were set to, and what it is given when it starts.

Limits are those that the task was given, or else what `keep.toml` says when its sandbox starts. To change those of a
live sandbox is *decide, effect, outcome*; the memory that it may get is promised with the decision (see `admission`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, final

from sandkeep.events import Event, SandkeepError
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Limits
from sandkeep.projections import StateView, Use, registry
from sandkeep.projections import resources as uses
from sandkeep.sandboxes import admission, decider, intent, limits, memory
from sandkeep.sandboxes.errors import BadLimits, DiskFull, ExtensionOpen
from sandkeep.sandboxes.quantity import show_size

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


def of(keep: Keep, task_id: str) -> Use:
    """The resources of a task, as they are at the head."""
    with keep.projections.reading() as state:
        return uses.find(state, task_id) or Use(task_id)


def chosen(keep: Keep, asked: Mapping[str, object]) -> Limits | None:
    """The limits that a new task is given: those in `keep.toml` with what is `asked` for, None if that is nothing.

    Raises `BadLimits` and `BadSettings`.
    """
    return limits.chosen(asked, limits.load(keep.path).limits)


def allot(keep: Keep, task: registry.Task, image_id: str, made: str) -> Limits:
    """Store the intent `made` to start the task's sandbox, when there is memory for it, and return what it may use.

    Raises `BudgetExhausted`, `BadSettings`, and what `decider.begin` raises.
    """
    settings = limits.load(keep.path)
    wanted = keep.engine.fit(of(keep, task.id).asked or settings.limits)
    request = ev.SandboxRequested(made, image_id, wanted, task.tags)
    admission.admit(keep, task.id, request, settings.budget)
    return wanted


def admit(keep: Keep, task_id: str) -> Limits:
    """What a command of the task may use. Raises `ExtensionOpen` and `DiskFull` if none may begin now."""
    use = of(keep, task_id)
    if use.extension is not None and use.extension.container == use.container:
        raise ExtensionOpen(
            f"the sandbox of task {task_id} stands still, since it needs {show_size(use.extension.wanted_bytes)} of"
            f" memory; say 'sandkeep extend-limits {task_id} --memory SIZE' or 'sandkeep deny-extension {task_id}'"
        )
    found = use.limits or use.asked or limits.load(keep.path).limits
    near = use.neared("disk")
    if near is not None and near.percent >= 100:
        raise DiskFull(
            f"the workspace of task {task_id} takes more than {show_size(found.disk_bytes)}; restore a checkpoint,"
            f" remove files on the host, or say 'sandkeep set-limits {task_id} --disk SIZE'"
        )
    return found


def put_back(keep: Keep, task_id: str) -> None:
    """Give the engine the limits of before, after a change that was cut off."""
    use = of(keep, task_id)
    if use.container is not None and use.limits is not None:
        keep.engine.limit(use.container, use.limits)


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
        return of(self._keep, self.id)

    @property
    def limits(self) -> Limits:
        """What its sandbox may use: the one that lives, or else the next."""
        use = self.use
        return use.limits or use.asked or limits.load(self._keep.path).limits

    def set(self, asked: Mapping[str, object], reason: str = "") -> Limits:
        """Change what is named, like {"memory": "4GiB"}, for this sandbox and all later ones of the task.

        What an engine cannot change of a live sandbox (`tmp`, `open_files`, and the size of a single file) holds from
        the next one on. Raises `BadLimits`, `BudgetExhausted`, `TaskRefused`, `LockHeld`, `StaleFence`, and
        `EngineFailed` if the sandbox uses more already: then all is as it was.
        """
        found = limits.chosen(asked, self.limits)
        if found is None:
            raise BadLimits(f"no limit is named; name some of {', '.join(limits.NAMES)}")
        self.change(self._keep.engine.fit(found), reason)
        return found

    def change(self, wanted: Limits, reason: str) -> None:
        """Make these the task's limits, and those of its sandbox."""
        keep = self._keep
        most = admission.budget(keep, limits.load(keep.path).budget)
        keep.locking.check(self.id, self._fence)
        with keep.working(self.id), intent.held(keep.intents) as made:
            container = self.use.container
            request = ev.LimitsRequested(made, wanted, container, reason)
            stream = registry.STREAM + self.id
            keep.log.decide(stream, partial(self._promise, request, most), actor=keep.actor, fence=self._fence)
            try:
                if container is not None:
                    keep.engine.limit(container, wanted)
            except SandkeepError as error:
                self._settle(ev.LimitsFailed(made, error.code, str(error)[:2000]))
                raise
            self._settle(ev.LimitsSet(made))
        memory.trail(keep, self.id)

    def _promise(self, request: ev.LimitsRequested, most: int, state: StateView) -> list[Event]:
        use = uses.find(state, self.id) or Use(self.id)
        needed = request.limits.memory_bytes + request.limits.swap_bytes
        if needed > use.promised > 0:
            admission.check(state, self.id, needed, most)
        return decider.limit(registry.find(state, self.id), request)

    def _settle(self, outcome: ev.Outcome) -> None:
        self._keep.decide(self.id, partial(decider.settle, outcome=outcome))
