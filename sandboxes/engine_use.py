"""What an engine is asked to do: to make a container, to change its limits, and to tell of their use.

What the SDK raises leaves as it is.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import docker
import docker.errors
import docker.types
import requests
from docker.models.containers import Container

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes import podman
from sandkeep.sandboxes.cgroup import Sample
from sandkeep.sandboxes.engine_errors import is_missing
from sandkeep.sandboxes.engine_facts import Facts
from sandkeep.sandboxes.errors import EngineFailed


def ulimits(limits: Limits) -> list[docker.types.Ulimit]:
    """What a container is started with for each of its processes."""
    # No file alone can take more than all of the workspace may; to their sum only the monitor sees.
    file = max(limits.disk_bytes, limits.tmp_bytes, limits.output_bytes) if limits.disk_bytes else 0
    found = {"nofile": limits.open_files, "fsize": file}
    return [docker.types.Ulimit(name=name, soft=most, hard=most) for name, most in found.items() if most]


def create(client: docker.DockerClient, facts: Facts, runtime: str, image_id: str, **options: Any) -> Container:
    """Make a container, run by the engine's own runtime unless `runtime` names another."""
    if facts.podman:
        podman.adapt(options)
    names = inspect.signature(docker.types.HostConfig.__init__).parameters
    host = {name: options.pop(name) for name in list(options) if name in names}
    config = client.api.create_host_config(**host, runtime=runtime or None)
    if facts.podman and facts.rootless:
        config["UsernsMode"] = "keep-id"  # so that the owner of the workspace is the owner inside, too
    made = client.api.create_container(image_id, host_config=config, **options)
    return client.containers.get(made["Id"])


def update(client: docker.DockerClient, facts: Facts, container: str, limits: Limits) -> None:
    """Change the limits of a container, all that can be changed of one that lives, which the SDK cannot."""
    path, body = (
        f"/v{client.api.api_version}/containers/{container}/update",
        {
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes + limits.swap_bytes,
            "NanoCpus": limits.nano_cpus,
            "PidsLimit": limits.pids,
        },
    )
    if facts.podman:
        path, body = podman.change(container, limits)
    # The client is a session of requests; what it says beside is not in its API.
    answer = client.api.post(client.api.base_url + path, json=body)
    try:
        answer.raise_for_status()
    except requests.HTTPError as error:
        docker.errors.create_api_error_from_http_exception(error)


def find(client: docker.DockerClient, container: str) -> Container | None:
    """A container, if it is there."""
    try:
        return client.containers.get(container)
    except docker.errors.APIError as error:
        if is_missing(error):
            return None
        raise


def remove(container: Container) -> None:
    """Remove a container with all its processes, unless another does."""
    try:
        container.remove(force=True, v=True)
    except docker.errors.APIError as error:
        if not is_missing(error):
            raise


def probe(client: docker.DockerClient, container: str) -> None:
    """See that commands can run in a container, since the engine starts even what ends at once. Raises `EngineFailed`
    if not."""
    with contextlib.suppress(docker.errors.APIError):
        execution = client.api.exec_create(container, ["/bin/sh", "-c", ":"])["Id"]
        client.api.exec_start(execution)
        if client.api.exec_inspect(execution)["ExitCode"] == 0:
            return
    raise EngineFailed("the image cannot run a sandbox, which needs /bin/sh and tail; choose another image")


def sample(client: docker.DockerClient, container: str) -> Sample:
    """What a container uses, which takes a second. Page cache may count as used."""
    found = client.api.stats(container, stream=False)
    memory, cpu = found["memory_stats"], found["cpu_stats"]
    stat = memory.get("stats", {})
    cache = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))
    pids = found["pids_stats"]
    return Sample(
        max(0, memory.get("usage", 0) - cache),
        memory.get("limit", 0),
        pids.get("current", 0),
        pids.get("limit", 0),
        cpu["cpu_usage"]["total_usage"],
        cpu.get("throttling_data", {}).get("throttled_time", 0),
        0,
    )
