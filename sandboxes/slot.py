"""A slot: a sandbox that was started before there is a task for it (see `pool`), as the file `run/slots/<id>` tells.

The file is there before the slot's folders and its container, and goes when the log has taken the container over or
nothing is left of the slot. Who changes it is `Keep.working` on its id.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sandkeep.events.catalogue import CacheChoice, Limits

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


class Slot(msgspec.Struct, frozen=True):
    """A sandbox that waits for a task: its container, empty while it is made, and what it was started from."""

    image: str
    image_id: str
    limits: Limits
    container: str = ""
    caches: tuple[CacheChoice, ...] = ()
    runtime: str = ""


def find(keep: Keep, name: str) -> Slot | None:
    """The slot with this id, if there is one."""
    try:
        return msgspec.json.decode((_folder(keep) / name).read_bytes(), type=Slot)
    except (FileNotFoundError, ValueError):
        return None


def adopt(
    keep: Keep, name: str, image_id: str, limits: Limits, caches: tuple[CacheChoice, ...], runtime: str
) -> str | None:
    """The container of the slot that became the task `name`, if it runs and is what would be started for it."""
    slot = find(keep, name)
    if slot is None or not slot.container:
        return None
    if (slot.image_id, slot.limits, slot.caches, slot.runtime) != (image_id, limits, caches, runtime):
        return None
    return slot.container if keep.engine.status(slot.container) == "running" else None


def write(keep: Keep, name: str, slot: Slot) -> None:
    """There is this slot from now on."""
    folder = _folder(keep)
    folder.mkdir(mode=0o700, exist_ok=True)
    temporary = folder / f".{name}"
    temporary.write_bytes(msgspec.json.encode(slot))
    temporary.rename(folder / name)


def drop(keep: Keep, name: str) -> None:
    """There is no such slot any more, if there was one."""
    (_folder(keep) / name).unlink(missing_ok=True)


def names(keep: Keep) -> list[str]:
    """The ids of all slots."""
    try:
        return sorted(name for name in os.listdir(_folder(keep)) if not name.startswith("."))
    except FileNotFoundError:
        return []


def _folder(keep: Keep) -> Path:
    return keep.path / "run" / "slots"
