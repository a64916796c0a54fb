"""Services: what a task's sandbox sees under a name of its own, by plain TCP. Pure.

A service is written `NAME=task/TASK:PORT`, for a port that another task offers, or `NAME=container/CONTAINER:PORT`, for
one of a container that somebody runs on the engine, which the keep's settings have to grant. In the sandbox it is
NAME:PORT: the name stands in /etc/hosts for an address of the loopback that no other name has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sandkeep.events import BadInput, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Service
from sandkeep.projections import NetworkMode
from sandkeep.sandboxes.errors import PolicyDenied
from sandkeep.sandboxes.host import port_number
from sandkeep.sandboxes.settings import NetworkGrants

MOST_SERVICES = 32
"""How many a policy may name."""

MOST_OFFERS = 32
"""How many ports a task may offer."""

HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
"""The names that every sandbox has."""

_FORM = re.compile(r"([^=]*)=(task|container)/([^:]*):([^:]*)")
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_TAKEN = frozenset(("localhost", "ip6-localhost", "ip6-loopback"))


def services_event(
    policy: ev.NetworkPolicySet, services: Iterable[str], grants: NetworkGrants
) -> ev.ServicesSet | None:
    """The event that lets a sandbox reach services besides what `policy` says; None if there are none.

    Raises `BadInput`, `LimitReached`, and `PolicyDenied` if one needs a grant.
    """
    if isinstance(services, str):
        raise BadInput("services are a list of words; for one give [NAME=TARGET:PORT]")
    found = tuple(dict.fromkeys(map(service, services)))
    if policy.mode == NetworkMode.SERVICES and not found:
        raise BadInput("the policy 'services' needs a list of them; name a NAME=task/TASK:PORT")
    if policy.mode == NetworkMode.NONE and found:
        raise BadInput("the policy 'none' takes no services; use 'services', 'allow' or 'open'")
    if len(found) > MOST_SERVICES:
        raise LimitReached(f"a policy names {MOST_SERVICES} services at most; leave some out")
    hosts = {each.host for each in policy.allow}
    for each in found:
        if each.name in hosts:
            raise BadInput(f"{each.name!r} is a service and a host that is allowed; give the service another name")
        if any((each.name, each.port) == (other.name, other.port) and each != other for other in found):
            raise BadInput(f"{each.name}:{each.port} is two services; give one of them another name")
        if each.container and not granted(each, grants):
            raise PolicyDenied(
                f"the keep does not grant the container {each.container}:{each.port};"
                " list it under [network] containers in keep.toml"
            )
    return ev.ServicesSet(found) if found else None


def service(text: str) -> Service:
    """What `NAME=task/TASK:PORT` or `NAME=container/CONTAINER:PORT` stands for. Raises `BadInput`."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise BadInput(f"{text[:120]!r} is no service; write it as NAME=task/TASK:PORT or NAME=container/NAME:PORT")
    name, kind, target = form[1], form[2], form[3]
    if not _LABEL.fullmatch(name) or name in _TAKEN:
        raise BadInput(f"{name[:80]!r} is no name for a service; use small letters, digits and hyphens, as in 'db'")
    number = port_number(form[4])
    if number is None:
        raise BadInput(f"{text[:120]!r} has no port from 1 to 65535; write it behind the target, as :5432")
    if kind == "task":
        return Service(name, number, task=target)
    if not _CONTAINER.fullmatch(target):
        raise BadInput(f"{target[:80]!r} is no name of a container; 'docker ps' shows them")
    return Service(name, number, container=target)


def target(found: Service) -> str:
    """What a service is, for the record and for people: `task/TASK` or `container/CONTAINER`."""
    return f"task/{found.task}" if found.task else f"container/{found.container}"


def show(found: Service) -> str:
    """A service as people write it."""
    return f"{found.name}={target(found)}:{found.port}"


def granted(found: Service, grants: NetworkGrants) -> bool:
    """Whether the keep's settings grant the container that a service is."""
    return f"{found.container}:{found.port}" in grants.containers


def check_ports(ports: Iterable[int]) -> tuple[int, ...]:
    """Ports to be offered. Raises `BadInput` and `LimitReached`."""
    found = tuple(dict.fromkeys(ports))
    for each in found:
        if isinstance(each, bool) or not isinstance(each, int) or not 1 <= each <= 65535:
            raise BadInput(f"{str(each)[:20]!r} is no port; use a number from 1 to 65535")
    if len(found) > MOST_OFFERS:
        raise LimitReached(f"a task offers {MOST_OFFERS} ports at most; withdraw some")
    return found


def places(services: Sequence[Service]) -> list[tuple[str, int, str]]:
    """Where a sandbox finds its services: address, port and name of each."""
    names = list(dict.fromkeys(each.name for each in services))
    return [(_address(names.index(each.name)), each.port, each.name) for each in services]


def hosts(services: Sequence[Service]) -> str:
    """The sandbox's /etc/hosts."""
    lines = dict.fromkeys(f"{address}\t{name}\n" for address, _, name in places(services))
    return HOSTS + "".join(lines)


def _address(number: int) -> str:
    return f"127.77.0.{number + 1}"
