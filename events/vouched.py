"""Which trees the log vouches for: those of checkpoints that have not expired, as far as it was read."""

from __future__ import annotations

from typing import final

from sandkeep.events import catalogue as ev
from sandkeep.events.codec import Record

_CREATED, _EXPIRED = ev.CheckpointCreated.__name__, ev.CheckpointExpired.__name__


@final
class Trees:
    """Given a log's records in order, the trees that have to be there; one that expired since `kept_ns` counts too."""

    def __init__(self, kept_ns: int | None = None) -> None:
        self._kept_ns = kept_ns
        self._left: dict[tuple[str, str], dict[str, int]] = {}

    def take(self, record: Record) -> bool:
        """Whether a record is about a checkpoint's tree and nothing else, and is dealt with by that. Raises
        `BadEvent`."""
        if record.type not in (_CREATED, _EXPIRED):
            return False
        event = record.event
        if isinstance(event, ev.CheckpointCreated):
            self._left.setdefault((record.stream, event.checkpoint), {})[event.digest] = record.position
        elif isinstance(event, ev.CheckpointExpired) and (self._kept_ns is None or record.time_ns < self._kept_ns):
            self._left.pop((record.stream, event.checkpoint), None)
        return True

    def left(self) -> dict[str, int]:
        """The digests of the trees, and the first position that vouches for each."""
        found: dict[str, int] = {}
        for digest, position in ((digest, at) for each in self._left.values() for digest, at in each.items()):
            found.setdefault(digest, position)
        return found
