"""What an engine is told of a container's limits and of its end, and what it says of its use. Its errors leave as the
SDK raises them."""

from __future__ import annotations

import contextlib

import docker
import docker.errors
import docker.types
import requests
from docker.models.containers import Container

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes.cgroup import Sample

_REMOVAL_SECONDS = 60


def ulimits(limits: Limits) -> list[docker.types.Ulimit]:
    """What a container is started with for each of its processes."""
    # No file alone can take more than all of the workspace may; to their sum only the monitor sees.
    file = max(limits.disk_bytes, limits.tmp_bytes, limits.output_bytes) if limits.disk_bytes else 0
    found = {"nofile": limits.open_files, "fsize": file}
    return [docker.types.Ulimit(name=name, soft=most, hard=most) for name, most in found.items() if most]


def remove(container: Container) -> None:
    """Remove a container with all its processes, or wait until another has who does so already."""
    with contextlib.suppress(docker.errors.NotFound):
        try:
            container.remove(force=True, v=True)
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise
            container.wait(timeout=_REMOVAL_SECONDS, condition="removed")


def update(client: docker.DockerClient, container: str, limits: Limits) -> None:
    """Change the limits of a container, all that can be changed of one that lives, which the SDK cannot."""
    body = {
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes + limits.swap_bytes,
        "NanoCpus": limits.nano_cpus,
        "PidsLimit": limits.pids,
    }
    # The client is a session of requests; what it says beside is not in its API.
    address = f"{client.api.base_url}/v{client.api.api_version}/containers/{container}/update"
    answer = client.api.post(address, json=body)
    try:
        answer.raise_for_status()
    except requests.HTTPError as error:
        docker.errors.create_api_error_from_http_exception(error)


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
