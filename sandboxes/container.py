"""How a sandbox's container is made: its form, what it sees of the host, what it may do, and its labels.

Least first: no network, no capability that its form does not need, no new privileges, a read-only root, the engine's
default seccomp profile, and nothing of what its image declares (`declared`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import docker.types
import msgspec

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes import caches, declared, workspace
from sandkeep.sandboxes.engine_use import ulimits
from sandkeep.sandboxes.errors import EngineFailed
from sandkeep.sandboxes.guest import forwarder

KEEP, TASK, INTENT, FORM = "sandkeep.keep", "sandkeep.task", "sandkeep.intent", "sandkeep.form"
BESIDE = "sandkeep.beside"
"""The labels of our containers. The last is on those that are no sandboxes, and names the one that they belong to."""

SPOOL = PurePosixPath("/run/sandkeep")
"""Where a sandbox without an agent sees its spool folder. With one, it is a folder that only the agent can enter."""

AGENT, GUEST, SHELL = "agent", "guest", "shell"
"""The forms of a sandbox: our agent is PID 1, run by the image's Python or by one that is lent to it (`interpreter`);
or there is none, see `shell`."""

LENT = PurePosixPath("/run/sandkeep-python")
"""Where a sandbox sees the Python that is lent to it."""

_COMMANDS = {
    AGENT: ["python3"],
    GUEST: [str(LENT / "lib/loader"), "--library-path", str(LENT / "lib"), str(LENT / "bin/python3")],
}

Helpers = Sequence[Sequence[str]]
"""Programs that the agent starts beside itself, and again when they end: their command lines."""

_SHM_BYTES = 64 << 20


class Mounts(msgspec.Struct, frozen=True):
    """What a sandbox sees of the host: workspace and spool to write to; memory, way out and the agent's program to
    read; a Python, if it needs one and there is one to lend; and the caches that its task was given."""

    workspace: Path
    memory: Path
    spool: Path
    egress: Path
    agent: Path
    python: Callable[[], Path | None]
    caches: tuple[caches.Seen, ...] = ()
    writable: bool = False
    """Whether its own file system may be written to."""


def called(labels: Mapping[str, str]) -> str:
    """What a container with these labels is called."""
    return f"sandkeep-{labels.get(TASK, '')}-{labels.get(INTENT, '')}"


def python(form: str) -> list[str]:
    """The command that is Python in a sandbox of this form."""
    return _COMMANDS.get(form, _COMMANDS[AGENT])


def options(
    form: str, image: dict[str, Any], mounts: Mounts, limits: Limits, labels: Mapping[str, str], helpers: Helpers
) -> dict[str, Any]:
    """What the SDK is told of a sandbox's container; `image` is what the engine says of its image.

    Raises `EngineFailed` for a form that cannot be had.
    """
    uid, gid = workspace.owner()
    binds = [
        docker.types.Mount(str(workspace.MOUNT), str(mounts.workspace), type="bind"),
        docker.types.Mount("/memory", str(mounts.memory), type="bind", read_only=True),
        docker.types.Mount(forwarder.FOLDER, str(mounts.egress), type="bind", read_only=True),
        docker.types.Mount("/etc/hosts", str(mounts.egress / "hosts"), type="bind", read_only=True),
        *caches.mounts(mounts.caches),
    ]
    # Files there are memory, which ends with no process: without a bound they would leave none to begin one with.
    tmpfs = {"/tmp": f"size={min(limits.tmp_bytes, limits.memory_bytes // 2)},mode=1777,exec"}
    if form == GUEST:
        lent = mounts.python()
        if lent is None:
            raise EngineFailed("there is no Python to lend to the image; make the base image")
        binds.append(docker.types.Mount(str(LENT), str(lent), type="bind", read_only=True))
    if form != SHELL:
        # The folder in between is what keeps the task from the socket and from others' output.
        tmpfs[str(SPOOL)] = "size=64k,mode=0700"
        folder, program = SPOOL / "spool", SPOOL / "agent"
        binds.append(docker.types.Mount(str(folder), str(mounts.spool), type="bind"))
        binds.append(docker.types.Mount(str(program), str(mounts.agent), type="bind", read_only=True))
        setting = {"uid": uid, "gid": gid, "folder": str(folder), "helpers": helpers}
        entrypoint = [*_COMMANDS[form], "-I", "-S", str(program), msgspec.json.encode(setting).decode()]
    else:
        binds.append(docker.types.Mount(str(SPOOL), str(mounts.spool), type="bind"))
        entrypoint = ["tail", "-f", "/dev/null"]
    tmpfs |= declared.covers(image, binds, tmpfs, limits.tmp_bytes)
    return dict(
        entrypoint=entrypoint,
        command=[],
        init=form == SHELL,
        user=f"{uid}:{gid}" if form == SHELL else "0:0",
        working_dir=str(workspace.MOUNT),
        environment={"HOME": "/tmp", **caches.variables(mounts.caches)},
        cap_drop=["ALL"],
        cap_add=[] if form == SHELL else ["KILL", "SETGID", "SETPCAP", "SETUID"],
        security_opt=["no-new-privileges"],
        network_mode="none",
        dns_opt=["timeout:1", "attempts:1"],
        dns=["127.0.0.1"],  # or a network that it joins would ask the machine's own; see `sidecar`
        read_only=not mounts.writable,
        tmpfs=tmpfs,
        shm_size=min(_SHM_BYTES, limits.memory_bytes // 8),
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes + limits.swap_bytes,
        nano_cpus=limits.nano_cpus,
        pids_limit=limits.pids,
        ulimits=ulimits(limits),
        log_config=docker.types.LogConfig(type="none"),
        mounts=binds,
        labels={**labels, FORM: form},
        hostname="sandbox",
        name=called(labels),
        # The proxies of the user's Docker configuration may hold a password.
        use_config_proxy=False,
        **declared.SETTLED,
    )
