"""What an image says of how it is to be run, as far as a sandbox has to answer it.

Images come from registries and Dockerfiles that nobody has read. Program, arguments, user, working directory, network,
ports and labels are set by us, and what an image says of them counts for nothing; what it tells those who build upon it
(`ONBUILD`) meets no sandbox. Left are the volumes, for each of which the engine would make a folder on the host that
nobody limits; the health check, which it would run as root again and again; and the signal that ends a container.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from docker.types import Mount

from sandkeep.sandboxes import workspace
from sandkeep.sandboxes.errors import EngineFailed

MOST_VOLUMES = 32
"""How many volumes an image may declare. Each becomes a mount."""

SETTLED: dict[str, Any] = {"healthcheck": {"test": ["NONE"]}, "stop_signal": "SIGTERM"}
"""What a container is made with, as the SDK calls it, whatever its image says."""


def covers(image: dict[str, Any], binds: Iterable[Mount], tmpfs: Iterable[str], size: int) -> dict[str, str]:
    """A file system in memory, of `size` bytes at most and the task's own, for each volume that an image declares, by
    its path.

    Where the sandbox mounts something itself, `binds` and `tmpfs`, that is seen. The memory that the others take is the
    sandbox's, and limited as such; what the image has in these folders is not seen. Raises `EngineFailed` for too many,
    and for such as lie inside of a bind, since the engine would make a folder there, on the host.
    """
    declared = {_normal(path) for path in (image.get("Config") or {}).get("Volumes") or ()}
    if len(declared) > MOST_VOLUMES:
        raise EngineFailed(f"the image declares {len(declared)} volumes, more than {MOST_VOLUMES}; choose another")
    bound = {_normal(bind["Target"]) for bind in binds}
    if inside := sorted(path for path in declared if not bound.isdisjoint(path.parents)):
        raise EngineFailed(
            f"the image declares a volume at {str(inside[0])[:80]!r}, inside of what is the sandbox's own; choose"
            " another image"
        )
    options = "size={},mode=1777,exec,uid={},gid={}".format(size, *workspace.owner())
    left = declared - bound - {_normal(path) for path in tmpfs}
    return {str(path): options for path in sorted(left)}


def _normal(path: str) -> PurePosixPath:
    """An absolute path as the engine reads it."""
    return PurePosixPath(posixpath.normpath("/" + path.lstrip("/")))
