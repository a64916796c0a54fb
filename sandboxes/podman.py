"""What podman does otherwise than Docker behind the API that both have, put right.

Measured on podman 4.3; the contract tests (tests/sandboxes/contract) hold it and Docker to the same.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker.types

from sandkeep.events.catalogue import Limits

UNTOLD = 255
"""The exit status of what has ended that podman tells of no more."""

_MOST = 1 << 20
"""What podman gives each process of open files and processes, be it allowed to or not."""

_PERIOD_US = 100_000


def adapt(options: dict[str, Any]) -> None:
    """Change the options of a container that is to be made."""
    options["ulimits"] = ulimits(options.get("ulimits") or ())
    # A read-only root does not take this folder from a container of podman's, which makes it a tmpfs of its own.
    options["tmpfs"] = {"/var/tmp": "ro,size=4k,mode=0755", **(options.get("tmpfs") or {})}


def ulimits(wanted: Sequence[docker.types.Ulimit]) -> list[docker.types.Ulimit]:
    """With those that podman would raise by itself as far as this machine lets it: it fails where they may not be."""
    found = {each.name: each for each in wanted}
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    for name, kind, most in (
        ("nofile", resource.RLIMIT_NOFILE, _MOST),
        ("nproc", resource.RLIMIT_NPROC, min(_MOST, pid_max)),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(hard, most)
        found.setdefault(name, docker.types.Ulimit(name=name, soft=allowed, hard=allowed))
    return list(found.values())


def change(container: str, limits: Limits) -> tuple[str, dict[str, Any]]:
    """How to ask for other limits of a container: path and body. Docker's call for that is not there; podman's own is,
    and what it sets is forgotten when the container is started again."""
    body = {
        "memory": {"limit": limits.memory_bytes, "swap": limits.memory_bytes + limits.swap_bytes},
        "cpu": {"quota": limits.nano_cpus * _PERIOD_US // 10**9, "period": _PERIOD_US},
        "pids": {"limit": limits.pids},
    }
    return f"/v4.0.0/libpod/containers/{container}/update", body


def has_ended(found: Mapping[str, Any]) -> bool:
    """Whether what an exec started has ended, though podman, which nobody tells, says that it runs."""
    return bool(found.get("Pid")) and not Path(f"/proc/{found['Pid']}").exists()
