"""The way out by a sidecar: squid in a container beside the sandbox, for engines that a socket cannot be shared with.

    command  ──▶  squid (in the sidecar, on the network that the two share)  ──▶  server

The network is the sandbox's alone: internal, of 16 addresses, and the engine's machine has none in it
(`inhibit_ipv4`), so that there is no way to that. The sandbox joins it when its policy first allows hosts and leaves it
when that allows none any more; another policy is another sidecar. Both carry the keep's labels: who ends the sandbox
ends them, or the steward does. What squid tells of connections is read through the engine, and recorded when they
have ended, from where it was read to (`run/egress/<task>.sidecar`); after a crash in between some may be told twice.

Whoever opens or closes it is `working` on the task. Errors: `NetworkUnavailable`, and those of images and the engine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import docker.errors
import docker.types
import msgspec
from docker.models.containers import Container

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.projections import NetworkPolicy, StateView, TaskState, network, registry
from sandkeep.sandboxes import agent, engine_use, intent, settings, squid
from sandkeep.sandboxes.container import BESIDE, INTENT, KEEP, TASK, called
from sandkeep.sandboxes.engine import Found
from sandkeep.sandboxes.errors import EngineFailed, KeepFormat, NetworkUnavailable
from sandkeep.sandboxes.settings import NetworkGrants
from sandkeep.sandboxes.squid import Seen

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

ACTOR = "egress-proxy"
"""Who acts in what is recorded of connections."""

MOST_EVENTS, WINDOW_SECONDS = 60, 60.0
"""So many connections of a task are recorded one by one in so long; those beyond are counted."""

_FILE, _LOCK = ".sidecar", ".sidecar-lock"
_SETTLE_SECONDS, _STOP_SECONDS = 20.0, 5
_RANGE = ipaddress.IPv4Network("198.18.0.0/15")  # for measurements (RFC 2544): no network that is in use has it
_PREFIX, _TRIES = 28, 16
_MEMORY, _PIDS, _FILES = 128 << 20, 32, 4096
_MOST_HOSTS = 10
_LOG = {"max-size": "4m", "max-file": "1"}


class Sidecar(msgspec.Struct, frozen=True):
    """A sidecar: its container and network, where it serves, for which sandbox and policy; how far its log is told."""

    container: str
    network: str
    address: str
    sandbox: str
    policy: NetworkPolicy
    told: str = ""
    window: float = 0.0
    counted: int = 0


def chosen(keep: Keep) -> bool:
    """Whether all sandboxes of the keep have sidecars, by its settings or because its engine is far away."""
    return _grants(keep).sidecar or not keep.engine.is_local


def needed(keep: Keep, task: str, sandbox: str) -> bool:
    """Whether a sandbox has to have one: also if it shares no socket, as that of its agent shows. One that is only too
    busy to answer can be connected to."""
    if chosen(keep):
        return True
    if not keep.engine.relays:
        return False
    connection = agent.connect(keep.path / "run" / "spool" / task, sandbox)
    if connection is None:
        return True
    connection.sock.close()
    return False


def check(policy: NetworkPolicy) -> None:
    """Refuse a policy that a sidecar cannot serve, with `NetworkUnavailable`."""
    if policy.services or any(each.private for each in policy.allow):
        raise NetworkUnavailable(
            "services and private hosts need a socket of this machine, which the engine's containers cannot share;"
            " use 'allow' or 'open' alone"
        )


def find(folder: Path) -> Sidecar | None:
    """The sidecar of the task whose way out has this folder, if it has one."""
    try:
        return msgspec.json.decode(_beside(folder, _FILE).read_bytes(), type=Sidecar)
    except (FileNotFoundError, ValueError):
        return None


def open_way(keep: Keep, task: str, folder: Path, sandbox: str) -> str:
    """See that a sidecar serves the sandbox with what its task's policy allows; returns its address."""
    with keep.projections.reading() as state:
        policy = network.policy(state, task)
    check(policy)
    known = find(folder)
    fits = known is not None and (known.sandbox, known.policy) == (sandbox, policy)
    if known is not None and fits and keep.engine.status(known.container) == "running":
        return known.address
    image_id = keep.images.resolve("squid")[1]
    close_way(keep, task, folder)
    made = _start(keep, task, image_id, policy, sandbox)
    with intent.exclusive(_beside(folder, _LOCK)):
        _write(folder, made)
    _join(keep, made)
    return made.address


def close_way(keep: Keep, task: str, folder: Path) -> None:
    """End the sidecar of a task, if it has one, with what it has told on record; its sandbox stays, without network."""
    known = find(folder)
    if known is None:
        return
    with keep.engine.connected() as client, contextlib.suppress(docker.errors.NotFound):
        client.api.stop(known.container, timeout=_STOP_SECONDS)
    tell(keep, task, folder)
    with keep.engine.connected() as client:
        _leave(client, known)
        with contextlib.suppress(docker.errors.NotFound):
            client.api.remove_container(known.container, force=True, v=True)
        _remove_network(client, known.network)
    with intent.exclusive(_beside(folder, _LOCK)):
        _beside(folder, _FILE).unlink(missing_ok=True)


def tell(keep: Keep, task: str, folder: Path) -> None:
    """Record what the sidecar of a task has told since this was last called."""
    if find(folder) is None:
        return
    with intent.exclusive(_beside(folder, _LOCK)):
        known = find(folder)
        if known is None:
            return
        told, seen = _read(keep, known)
        if not seen:
            return
        if time.time() - known.window > WINDOW_SECONDS:
            known = msgspec.structs.replace(known, window=time.time(), counted=0)
        alone = max(MOST_EVENTS - known.counted, 0)
        found = _events(keep, known.policy, seen, alone)
        keep.log.decide(registry.STREAM + task, partial(_unless_cleaned, task=task, events=found), actor=ACTOR)
        _write(folder, msgspec.structs.replace(known, told=told, counted=known.counted + len(seen)))


def forget(folder: Path) -> None:
    """Remove the files that are about the sidecar of a task that is cleaned up."""
    for name in (_FILE, _LOCK):
        _beside(folder, name).unlink(missing_ok=True)


def sweep(keep: Keep, sidecars: Iterable[Found], folder: Callable[[str], Path]) -> list[str]:
    """Remove those of the keep's `sidecars`, and those of their networks, that no sandbox uses any more; tells so, a
    line each. What somebody is at work on is left alone. `folder` is that of a task's way out."""
    done = []
    for each in sidecars:
        with keep.attempting(each.task) as mine:
            if mine and not _is_used(keep, each.task, folder(each.task), each.container):
                tell(keep, each.task, folder(each.task))
                keep.engine.remove(each.container)
                done.append(f"task {each.task}: removed the orphaned sidecar {each.container[:12]}")
    with keep.engine.connected() as client:
        networks = client.api.networks(filters={"label": f"{KEEP}={keep.id}"})
    for found in networks:
        task, number = found["Labels"].get(TASK, ""), str(found["Id"])
        with keep.attempting(task) as mine, keep.engine.connected() as client:
            if mine and not _is_used(keep, task, folder(task), number):
                _remove_network(client, number)
                done.append(f"task {task}: removed the orphaned network {number[:12]}")
    return done


def _is_used(keep: Keep, task: str, folder: Path, number: str) -> bool:
    """Whether this container or network is that of the sidecar of the task's sandbox."""
    known = find(folder)
    with keep.projections.reading() as state:
        found = registry.find(state, task)
    if known is None or found is None:
        return False
    return found.container == known.sandbox and number in (known.container, known.network)


def _start(keep: Keep, task: str, image_id: str, policy: NetworkPolicy, sandbox: str) -> Sidecar:
    configuration = squid.configuration(policy)
    # Nobody holds this intent: whether it is an orphan, the sandbox beside it decides.
    labels = {KEEP: keep.id, TASK: task, INTENT: secrets.token_hex(8), BESIDE: sandbox}
    name = called(labels)
    with keep.engine.connected() as client:
        made, address = _network(client, name, labels)
        try:
            container = engine_use.create(
                client,
                keep.engine.facts,
                "",
                image_id,
                entrypoint=squid.COMMAND,
                command=[],
                environment={"SQUID": configuration},
                user="65534:65534",
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                read_only=True,
                tmpfs={"/tmp": "size=8m"},
                mem_limit=_MEMORY,
                memswap_limit=_MEMORY,
                pids_limit=_PIDS,
                sysctls={"net.ipv4.ip_forward": "0"},  # it stands in two networks
                ulimits=[docker.types.Ulimit(name="nofile", soft=_FILES, hard=_FILES)],
                log_config=docker.types.LogConfig(type="json-file", config=_LOG),
                labels=labels,
                name=name,
                use_config_proxy=False,
            )
            try:
                client.api.connect_container_to_network(str(container.id), made, ipv4_address=address)
                container.start()
                _await_serving(container)
            except BaseException:
                container.remove(force=True, v=True)
                raise
        except BaseException:
            _remove_network(client, made)
            raise
    return Sidecar(str(container.id), made, address, sandbox, policy)


def _network(client: docker.DockerClient, name: str, labels: dict[str, str]) -> tuple[str, str]:
    """A new network, and the address in it that a sidecar has."""
    for number in range(1, _TRIES + 1):
        place = secrets.randbelow(1 << (_PREFIX - _RANGE.prefixlen)) << (32 - _PREFIX)
        subnet = ipaddress.IPv4Network((int(_RANGE.network_address) + place, _PREFIX))
        pool = docker.types.IPAMPool(subnet=str(subnet))
        try:
            made = client.api.create_network(
                name,
                driver="bridge",
                internal=True,
                options={"com.docker.network.bridge.inhibit_ipv4": "true"},
                ipam=docker.types.IPAMConfig(pool_configs=[pool]),
                labels=labels,
            )
            return str(made["Id"]), str(subnet[2])
        except docker.errors.APIError as error:
            if number == _TRIES or "overlap" not in str(error.explanation).lower():
                raise
    raise AssertionError("the last try returns or raises")


def _await_serving(container: Container) -> None:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while squid.SERVING not in (said := container.logs(stdout=False, tail=100)):
        container.reload()
        if container.status not in ("created", "running") or time.monotonic() > deadline:
            words = said.decode("ascii", "replace").strip().splitlines()[-1:]
            raise NetworkUnavailable(f"the sidecar does not come to serve ({' '.join(words)[:200]}); try again")
        time.sleep(0.02)


def _join(keep: Keep, made: Sidecar) -> None:
    with keep.engine.connected() as client:
        with contextlib.suppress(docker.errors.APIError):  # it has left that already
            client.api.disconnect_container_from_network(made.sandbox, "none")
        client.api.connect_container_to_network(made.sandbox, made.network)


def _leave(client: docker.DockerClient, known: Sidecar) -> None:
    with contextlib.suppress(docker.errors.APIError):  # it is gone, or was not in it
        client.api.disconnect_container_from_network(known.sandbox, known.network, force=True)
        client.api.connect_container_to_network(known.sandbox, "none")


def _remove_network(client: docker.DockerClient, network: str) -> None:
    with contextlib.suppress(docker.errors.NotFound):
        for container in client.api.inspect_network(network)["Containers"]:
            client.api.disconnect_container_from_network(container, network, force=True)
        client.api.remove_network(network)


def _write(folder: Path, known: Sidecar) -> None:
    temporary = _beside(folder, f"{_FILE}-new")
    temporary.write_bytes(msgspec.json.encode(known))
    temporary.rename(_beside(folder, _FILE))


def _beside(folder: Path, name: str) -> Path:
    """A file of ours, where the sandbox does not see it: what it can open, it can lock."""
    return folder.with_name(folder.name + name)


def _read(keep: Keep, known: Sidecar) -> tuple[str, list[Seen]]:
    """What the log has behind `known.told`, and the time of its last line, as the engine writes it."""
    since = int(datetime.fromisoformat(f"{known.told[:19]}+00:00").timestamp()) if known.told else None
    try:
        with keep.engine.connected() as client:
            said = client.api.logs(known.container, stdout=True, stderr=False, timestamps=True, since=since)
    except EngineFailed:
        return known.told, []  # it is gone, and its log with it
    told, seen = known.told, []
    for line in said.splitlines():
        moment, _, rest = line.partition(b" ")
        if (when := moment.decode("ascii", "replace")) > known.told:
            told = max(told, when)
            if (found := squid.parse(rest)) is not None:
                seen.append(found)
    return told, seen


def _events(keep: Keep, policy: NetworkPolicy, seen: list[Seen], alone: int) -> list[Event]:
    """The events of connections, of which so many are recorded one by one."""
    grants = _grants(keep)
    found = [squid.events(each, policy, grants, secrets.token_hex(6)) for each in seen]
    done = list(itertools.chain.from_iterable(found[:alone]))
    if more := seen[alone:]:
        allowed = sum(len(each) > 1 for each in found[alone:])
        hosts = Counter(f"{each.host}:{each.port}" for each in more).most_common(_MOST_HOSTS)
        sizes = sum(each.sent for each in more), sum(each.received for each in more)
        names = tuple(host for host, _ in hosts)
        done.append(
            ev.ConnectionsSummarised(
                allowed, len(more) - allowed, *sizes, names, sum(each.duration_ns for each in more)
            )
        )
    return done


def _grants(keep: Keep) -> NetworkGrants:
    """What the keep grants; nothing, while that cannot be read."""
    try:
        return settings.load(keep.path).network
    except KeepFormat:
        return NetworkGrants()


def _unless_cleaned(state: StateView, *, task: str, events: list[Event]) -> list[Event]:
    found = registry.find(state, task)
    return [] if found is None or found.state is TaskState.CLEANED else events
