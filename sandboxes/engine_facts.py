"""What a Docker engine says of itself and its machine."""

from __future__ import annotations

import docker
import msgspec


class Facts(msgspec.Struct, frozen=True):
    """What an engine is, and what its host can do. `security` names what it confines containers with."""

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


def ask(client: docker.DockerClient) -> Facts:
    """What the engine says of itself."""
    info, version = client.info(), client.version()
    options = [dict(part.partition("=")[::2] for part in each.split(",")) for each in info["SecurityOptions"] or ()]
    security = tuple(option.get("name", "") for option in options)
    return Facts(
        version=str(version["Version"]),
        api=str(version["ApiVersion"]),
        local=str(client.api.base_url).startswith("http+docker://"),
        cgroup=str(info.get("CgroupVersion", "1")),
        storage=str(info["Driver"]),
        cpus=int(info["NCPU"]),
        memory_bytes=int(info["MemTotal"]),
        runtimes=tuple(info.get("Runtimes") or ()),
        security=security,
        rootless="rootless" in security,
        live_restore=bool(info.get("LiveRestoreEnabled")),
        limits_memory=bool(info.get("MemoryLimit")),
        limits_pids=bool(info.get("PidsLimit", True)),
    )
