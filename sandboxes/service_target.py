"""Where a service is now, found anew for each connection, so that one that was restarted is found again.

Another task's is reached by the agent of its sandbox, which hands over a connection that it has made in there: that
sandbox has no network either. A container's is reached at its address on the engine's networks. What the sandbox that
asks may have said plays no part.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from docker.models.containers import Container

from sandkeep.events import SandkeepError
from sandkeep.events.catalogue import Service
from sandkeep.projections import TaskState, registry
from sandkeep.sandboxes import agent
from sandkeep.sandboxes.agent import Broken, Connection, Refused
from sandkeep.sandboxes.egress_proxy import CONNECT_SECONDS, NotReached
from sandkeep.sandboxes.sandbox import Sandbox

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_SHORTEST_ID = 12


def connect(keep: Keep, service: Service) -> tuple[socket.socket, str]:
    """A connection to a service, and what it is: `task/ID` or `container/ID`. Raises `NotReached`. Blocks."""
    return _to_task(keep, service) if service.task else _to_container(keep, service)


def _to_task(keep: Keep, service: Service) -> tuple[socket.socket, str]:
    with keep.projections.reading() as state:
        found = registry.find(state, service.task)
    if found is None or found.container is None or found.state is not TaskState.ACTIVE or found.idle:
        raise NotReached("not-running")
    connection = agent.greet(Sandbox(keep, service.task).spool, found.container, CONNECT_SECONDS)
    if connection is None:
        raise NotReached("not-running")
    with connection:
        return _dialled(connection, service.port), f"task/{service.task}"


def _dialled(connection: Connection, port: int) -> socket.socket:
    """What listens for itself alone mostly does so at one of the two addresses of the loopback."""
    with contextlib.suppress(Broken, Refused, OSError):
        return connection.dial(port, 4, CONNECT_SECONDS)
    try:
        return connection.dial(port, 6, CONNECT_SECONDS)
    except (Broken, Refused, OSError) as error:
        raise NotReached("unreachable") from error


def _to_container(keep: Keep, service: Service) -> tuple[socket.socket, str]:
    try:
        with keep.engine.connected() as client:
            found = client.containers.get(service.container)
    except SandkeepError as error:
        raise NotReached("not-running") from error
    if not _is_meant(found, service.container) or found.status != "running":
        raise NotReached("not-running")
    for network in found.attrs["NetworkSettings"]["Networks"].values():
        if network["IPAddress"]:
            with contextlib.suppress(OSError):
                return socket.create_connection((network["IPAddress"], service.port), CONNECT_SECONDS), (
                    f"container/{found.id}"
                )
    raise NotReached("unreachable")


def _is_meant(found: Container, name: str) -> bool:
    """Whether it has this name or id: the engine also finds what an id merely begins with."""
    return found.name == name or (len(name) >= _SHORTEST_ID and str(found.id).startswith(name))
