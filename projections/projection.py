"""What a projection is, and the state it folds the log into.

A projection is pure, deterministic and total: `apply` depends on nothing but the state and the record, and accepts
every record that any version of the library ever wrote, ignoring what does not concern it. So its state can be
thrown away, rebuilt, and compared by digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, final

from blake3 import blake3

from sandkeep.events import Record


class StateView(Protocol):
    """What a decider sees of the state: an ordered map of bytes that cannot be changed through it."""

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The entries whose key begins with `prefix`, in key order; the state must not change meanwhile."""


class State(StateView, Protocol):
    """An ordered map of bytes that projections keep their state in. Used by one thread at a time."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value under `key`."""

    def delete(self, key: bytes) -> None:
        """Remove `key`, if it is there."""


class Projection(Protocol):
    """A pure fold over the log."""

    @property
    def name(self) -> str:
        """Unique, short, ASCII; all keys of the projection begin with it and a slash."""

    @property
    def version(self) -> int:
        """Raised whenever `apply` would give another state for the same log; a change rebuilds the state."""

    def apply(self, state: State, record: Record) -> None:
        """Advance `state` by `record`."""


@final
class MemoryState:
    """A `State` in memory: for tests, comparison and views of the past."""

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self._entries.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._entries[key] = value

    def delete(self, key: bytes) -> None:
        self._entries.pop(key, None)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from sorted(item for item in self._entries.items() if item[0].startswith(prefix))


def fold(projections: Sequence[Projection], records: Iterable[Record], state: State) -> int:
    """Advance `state` by `records`; returns the last position, 0 when there was none."""
    position = 0
    for record in records:
        for projection in projections:
            projection.apply(state, record)
        position = record.position
    return position


def digest(projections: Sequence[Projection], state: StateView) -> str:
    """BLAKE3, in hex, over every entry of these projections in order: equal states have equal digests."""
    hasher = blake3()
    for projection in sorted(projections, key=lambda projection: projection.name):
        for key, value in state.scan(projection.name.encode() + b"/"):
            for part in (key, value):
                hasher.update(len(part).to_bytes(8, "big"))
                hasher.update(part)
    return hasher.hexdigest()
