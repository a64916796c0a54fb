"""What a task's sandbox may reach, and what it has reached: the door to the network policy of one task."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, final

from sandkeep.events import catalogue as ev
from sandkeep.projections import NetworkMode, NetworkPolicy, Traffic, forks, network, registry
from sandkeep.sandboxes import decider, egress, settings
from sandkeep.sandboxes.errors import NetworkUnavailable
from sandkeep.sandboxes.network_policy import policy_event

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


def check_policy(keep: Keep, mode: str, allow: Iterable[str], private: Iterable[str]) -> ev.NetworkPolicySet | None:
    """The event that sets a policy; None for that which a task begins with, to reach nothing.

    Raises `BadInput`, `LimitReached`, `PolicyDenied`, `KeepFormat`, and `NetworkUnavailable` if the engine is remote.
    """
    event = policy_event(mode, allow, private, settings.load(keep.path).network)
    if event.mode == NetworkMode.NONE:
        return None
    if not keep.engine.is_local:
        raise NetworkUnavailable(
            "the Docker engine is on another machine, which the way out does not lead to; use the policy 'none'"
        )
    return event


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

    def set(self, mode: str, *, allow: Iterable[str] = (), private: Iterable[str] = ()) -> None:
        """Let the sandbox reach nothing (`none`), what is listed (`allow`), or all of the public internet (`open`).

        The own workspaces that agents have in the task follow. It holds from now on, for what runs already too:
        connections that it does not allow are cut. `allow` lists HOST or HOST:PORT, *.HOST for all names below;
        `private` lists HOST:PORT that the public internet does not reach, which the keep's settings have to grant, as
        they have to grant `open`.

        Raises `BadInput`, `LimitReached`, `PolicyDenied`, `NetworkUnavailable`, `TaskRefused`, and what a lock raises.
        """
        event = check_policy(self._keep, mode, allow, private) or ev.NetworkPolicySet(NetworkMode.NONE, ())
        decide = partial(decider.set_network, event=event)
        with self._keep.working(self._task):
            self._keep.locking.act(self._task, decide, self._fence)
            self._open_way(self._task, event)
        with self._keep.projections.reading() as state:
            own = [fork.task for fork in forks.unmerged(state, self._task) if registry.find(state, fork.task)]
        for task in own:
            with self._keep.working(task):
                self._keep.decide(task, decide)
                self._open_way(task, event)

    def _open_way(self, task: str, event: ev.NetworkPolicySet) -> None:
        with self._keep.projections.reading() as state:
            found = registry.find(state, task)
        container = None if found is None else found.container
        if event.mode == NetworkMode.NONE or container is None:
            return
        if self._keep.engine.status(container) == "running":
            egress.open_way(self._keep, task, container)
