"""What a task's sandbox may reach: how that is written, and whether it covers a connection. Pure.

A destination is `HOST` or `HOST:PORT`; without a port, 443 and 80. `*.example.org` stands for every name below
`example.org` and not for that itself; anything else is meant literally, addresses too. What is private, and the mode
`open`, need a grant in the keep's settings, both when the policy is set and whenever it is used.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sandkeep.events import BadInput, Event, LimitReached
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Destination, Service
from sandkeep.projections import NetworkMode, NetworkPolicy
from sandkeep.sandboxes import service
from sandkeep.sandboxes.errors import PolicyDenied
from sandkeep.sandboxes.host import NotAHost, host, port_number
from sandkeep.sandboxes.settings import NetworkGrants

DEFAULT_PORTS = (443, 80)
MAX_DESTINATIONS = 200

_WILD = "*."


class Ruling(msgspec.Struct, frozen=True):
    """Whether a connection may be made; if not, why; if so, whether it may go where the public internet does not, or to
    which service."""

    reason: str = ""
    private: bool = False
    listed: bool = False
    service: Service | None = None

    @property
    def allowed(self) -> bool:
        """Whether it may."""
        return not self.reason


def rule(policy: NetworkPolicy, grants: NetworkGrants, name: str, port: int) -> Ruling:
    """Whether a policy lets a sandbox connect to the host `name`, in its normal form, at `port`."""
    if policy.mode not in (NetworkMode.SERVICES, NetworkMode.ALLOW, NetworkMode.OPEN):
        return Ruling("no-network")
    services = [each for each in policy.services if each.name == name]
    if services:
        return _rule_service(services, grants, port)
    found = [each for each in policy.allow if _covers(each, name)]
    if any(each.private and port in each.ports and _granted(each, grants) for each in found):
        return Ruling(private=True, listed=True)
    if policy.mode == NetworkMode.OPEN:
        return Ruling() if grants.open else Ruling("not-granted")
    if any(not each.private and port in each.ports for each in found):
        return Ruling(listed=True)
    return Ruling("port-not-listed" if found else "host-not-listed")


def policy_event(mode: str, allow: Iterable[str], private: Iterable[str], grants: NetworkGrants) -> ev.NetworkPolicySet:
    """The event that sets this policy. Raises `BadInput`, `LimitReached`, and `PolicyDenied` if it needs a grant."""
    if mode not in tuple(NetworkMode):
        raise BadInput(f"{mode[:40]!r} is no network policy; use one of {', '.join(NetworkMode)}")
    if isinstance(allow, str) or isinstance(private, str):
        raise BadInput("destinations are a list of words; for one give [HOST]")
    listed = tuple(dict.fromkeys(destination(each) for each in allow))
    beyond = tuple(dict.fromkeys(destination(each, private=True) for each in private))
    if mode == NetworkMode.ALLOW and not (listed or beyond):
        raise BadInput("the policy 'allow' needs a list of what is allowed; name a HOST[:PORT]")
    if (mode != NetworkMode.ALLOW and listed) or (mode in (NetworkMode.NONE, NetworkMode.SERVICES) and beyond):
        raise BadInput(f"the policy {str(mode)!r} takes no such list; use 'allow', or leave the list out")
    if len(listed) + len(beyond) > MAX_DESTINATIONS:
        raise LimitReached(
            f"a policy lists {MAX_DESTINATIONS} destinations at most; use patterns such as *.example.org"
        )
    if mode == NetworkMode.OPEN and not grants.open:
        raise PolicyDenied("the keep does not grant an open network; write 'open = true' under [network] in keep.toml")
    for each in beyond:
        if not _granted(each, grants):
            raise PolicyDenied(
                f"the keep does not grant {show(each)} as private; list it under [network] private in keep.toml"
            )
    return ev.NetworkPolicySet(str(mode), (*listed, *beyond))


def policy_events(policy: NetworkPolicy) -> list[Event]:
    """The events that give this policy to a task that begins; none for that which it begins with, to reach nothing."""
    if policy.mode == NetworkMode.NONE:
        return []
    set_: list[Event] = [ev.NetworkPolicySet(policy.mode, policy.allow)]
    return [*set_, ev.ServicesSet(policy.services)] if policy.services else set_


def destination(text: str, *, private: bool = False) -> Destination:
    """What `HOST` or `HOST:PORT` stands for. Raises `BadInput`. What is private is one host, at one port."""
    name, port = _split(text)
    try:
        wild = name.startswith(_WILD)
        found = host(name.removeprefix(_WILD))
    except NotAHost as error:
        raise BadInput(f"{text[:80]!r} names no host: {error}; write it as example.org or *.example.org") from error
    if wild and (private or "." not in found or found.rpartition(".")[2].isdigit() or ":" in found):
        raise BadInput(f"{text[:80]!r} is too wide; name a host, or what is below a name of two parts")
    if private and port is None:
        raise BadInput(f"{text[:80]!r} has no port; what is private is one host at one port, HOST:PORT")
    return Destination(_WILD + found if wild else found, DEFAULT_PORTS if port is None else (port,), private)


def show(found: Destination) -> str:
    """A destination as people write it."""
    name = f"[{found.host}]" if ":" in found.host else found.host
    return name if found.ports == DEFAULT_PORTS else f"{name}:{','.join(map(str, found.ports))}"


def _split(text: str) -> tuple[str, int | None]:
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in name and not name.endswith("]")):
        return text, None  # a bare address of version 6 has no port
    number = port_number(port)
    if number is None:
        raise BadInput(f"{text[:80]!r} has no port from 1 to 65535; write it as HOST:PORT")
    return name, number


def _rule_service(services: list[Service], grants: NetworkGrants, port: int) -> Ruling:
    """Whether a task has to have offered it too is not known here."""
    found = next((each for each in services if each.port == port), None)
    if found is None:
        return Ruling("port-not-listed")
    if found.container and not service.granted(found, grants):
        return Ruling("not-granted")
    return Ruling(service=found)


def _covers(found: Destination, name: str) -> bool:
    if found.host.startswith(_WILD):
        return name.endswith(found.host[1:]) and len(name) >= len(found.host)
    return name == found.host


def _granted(found: Destination, grants: NetworkGrants) -> bool:
    for text in grants.private:
        try:
            if destination(text, private=True) == found:
                return True
        except BadInput:
            continue  # what cannot be read grants nothing
    return False
