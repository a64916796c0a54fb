"""What a task's sandbox may reach, and what it has reached: the door to the network policy of one task."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Service
from sandkeep.projections import NetworkMode, NetworkPolicy, Traffic, forks, network, registry
from sandkeep.sandboxes import decider, egress, settings, sidecar, view
from sandkeep.sandboxes.network_policy import policy_event, policy_events
from sandkeep.sandboxes.service import check_ports, services_event

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


def check_policy(
    keep: Keep, mode: str, allow: Iterable[str] = (), private: Iterable[str] = (), services: Iterable[str] = ()
) -> NetworkPolicy:
    """The policy that is asked for, as it may be set.

    Raises `BadInput`, `LimitReached`, `PolicyDenied`, `KeepFormat`, what finding the task of a service does, and
    `NetworkUnavailable` for what a sidecar cannot serve, where that is the way out.
    """
    grants = settings.load(keep.path).network
    event = policy_event(mode, allow, private, grants)
    more = services_event(event, services, grants)
    found = () if more is None else tuple(_identified(keep, each) for each in more.services)
    policy = NetworkPolicy(event.mode, event.allow, found)
    if event.mode != NetworkMode.NONE and sidecar.chosen(keep):
        sidecar.check(policy)
    return policy


def _identified(keep: Keep, service: Service) -> Service:
    if not service.task:
        return service
    with keep.projections.reading() as state:
        return msgspec.structs.replace(service, task=view.identified(state, service.task))


@final
class TaskNetwork:
    """The network of one task. Made by `Keep.network`."""

    def __init__(self, keep: Keep, task: str, fence: int | None) -> None:
        """Use `Keep.network` instead."""
        self._keep = keep
        self._task = task
        self._fence = fence

    def policy(self) -> NetworkPolicy:
        """What the sandbox may reach."""
        with self._keep.projections.reading() as state:
            return network.policy(state, self._task)

    def traffic(self) -> Traffic:
        """How much it has."""
        with self._keep.projections.reading() as state:
            return network.traffic(state, self._task)

    def offers(self) -> tuple[int, ...]:
        """The ports of the sandbox that other tasks may be given as services."""
        with self._keep.projections.reading() as state:
            return network.offers(state, self._task)

    def offer(self, ports: Iterable[int]) -> None:
        """Let other tasks, whose policies name them, connect to these ports of the sandbox and no others.

        Connections to ports that are not offered any more are cut. While any is offered the sandbox is not frozen for
        want of commands; if it was, it goes on. Raises `BadInput`, `LimitReached`, `TaskRefused`, what starting a
        sandbox does, and what a lock raises.
        """
        decide = partial(decider.set_network, events=[ev.PortsOffered(check_ports(ports))])
        with self._keep.working(self._task):
            self._keep.locking.act(self._task, decide, self._fence)
            with self._keep.projections.reading() as state:
                found = registry.find(state, self._task)
        if found is not None and found.idle and self.offers():
            self._keep.task(self._task).start_sandbox()

    def set(
        self, mode: str, *, allow: Iterable[str] = (), private: Iterable[str] = (), services: Iterable[str] = ()
    ) -> None:
        """Let the sandbox reach nothing (`none`), services only (`services`), what is listed (`allow`), or all of the
        public internet (`open`).

        The own workspaces that agents have in the task follow. It holds from now on, for what runs already too:
        connections that it does not allow are cut. `allow` lists HOST or HOST:PORT, *.HOST for all names below;
        `private` lists HOST:PORT that the public internet does not reach, which the keep's settings have to grant, as
        they have to grant `open`. `services` lists NAME=task/TASK:PORT, which that task has to `offer`, and
        NAME=container/CONTAINER:PORT, which the settings have to grant; with any policy but `none`.

        Raises `BadInput`, `LimitReached`, `PolicyDenied`, `TaskNotFound`, `NetworkUnavailable`, `TaskRefused`, and what
        a lock raises.
        """
        policy = check_policy(self._keep, mode, allow, private, services)
        events = policy_events(policy) or [ev.NetworkPolicySet(NetworkMode.NONE, ())]
        decide = partial(decider.set_network, events=events)
        with self._keep.working(self._task):
            self._keep.locking.act(self._task, decide, self._fence)
            self._open_way(self._task)
        with self._keep.projections.reading() as state:
            own = [fork.task for fork in forks.unmerged(state, self._task) if registry.find(state, fork.task)]
        for task in own:
            with self._keep.working(task):
                self._keep.decide(task, decide)
                self._open_way(task)

    def _open_way(self, task: str) -> None:
        with self._keep.projections.reading() as state:
            found = registry.find(state, task)
            closed = network.policy(state, task).mode == NetworkMode.NONE
        if found is None or found.container is None:
            return
        egress.prepare(self._keep, task)
        if closed:
            egress.close_way(self._keep, task)
        elif self._keep.engine.status(found.container) == "running":
            egress.open_way(self._keep, task, found.container)
