"""Holding a sandbox still for some milliseconds, by the kernel's freezer: the engine's pause takes fifty.

The engine does not know of it. So a file `run/still/<task>`, made first, says that it is held; whoever finds one
while he is `Keep.working` on the task lets the sandbox go on, since whoever held it has died.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sandkeep.sandboxes import cgroup

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


@contextlib.contextmanager
def held(keep: Keep, task: str, container: str) -> Iterator[bool | None]:
    """Whether the container's processes stand still, until the end; None if the kernel's files are not ours to write.
    The caller is `working` on the task."""
    group = cgroup.find(container, lambda: keep.engine.init_pid(container))
    if group is None:
        yield None
        return
    note = _notes(keep) / task
    note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    note.write_text(container)
    try:
        stands: bool | None = None
        with contextlib.suppress(OSError):
            stands = cgroup.freeze(group)
        yield stands
    finally:
        cgroup.thaw(group)
        note.unlink(missing_ok=True)


def release(keep: Keep, task: str) -> bool:
    """Let a sandbox go on that one who died held still; whether there was one. The caller is `working` on the task."""
    note = _notes(keep) / task
    try:
        container = note.read_text()
    except FileNotFoundError:
        return False
    # A power failure may leave a note without its content, and nothing that runs.
    if container and keep.engine.status(container) == "running":
        group = cgroup.find(container, lambda: keep.engine.init_pid(container))
        if group is not None:
            cgroup.thaw(group)
    note.unlink(missing_ok=True)
    return True


def abandoned(keep: Keep) -> list[str]:
    """The tasks whose sandboxes are held still, by whoever is at work on them or by one who died."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(each.name for each in _notes(keep).iterdir())
    return []


def _notes(keep: Keep) -> Path:
    return keep.path / "run" / "still"
