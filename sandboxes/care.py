"""What the steward does for the store of blobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandkeep.events.reserve import RESERVE_BYTES
from sandkeep.sandboxes.quantity import show_size

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep


def set_aside(keep: Keep) -> list[str]:
    """Set space aside for a checkpoint that meets a full disk, once there are any and as long as there is plenty."""
    return [f"set {show_size(RESERVE_BYTES)} aside for a full disk"] if keep.blobs.make_reserve() else []
