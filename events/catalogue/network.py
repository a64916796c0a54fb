"""The events of what a sandbox may reach, and of what it reached for."""

from __future__ import annotations

import msgspec

from sandkeep.events.schema import Event, event


class Destination(msgspec.Struct, frozen=True):
    """Where a sandbox may connect to: `host` is a name, `*.` and a name, or an address, in its normal form.

    With `private` it may lie where the public internet does not reach, which the keep's settings have to grant.
    """

    host: str
    ports: tuple[int, ...]
    private: bool = False


class Service(msgspec.Struct, frozen=True):
    """What a sandbox sees as `name`, at `port`: that port of the sandbox of `task`, or of a `container`."""

    name: str
    port: int
    task: str = ""
    container: str = ""


@event(version=1)
class NetworkPolicySet(Event, frozen=True):
    """From now on the task's sandbox may reach what `mode` and `allow` say, and no services."""

    mode: str
    allow: tuple[Destination, ...]


@event(version=1)
class ServicesSet(Event, frozen=True):
    """From now on the task's sandbox may also reach these services. Stands right behind `NetworkPolicySet`."""

    services: tuple[Service, ...]


@event(version=1)
class PortsOffered(Event, frozen=True):
    """From now on other tasks, whose policies say so, may connect to these ports of the task's sandbox only."""

    ports: tuple[int, ...]


@event(version=1)
class ConnectionAllowed(Event, frozen=True):
    """A connection that the sandbox asked for is about to be let through to `address`, one that `host` stands for.

    If `host` is a service, it is `task/` and the task's id, or `container/` and the container's.
    """

    connection: str
    host: str
    port: int
    address: str


@event(version=1)
class ConnectionClosed(Event, frozen=True):
    """An allowed connection has ended for `reason`, after so many bytes to and from its destination."""

    connection: str
    host: str
    port: int
    sent: int
    received: int
    duration_ns: int
    reason: str


@event(version=1)
class ConnectionDenied(Event, frozen=True):
    """A connection that the sandbox asked for was not let through. Host and port are empty and 0 if it named none."""

    host: str
    port: int
    reason: str


@event(version=1)
class ConnectionsSummarised(Event, frozen=True):
    """So many connections beyond those that are recorded one by one were asked for in `duration_ns`.

    `hosts` names some that they were for; bytes are of those that have ended.
    """

    allowed: int
    denied: int
    sent: int
    received: int
    hosts: tuple[str, ...]
    duration_ns: int
