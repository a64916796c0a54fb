"""What the steward does for the store of blobs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sandkeep.events import reserve
from sandkeep.sandboxes.damage import affected
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.verification import affects

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

SAMPLE = 0.01
"""The share of the store that is read and verified each time: all of it in a day, more or less."""

AGE_SECONDS = 3 * 86400.0
"""How long nothing was put into a pack that is compressed harder."""

PART_BYTES = 64 << 20
"""How much of that is done at a time: about a second of work, once a minute."""

_logger = logging.getLogger(__name__)


def set_aside(keep: Keep) -> list[str]:
    """Set space aside for a checkpoint that meets a full disk, once there are any and as long as there is plenty."""
    return [f"set {show_size(reserve.RESERVE_BYTES)} aside for a full disk"] if keep.blobs.make_reserve() else []


def scrub(keep: Keep) -> list[str]:
    """Verify a part of the store. What is damaged there counts as missing from then on, so that the next checkpoint
    that has it stores it again; what the packs themselves still hold of it is stored anew at once."""
    lost = keep.blobs.discard(keep.blobs.verify(SAMPLE))
    if not lost:
        return []
    left = {digest for digest in lost - keep.blobs.salvage(lost) if digest not in keep.blobs}
    lines = [f"{len(lost)} blobs were damaged; {len(lost) - len(left)} of them could be stored anew"]
    lines += affects(affected(keep, left))
    for line in lines:
        _logger.warning("the store of blobs: %s", line)
    return lines


def archive(keep: Keep) -> list[str]:
    """Compress harder what has lain for a while, a part each time."""
    _, removed = keep.blobs.archive(AGE_SECONDS, PART_BYTES)
    return [f"compressed {removed} packs harder"] if removed else []
