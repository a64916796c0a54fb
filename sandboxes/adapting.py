"""The memory of a new sandbox, suggested by what those like it have used.

Like it are those of tasks with one of its tags, or else those of its image; of at least five, the 95th percentile of
what each used at most, or what the task's own sandboxes before used if that is more, with headroom, and no more than
the settings would give it without any history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sandkeep.projections import StateView
from sandkeep.projections import resources as uses
from sandkeep.sandboxes.limits import Adapting

LEAST = 5
"""Of how many sandboxes something can be told."""

_PERCENTILE = 95
_STEP = 1 << 20


def suggest(state: StateView, image: str, tags: Iterable[str], default: int, setting: Adapting, own: int = 0) -> int:
    """The memory for a sandbox of this image, in a task with these tags, whose sandboxes used `own` at most."""
    told = [percentile(peaks) for tag in tags if len(peaks := uses.peaks_of(state, "tag", tag)) >= LEAST]
    peaks = uses.peaks_of(state, "image", image)
    if not told and len(peaks) >= LEAST:
        told = [percentile(peaks)]
    if not told:
        return default
    wanted = int(max(*told, own) * setting.headroom) // _STEP * _STEP + _STEP
    return min(default, max(setting.floor, wanted))


def percentile(peaks: Sequence[int]) -> int:
    """The least of `peaks` that 95 in 100 of them do not exceed (nearest rank)."""
    return sorted(peaks)[(len(peaks) * _PERCENTILE + 99) // 100 - 1]
