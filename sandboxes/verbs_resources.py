"""What the verbs for resources and networks do: calls of the library, and documents of what it gave. No logic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sandkeep.events import late
from sandkeep.projections import Extension
from sandkeep.sandboxes import documents_keep, isolation, limits, service
from sandkeep.sandboxes.cache_store import Pruned
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.isolation import Isolation
from sandkeep.sandboxes.network_policy import show
from sandkeep.sandboxes.task_resources import TaskResources

if TYPE_CHECKING:
    from sandkeep.sandboxes import admission, monitor
else:  # what a list of caches has no use for
    globals().update(late.bound("sandkeep.sandboxes", "admission monitor"))


def set_limits(
    door: Door,
    *,
    task: str,
    memory: str | None = None,
    swap: str | None = None,
    cpus: str | None = None,
    pids: str | None = None,
    tmp: str | None = None,
    disk: str | None = None,
    open_files: str | None = None,
    output: str | None = None,
    time: str | None = None,
    token: int | None = None,
) -> documents_keep.TaskLimits:
    """Change what a task's sandbox may use; see `TaskResources.set`."""
    found = door.keep.resources(task, token)
    asked = limits.named(memory, swap, cpus, pids, tmp, disk, open_files, output, time)
    return documents_keep.TaskLimits(found.id, limits.document(found.set(asked)))


def extend_limits(door: Door, *, task: str, memory: str | None = None, reason: str = "") -> documents_keep.Answered:
    """Give more memory to a sandbox that asks for it; see `TaskResources.extend`."""
    return _answered(door, task, "granted", lambda found: found.extend(memory, reason))


def deny_extension(door: Door, *, task: str, stop: bool = False, reason: str = "") -> documents_keep.Answered:
    """Give none; see `TaskResources.deny`."""
    said = "stopped" if stop else "denied"
    return _answered(door, task, said, lambda found: found.deny(reason, stop=stop))


def top(door: Door) -> documents_keep.Top:
    """What the live sandboxes use; see `monitor`."""
    found = monitor.watched(door.keep)
    budget = admission.budget(door.keep, limits.load(door.keep.path).budget)
    with door.keep.projections.reading() as state:
        promised = sum(admission.promised(door.keep, state).values())
    return documents_keep.top(found, promised, budget)


def caches(door: Door) -> list[documents_keep.Cache]:
    """The caches that tasks share; see `CacheStore.listed`."""
    return [documents_keep.cache(each) for each in door.keep.caches.listed()]


def prune_caches(door: Door, *, name: str | None = None, everything: bool = False) -> list[Pruned]:
    """Make caches smaller; see `CacheStore.prune`."""
    return list(door.keep.caches.prune(name, everything=everything))


def network_policy(
    door: Door,
    *,
    task: str,
    mode: str | None = None,
    allow: Sequence[str] = (),
    private: Sequence[str] = (),
    services: Sequence[str] = (),
    token: int | None = None,
) -> documents_keep.Network:
    """What a task's sandbox may reach, or is to; see `TaskNetwork`."""
    found = door.keep.network(task, token)
    if mode is not None or allow or private or services:
        wanted = mode or ("allow" if allow or private else "services")
        found.set(wanted, allow=allow, private=private, services=services)
    policy, traffic = found.policy(), found.traffic()
    return documents_keep.Network(
        network=policy.mode,
        allow=[show(each) for each in policy.allow if not each.private],
        private=[show(each) for each in policy.allow if each.private],
        services=[service.show(each) for each in policy.services],
        offers=found.offers(),
        allowed=traffic.allowed,
        denied=traffic.denied,
        sent_bytes=traffic.sent,
        received_bytes=traffic.received,
    )


def offer_ports(door: Door, *, task: str, ports: Sequence[int] = (), token: int | None = None) -> documents_keep.Offers:
    """Offer ports of a sandbox to other tasks; see `TaskNetwork.offer`."""
    found = door.keep.network(task, token)
    found.offer(ports)
    return documents_keep.Offers(found.offers())


def isolation_check(door: Door, *, task: str | None = None) -> Isolation:
    """Try every way out of a sandbox; see `isolation`."""
    door.progress("trying every way out of a sandbox")
    return isolation.check(door.keep, None if task is None else door.keep.task(task))


def _answered(door: Door, task: str, said: str, act: Callable[[TaskResources], Extension]) -> documents_keep.Answered:
    found = door.keep.resources(task)
    extension = act(found)
    return documents_keep.Answered(
        task=found.id,
        extension=extension.id,
        answer=said,
        checkpoint=extension.checkpoint,
        used=extension.used_bytes,
        wanted=extension.wanted_bytes,
        memory=found.limits.memory_bytes,
    )
