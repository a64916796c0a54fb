"""Whether an engine is fit for sandboxes, by its facts: what it is refused for, and what it lacks.

Each *lack* is said by `doctor`. What makes a sandbox less safe than is promised is also logged, once, by whoever starts
one; and where a sandbox would not work, or a wish of the owner could not be met, none is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from sandkeep.sandboxes.engine_facts import Facts
from sandkeep.sandboxes.errors import EngineUnsupported

OLDEST_API = (1, 41)
"""The API of Docker 20.10, the oldest that this is tested with."""

REFUSED, UNSAFE, GOOD_TO_KNOW = "refused", "unsafe", "good to know"
"""How much a lack matters."""

GVISOR = "runsc"
"""What engines call gVisor's runtime."""


class Lack(msgspec.Struct, frozen=True):
    """What an engine lacks, and what to do about it."""

    what: str
    advice: str
    grade: str


def lacks(facts: Facts, runtime: str = "") -> Iterator[Lack]:
    """Everything that this engine lacks for sandboxes that the runtime `runtime` runs, or else its own."""
    if runtime and facts.podman and runtime != facts.runtime:
        what = f"podman runs containers with {facts.runtime}, and lets no client choose {runtime!r}"
        yield Lack(what, f"name {runtime!r} in its containers.conf, or no runtime in keep.toml", REFUSED)
    elif runtime and runtime not in facts.runtimes:
        what = f"it has no runtime {runtime!r}, which keep.toml names; it has {', '.join(facts.runtimes) or 'none'}"
        yield Lack(what, "add that to its daemon.json, or correct keep.toml", REFUSED)
    for holds, lack in _LACKS:
        if holds(facts):
            yield lack
    if (runtime or facts.runtime) == GVISOR:
        yield _GVISOR


def check(facts: Facts, runtime: str = "") -> set[Lack]:
    """What makes sandboxes of this engine less safe than is promised. Raises `EngineUnsupported` where they would not
    work."""
    found = list(lacks(facts, runtime))
    for lack in found:
        if lack.grade == REFUSED:
            raise EngineUnsupported(f"the engine cannot run sandboxes: {lack.what}; {lack.advice}")
    return {lack for lack in found if lack.grade == UNSAFE}


def check_api(api: str) -> None:
    """Raise `EngineUnsupported` for an engine that speaks an older API than we were tested with."""
    if _api(api) < OLDEST_API:
        raise EngineUnsupported(
            f"the engine speaks version {api[:20]} of the API, which is older than Docker 20.10's; install a newer one"
        )


def _api(api: str) -> tuple[int, ...]:
    return tuple(int(part) for part in api.split(".") if part.isdigit())


_LACKS: tuple[tuple[Callable[[Facts], bool], Lack], ...] = (
    (
        lambda facts: _api(facts.api) < OLDEST_API,
        Lack("it is older than Docker 20.10, with which nothing was tested", "install a newer one", REFUSED),
    ),
    (
        lambda facts: "userns" in facts.security,
        Lack(
            "it maps users (userns-remap), so sandboxes could not write to their workspaces",
            "take userns-remap from the engine's daemon.json",
            REFUSED,
        ),
    ),
    (
        lambda facts: facts.rootless and not facts.podman,
        Lack(
            "it runs without root and maps users, so sandboxes could not write to their workspaces",
            "use an engine that runs as root, or podman, which can leave the owner's id as it is",
            REFUSED,
        ),
    ),
    (
        lambda facts: not facts.local,
        Lack(
            "it runs on another machine, which cannot see the workspaces of this one",
            "set DOCKER_HOST to an engine of this machine",
            UNSAFE,
        ),
    ),
    (
        lambda facts: facts.seccomp in ("", "unconfined"),
        Lack(
            "it has no seccomp, so sandboxes may call all of the kernel",
            "use a kernel and an engine that have it",
            UNSAFE,
        ),
    ),
    (
        lambda facts: not facts.limits_memory,
        Lack(
            "the kernel limits no memory, so one sandbox can exhaust the machine",
            "enable the memory controller of cgroups; podman without root needs version 2",
            UNSAFE,
        ),
    ),
    (
        lambda facts: not facts.limits_pids,
        Lack(
            "the kernel limits no processes, so a fork bomb is not contained",
            "enable the pids controller of cgroups; podman without root needs version 2",
            UNSAFE,
        ),
    ),
    (
        lambda facts: facts.rootless and facts.cgroup == "1",
        Lack(
            "without root and with cgroup v1, no sandbox can be frozen: not when it is idle, and not to be restored",
            "boot with systemd.unified_cgroup_hierarchy=1, or run the engine as root",
            GOOD_TO_KNOW,
        ),
    ),
    (
        lambda facts: facts.rootless and facts.cgroup != "1",
        Lack(
            "it runs without root: limits hold only as far as cgroups are delegated to it",
            "see docs.docker.com/engine/security/rootless",
            GOOD_TO_KNOW,
        ),
    ),
    (
        lambda facts: not facts.live_restore,
        Lack(
            "a restart of the engine ends all sandboxes, and the next commands start new ones",
            'put {"live-restore": true} into its daemon.json to keep them',
            GOOD_TO_KNOW,
        ),
    ),
    (
        lambda facts: facts.podman,
        Lack(
            "podman lets processes make user namespaces, which only our agent forbids: without a base image, whose"
            " Python others are lent, images need Python for that",
            "say 'sandkeep build-image base', or use a seccomp profile that forbids it",
            GOOD_TO_KNOW,
        ),
    ),
    (
        lambda facts: facts.storage == "vfs",
        Lack(
            "it keeps a whole copy of its image for each sandbox (vfs), which costs time and disk",
            "use the storage driver overlay; without root that may need fuse-overlayfs",
            GOOD_TO_KNOW,
        ),
    ),
    (
        lambda facts: facts.desktop,
        Lack(
            "Docker Desktop runs sandboxes in a virtual machine: commands go by way of the engine, which is slower,"
            " hosts are reached by a sidecar and services not at all, and only folders that it shares can be mounted",
            "keep the keep in a shared folder; use an engine on Linux for the rest",
            GOOD_TO_KNOW,
        ),
    ),
)
"""What is said of an engine if it holds."""

_GVISOR = Lack(
    "gVisor (runsc): commands go by way of the engine, which is slower; services are not reached, and hosts by a"
    " sidecar at most, which was not tried; what runs out of memory ends its whole sandbox, and what a command that is"
    " ended had forked twice may go on until then",
    "name another runtime in keep.toml where that matters",
    GOOD_TO_KNOW,
)
