"""Forking a task from any of its checkpoints: a new task that begins as the other was at that moment.

Its workspace is made from the checkpoint's tree, and what describes it is what described the other then: its tags, and
what had been decided. What it may reach and use is what the other may now, not then: to go back in time gives nobody
more than they have. The new task's stream names the task, the checkpoint and its position; from then on neither knows
of the other. A process that dies meanwhile leaves a task that could not begin, which the steward cleans up.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypedDict

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.events.names import check_actor
from sandkeep.projections import NetworkPolicy, branches, network
from sandkeep.sandboxes import limits, resources, restore, system
from sandkeep.sandboxes.description import check_tags, check_title
from sandkeep.sandboxes.network import check_policy
from sandkeep.sandboxes.network_policy import policy_events
from sandkeep.sandboxes.task import Task
from sandkeep.sandboxes.task_resources import TaskResources
from sandkeep.sandboxes.text import quiet

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


class Asked(TypedDict, total=False):
    """What a fork is to have otherwise than the task that it is forked from; see `Keep.create_task`. With `network`
    come `allow`, `private` and `services`."""

    title: str
    owner: str
    tags: Iterable[str]
    image: str
    network: str
    allow: Iterable[str]
    private: Iterable[str]
    services: Iterable[str]
    limits: Mapping[str, object]
    caches: Iterable[str] | None
    progress: Callable[[str], None]


def fork(keep: Keep, source: Task, checkpoint: str, asked: Asked) -> Task:
    """A new task from a checkpoint of `source`; see `Keep.fork_task`."""
    state, progress = source.state, asked.get("progress", quiet)
    found = restore.find(source.checkpoints(expired=True), checkpoint, source.id)
    restore.refuse_empty(found, keep.blobs)
    then = branches.described(source.history(), found.position)
    title = check_title(asked.get("title", state.title))
    tags = check_tags(asked["tags"]) if "tags" in asked else then.tags
    owner = check_actor(asked["owner"]) if "owner" in asked else None
    most = resources.of(keep, source.id).asked
    if named := asked.get("limits"):
        most = limits.chosen(named, TaskResources(keep, source.id).limits)
    given: list[Event] = [ev.TaskForked(source.id, found.id, found.position, then.decided, found.image)]
    given += system.granted(keep, system.writable(keep, state))
    given += policy_events(_reach(keep, source.id, asked))
    chosen = keep.caches.chosen(asked["caches"]) if "caches" in asked else keep.caches.of(source.id)
    given += [ev.CachesChosen(chosen)] if chosen else []
    task = Task(keep, secrets.token_hex(6))
    with keep.images.chosen(asked.get("image", state.image), progress) as image, keep.working(task.id):
        event = ev.TaskCreated("", title, None, image, owner, tags, state.parent, most)
        task.create(event, given, progress, found.digest)
    return task


def _reach(keep: Keep, source: str, asked: Asked) -> NetworkPolicy:
    if "network" in asked:
        more = asked.get("allow", ()), asked.get("private", ()), asked.get("services", ())
        return check_policy(keep, asked["network"], *more)
    with keep.projections.reading() as state:
        return network.policy(state, source)
