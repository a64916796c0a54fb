"""What a Docker engine, or podman behind the same API, says of itself and its machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
import msgspec

DOCKER, PODMAN = "Docker", "podman"


class Facts(msgspec.Struct, frozen=True):
    """What an engine is, and what its host can do. `security` names what it confines containers with, `seccomp` the
    profile of system calls, and `runtimes` what can run a container, of which `runtime` does unless another is named.
    `identity` is what tells it from other engines.
    """

    version: str
    api: str
    local: bool
    cgroup: str
    storage: str
    cpus: int
    memory_bytes: int
    runtimes: tuple[str, ...]
    security: tuple[str, ...]
    rootless: bool
    live_restore: bool
    limits_memory: bool
    limits_pids: bool
    name: str = DOCKER
    driver: str = "cgroupfs"
    seccomp: str = "default"
    desktop: bool = False
    runtime: str = "runc"
    identity: str = ""

    @property
    def podman(self) -> bool:
        """Whether it is podman's Docker API."""
        return self.name == PODMAN


def ask(client: docker.DockerClient) -> Facts:
    """What the engine says of itself."""
    info, version = client.info(), client.version()
    options = [dict(part.partition("=")[::2] for part in each.split(",")) for each in info["SecurityOptions"] or ()]
    security = tuple(option.get("name", "") for option in options)
    podman = any(each.get("Name") == "Podman Engine" for each in version.get("Components") or ())
    rootless = "rootless" in security or bool(info.get("Rootless"))
    cgroup = str(info.get("CgroupVersion", "1"))
    local = str(client.api.base_url).startswith("http+docker://")
    # Without root, podman leaves limits away in control groups of version 1, and yet says that it has them.
    limits = not (podman and rootless and cgroup == "1")
    return Facts(
        version=str(version["Version"]),
        api=str(version["ApiVersion"]),
        local=local,
        cgroup=cgroup,
        storage=str(info["Driver"]),
        cpus=int(info["NCPU"]),
        memory_bytes=int(info["MemTotal"]),
        runtimes=_runtimes(info.get("Runtimes") or {}, podman and local),
        security=security,
        rootless=rootless,
        # podman has no daemon that its containers could end with.
        live_restore=podman or bool(info.get("LiveRestoreEnabled")),
        limits_memory=limits and bool(info.get("MemoryLimit")),
        limits_pids=limits and bool(info.get("PidsLimit", True)),
        name=PODMAN if podman else DOCKER,
        driver=str(info.get("CgroupDriver", "")),
        seccomp=next((option.get("profile", "default") for option in options if option.get("name") == "seccomp"), ""),
        desktop=str(info.get("OperatingSystem", "")) == "Docker Desktop",
        runtime=str(info.get("DefaultRuntime", "")),
        # podman says another id each time.
        identity=str(info["DockerRootDir"] if podman else info.get("ID", "")),
    )


def _runtimes(found: Mapping[str, Any], lists_all: bool) -> tuple[str, ...]:
    """The runtimes there are; podman lists every one that it knows, with the path where it would be."""
    return tuple(
        name for name, runtime in sorted(found.items()) if not lists_all or Path(runtime.get("path", "")).exists()
    )
