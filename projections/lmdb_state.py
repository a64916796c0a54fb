"""State in an LMDB transaction: what is read goes through what has been written, and that is kept back until it has to
be there.

Keys are few and values small, and the same ones change again and again while records are folded. So changes gather in
memory, and reach the pages in key order, which costs LMDB much less. Used by one thread at a time.

A projection may leave part of its work until then as well (see `projection.Deferred`): a thousand decisions in one
transaction change the same few bitmaps, which no decision reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import lmdb

from sandkeep.events import SandkeepError
from sandkeep.projections.projection import Deferred, StateView, prefix_end


class ProjectionsUnavailable(SandkeepError):
    """The projections' environment cannot be opened, read or written."""

    code = "projections-unavailable"


@final
class LmdbView:
    """A `StateView` within one LMDB transaction."""

    def __init__(self, txn: lmdb.Transaction[bytes]) -> None:
        self._txn = txn

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._txn.get(key)
        except lmdb.Error as error:
            raise _unreadable(error) from error

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, descending: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        try:
            cursor = self._txn.cursor()
            if descending:
                found = _last_at(cursor, prefix_end(prefix) if start is None else start)
            else:
                found = cursor.set_range(prefix if start is None else start)
            if found:
                for key, value in cursor.iterprev() if descending else cursor.iternext():
                    if not key.startswith(prefix):
                        return
                    yield key, value
        except lmdb.Error as error:
            raise _unreadable(error) from error


@final
class LmdbState:
    """A `State` within one LMDB write transaction. What was put is not in it before `flush`."""

    def __init__(self, txn: lmdb.Transaction[bytes]) -> None:
        self._txn = txn
        self._stored = LmdbView(txn)
        self._changes: dict[bytes, bytes | None] = {}
        self.deferred: dict[str, Deferred] = {}

    def get(self, key: bytes) -> bytes | None:
        if self.deferred and any(key.startswith(each.covers) for each in self.deferred.values()):
            self._settle()
        return self._changes[key] if key in self._changes else self._stored.get(key)

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, descending: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        self.flush()
        return self._stored.scan(prefix, start=start, descending=descending)

    def put(self, key: bytes, value: bytes) -> None:
        self._changes[key] = value

    def delete(self, key: bytes) -> None:
        self._changes[key] = None

    def flush(self) -> None:
        """Write what was changed into the transaction. Raises `lmdb.Error`."""
        self._settle()
        with self._txn.cursor() as cursor:
            for key in sorted(self._changes):
                value = self._changes[key]
                if value is not None:
                    cursor.put(key, value)
                elif cursor.set_key(key):
                    cursor.delete()
        self._changes.clear()

    def _settle(self) -> None:
        """Have done what was left for later. It reads and writes this state."""
        deferred, self.deferred = self.deferred, {}
        for each in deferred.values():
            each.store()


@final
class ReadOnly:
    """A `StateView` of a state, through which it cannot be changed."""

    def __init__(self, state: StateView) -> None:
        self.get = state.get
        self.scan = state.scan


def _last_at(cursor: lmdb.Cursor[bytes], key: bytes) -> bool:
    """Move to the last entry whose key is `key` or before it."""
    key = key[:_MAX_KEY_BYTES]
    if not cursor.set_range(key):
        return cursor.last()
    return cursor.key() == key or cursor.prev()


_MAX_KEY_BYTES = 511
"""The longest key that LMDB takes."""


def _unreadable(error: lmdb.Error) -> ProjectionsUnavailable:
    return ProjectionsUnavailable(f"the projections cannot be read: {error}; delete their folder, the log is the truth")
