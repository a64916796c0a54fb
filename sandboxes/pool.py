"""The pool: sandboxes that are started before there are tasks for them.

A *slot* is a task to come: it has an id, the folders of a task of that id, and a container that runs on them. Mounts
cannot be added to a container, so nothing is renamed or moved: the next task that fits is given the slot's id, and
finds its folders made and its sandbox running. The log knows nothing of a slot until a task has it; `slot` says how one
is told.

Slots are made and removed by the steward's duty `fill`, and taken by whoever creates a task, each `Keep.working` on the
slot's id. One that a crash left half made or half removed is removed by the next `fill`; one that was half taken is its
task's, if there is one by that id, and free otherwise.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events import Event
from sandkeep.events.catalogue import CacheChoice
from sandkeep.projections import StateView, registry
from sandkeep.sandboxes import admission, decider, intent, limits, settings, slot, workspace
from sandkeep.sandboxes.ledger import amount
from sandkeep.sandboxes.sandbox import Sandbox
from sandkeep.sandboxes.slot import Slot

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


@contextlib.contextmanager
def place(keep: Keep, image: str, caches: tuple[CacheChoice, ...] = ()) -> Iterator[str]:
    """The id for a new task: that of a slot with this image and these caches, if there is one. The block is
    `Keep.working` on it."""
    for name in slot.names(keep):
        with keep.attempting(name) as mine:
            found = slot.find(keep, name) if mine else None
            fits = found is not None and found.container and (found.image, found.caches) == (image, caches)
            if fits and _task(keep, name) is None:
                yield name
                return
    name = secrets.token_hex(6)
    with keep.working(name):
        yield name


def fill(keep: Keep) -> list[str]:
    """Remove the slots that are of no use any more, and start one if there are fewer than the settings ask for.

    None while somebody waits for room for a sandbox. Makes the base image if the engine lacks it. Raises what starting
    a sandbox raises.
    """
    setting = settings.load(keep.path).sandboxes
    wanted = setting.pool
    names = slot.names(keep)
    if not names and not wanted:
        return []
    if admission.waiting(keep):
        wanted = 0  # who has a task comes first
    running = {found.container for found in keep.engine.containers(keep.id) if found.status == "running"}
    fitting = None
    if wanted:
        image, image_id = keep.images.resolve()
        most = keep.engine.fit(limits.load(keep.path).of(image))
        fitting = Slot(image, image_id, most, caches=keep.caches.chosen(()), runtime=setting.runtime)
    good, done = 0, []
    for name in names:
        with keep.attempting(name) as mine:
            if not mine or _awaited(task := _task(keep, name)):
                continue
            found = slot.find(keep, name)
            fits = found is not None and fitting == msgspec.structs.replace(found, container="")
            if found is not None and fits and task is None and found.container in running and good < wanted:
                good += 1
            else:
                _remove(keep, name, task)
                done.append(f"slot {name}: removed")
    if fitting is not None and good < wanted:
        done.append(f"slot {_make(keep, fitting)}: started, {good + 1} of {wanted}")
    return done


def _make(keep: Keep, fitting: Slot) -> str:
    name = secrets.token_hex(6)
    needed = amount(fitting.limits)
    most = admission.budget(keep, limits.load(keep.path).budget)

    def count(state: StateView) -> list[Event]:
        """As a decision, since all others count it from then on."""
        admission.check(keep, state, name, needed.memory_bytes, most)
        slot.write(keep, name, fitting)
        return []

    with keep.working(name), intent.held(keep.intents) as made, admission.reserved(keep, name, needed):
        keep.log.decide(registry.STREAM + name, count, actor=keep.actor)
        sandbox = Sandbox(keep, name)
        sandbox.prepare_folders()
        workspace.prepare(sandbox.workspace, None)
        container = sandbox.launch(fitting.image_id, fitting.limits, made, fitting.caches, fitting.runtime)
        slot.write(keep, name, msgspec.structs.replace(fitting, container=container))
    return name


def _remove(keep: Keep, name: str, task: registry.Task | None) -> None:
    """Remove the slot; of one that a task has taken, only what tells of it."""
    if task is None:
        sandbox = Sandbox(keep, name)
        sandbox.remove()
        sandbox.remove_folders()
    slot.drop(keep, name)


def _task(keep: Keep, name: str) -> registry.Task | None:
    with keep.projections.reading() as state:
        return registry.find(state, name)


def _awaited(task: registry.Task | None) -> bool:
    """Whether the task has taken the slot, and not yet run a command in it."""
    return task is not None and not task.used_ns and task.state in decider.LIVE
