"""What each task's sandbox may reach, how much it has, and which ports it offers to others.

A task without a policy may reach nothing. Policy and offers are forgotten when the task has ended, the totals never.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import final

import msgspec

from sandkeep.events import Record
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Destination, Service
from sandkeep.projections.projection import State, StateView
from sandkeep.projections.registry import STREAM


class NetworkMode(enum.StrEnum):
    """What a sandbox may reach: nothing, services only, what is listed, or whatever the public internet does."""

    NONE = "none"
    SERVICES = "services"
    ALLOW = "allow"
    OPEN = "open"


class NetworkPolicy(msgspec.Struct, frozen=True, array_like=True):
    """The mode, and what is listed if it is `allow`; with `open` only what is listed as private counts. Services are
    reached in any mode but `none`."""

    mode: str = NetworkMode.NONE
    allow: tuple[Destination, ...] = ()
    services: tuple[Service, ...] = ()


class Traffic(msgspec.Struct, frozen=True, array_like=True):
    """How many connections were let through and refused, and how many bytes went out and in through them."""

    allowed: int = 0
    denied: int = 0
    sent: int = 0
    received: int = 0


_POLICY, _OFFERS, _TRAFFIC = b"network/policy/", b"network/offers/", b"network/traffic/"
_LARGEST = 2**63 - 1
_encode = msgspec.msgpack.Encoder().encode
_decode_policy = msgspec.msgpack.Decoder(NetworkPolicy).decode
_decode_offers = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_decode_traffic = msgspec.msgpack.Decoder(Traffic).decode


@final
class Networks:
    """The projection. Its keys are `network/policy/<task>`, `network/offers/<task>` and `network/traffic/<task>`."""

    name = "network"
    version = 2

    def apply(self, state: State, record: Record) -> None:
        if record.type not in _TYPES or not record.stream.startswith(STREAM):
            return
        task = record.stream.removeprefix(STREAM)
        match record.event:
            case ev.NetworkPolicySet(mode, allow):
                if mode == NetworkMode.NONE:
                    state.delete(_POLICY + task.encode())
                else:
                    state.put(_POLICY + task.encode(), _encode(NetworkPolicy(mode, allow)))
            case ev.ServicesSet(services):
                known = policy(state, task)
                if known.mode != NetworkMode.NONE:
                    state.put(_POLICY + task.encode(), _encode(msgspec.structs.replace(known, services=services)))
            case ev.PortsOffered(ports):
                if ports:
                    state.put(_OFFERS + task.encode(), _encode(ports))
                else:
                    state.delete(_OFFERS + task.encode())
            case ev.ConnectionAllowed():
                _count(state, task, Traffic(allowed=1))
            case ev.ConnectionDenied():
                _count(state, task, Traffic(denied=1))
            case ev.ConnectionClosed() as closed:
                _count(state, task, Traffic(sent=closed.sent, received=closed.received))
            case ev.ConnectionsSummarised() as many:
                _count(state, task, Traffic(many.allowed, many.denied, many.sent, many.received))
            case ev.TaskCompleted() | ev.TaskFailed() | ev.TaskCleaned():
                state.delete(_POLICY + task.encode())
                state.delete(_OFFERS + task.encode())


_TYPES = frozenset(
    (
        "NetworkPolicySet",
        "ServicesSet",
        "PortsOffered",
        "ConnectionAllowed",
        "ConnectionDenied",
        "ConnectionClosed",
        "ConnectionsSummarised",
        "TaskCompleted",
        "TaskFailed",
        "TaskCleaned",
    )
)


def policy(state: StateView, task: str) -> NetworkPolicy:
    """What the task's sandbox may reach."""
    value = state.get(_POLICY + task.encode())
    return NetworkPolicy() if value is None else _decode_policy(value)


def policies(state: StateView) -> Iterator[tuple[str, NetworkPolicy]]:
    """The tasks that have not ended and whose sandbox may reach anything, with what it may."""
    for key, value in state.scan(_POLICY):
        yield key.removeprefix(_POLICY).decode(), _decode_policy(value)


def offers(state: StateView, task: str) -> tuple[int, ...]:
    """The ports of the task's sandbox that others may connect to."""
    value = state.get(_OFFERS + task.encode())
    return () if value is None else _decode_offers(value)


def traffic(state: StateView, task: str) -> Traffic:
    """The totals of a task."""
    value = state.get(_TRAFFIC + task.encode())
    return Traffic() if value is None else _decode_traffic(value)


def _count(state: State, task: str, more: Traffic) -> None:
    known = traffic(state, task)
    total = Traffic(
        _sum(known.allowed, more.allowed),
        _sum(known.denied, more.denied),
        _sum(known.sent, more.sent),
        _sum(known.received, more.received),
    )
    state.put(_TRAFFIC + task.encode(), _encode(total))


def _sum(known: int, more: int) -> int:
    """A sum that msgpack can hold, whatever the events claim."""
    return min(known + more, _LARGEST)
