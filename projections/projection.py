"""What a projection is, and the state it folds the log into.

A projection is pure, deterministic and total: `apply` depends on nothing but the state and the record, and accepts
every record that any version of the library ever wrote, ignoring what does not concern it. So its state can be
thrown away, rebuilt, and compared by digest.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Protocol, final

from blake3 import blake3

from sandkeep.events import Record

BATCH = 16_384
"""How many records are folded at a time at most."""

_DIGESTED = 4096


class StateView(Protocol):
    """What a decider sees of the state: an ordered map of bytes that cannot be changed through it."""

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, descending: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries whose key begins with `prefix`, in key order or `descending`.

        With `start`, a key with that prefix, only those from there on. The state must not change meanwhile.
        """


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


class Deferred(Protocol):
    """Work that a projection has left for later, in a state that has `deferred`: a dict of these by projection.

    Such a state has it stored before anything of it is read, and before the state is written.
    """

    @property
    def covers(self) -> tuple[bytes, ...]:
        """What the keys that it will read or change begin with."""

    def store(self) -> None:
        """Do it."""


class BatchProjection(ABC):
    """The base of a projection that folds many records for less than each of them alone costs.

    Not a protocol: to look for its methods at every fold would cost more than to fold a record.
    """

    @abstractmethod
    def apply_all(self, state: State, records: Sequence[Record]) -> None:
        """The same as `apply` for each of `records` in order."""


@final
class MemoryState:
    """A `State` in memory: for tests, comparison and views of the past.

    With `base`, what is not changed here is what it is there; `base` must not change meanwhile.
    """

    def __init__(self, base: StateView | None = None) -> None:
        self._base = base
        self._entries: dict[bytes, bytes | None] = {}
        self._order: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        if self._base is not None and key not in self._entries:
            return self._base.get(key)
        return self._entries.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self._entries:
            self._order = None
        self._entries[key] = value

    def delete(self, key: bytes) -> None:
        if self._base is not None:
            if key not in self._entries:
                self._order = None
            self._entries[key] = None
        elif self._entries.pop(key, None) is not None:
            self._order = None

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, descending: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        here = self._scan_here(prefix, start, descending)
        if self._base is None:
            return ((key, value) for key, value in here if value is not None)
        return _overlaid(here, self._base.scan(prefix, start=start, descending=descending), descending)

    def _scan_here(self, prefix: bytes, start: bytes | None, descending: bool) -> Iterator[tuple[bytes, bytes | None]]:
        if self._order is None:
            self._order = sorted(self._entries)
        order = self._order
        first, end = bisect_left(order, prefix), bisect_left(order, prefix_end(prefix)) if prefix else len(order)
        if start is not None and descending:
            end = min(end, bisect_right(order, start))
        elif start is not None:
            first = max(first, bisect_left(order, start))
        for place in range(end - 1, first - 1, -1) if descending else range(first, end):
            yield order[place], self._entries[order[place]]


def prefix_end(prefix: bytes) -> bytes:
    """A key behind all those that begin with `prefix`, as long as no key is longer than LMDB allows."""
    return prefix + b"\xff" * 512


def _overlaid(
    above: Iterator[tuple[bytes, bytes | None]], below: Iterator[tuple[bytes, bytes]], descending: bool
) -> Iterator[tuple[bytes, bytes]]:
    """The entries of both in order; for keys in both, those above, which are gone where they are None."""
    over, under = next(above, None), next(below, None)
    while over is not None or under is not None:
        if over is None or (under is not None and over[0] != under[0] and (under[0] < over[0]) != descending):
            assert under is not None
            yield under
            under = next(below, None)
            continue
        if under is not None and under[0] == over[0]:
            under = next(below, None)
        key, value = over
        if value is not None:
            yield key, value
        over = next(above, None)


def fold(projections: Sequence[Projection], records: Iterable[Record], state: State) -> int:
    """Advance `state` by `records`; returns the last position, 0 when there was none."""
    position = 0
    remaining = iter(records)
    while batch := list(islice(remaining, BATCH)):
        for projection in projections:
            if isinstance(projection, BatchProjection):
                projection.apply_all(state, batch)
                continue
            for record in batch:
                projection.apply(state, record)
        position = batch[-1].position
    return position


def digest(projections: Sequence[Projection], state: StateView) -> str:
    """BLAKE3, in hex, over every entry of these projections in order: equal states have equal digests."""
    hasher = blake3()
    for projection in sorted(projections, key=lambda projection: projection.name):
        entries = state.scan(projection.name.encode() + b"/")
        # Many at a time, each time as many: the lengths of all keys and values, then all of them.
        while flat := list(chain.from_iterable(islice(entries, _DIGESTED))):
            hasher.update(struct.pack(f">{len(flat)}Q", *map(len, flat)))
            hasher.update(b"".join(flat))
    return hasher.hexdigest()
