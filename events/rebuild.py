"""A log made anew from frames, bit by bit the one they were taken from: same id, positions, checksums and revisions,
and the same answers to repeated idempotency keys. It keeps the published notes for trees that it has.

Fencing tokens are not in the records. Every stream's fence is set behind all that was kept, so that no token of before
is taken any more: whoever held a lock has to acquire it again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import final

import lmdb

from sandkeep.events import codec
from sandkeep.events.codec import Frame
from sandkeep.events.errors import LogDamaged
from sandkeep.events.lmdb_layout import (
    Layout,
    Published,
    encode_published,
    encode_used,
    place,
    split_stream_key,
    stream_key,
    uses,
)
from sandkeep.events.merkle import Peaks, leaf_hash
from sandkeep.events.note import Checkpoint

_BATCH_BYTES = 8 << 20


@final
class Rebuild:
    """A log in the new folder `path` that frames are added to, in order."""

    def __init__(self, path: Path, log_id: bytes) -> None:
        self._layout = Layout(path, log_id=log_id)
        self._batch: list[Frame] = []
        self._bytes = 0
        self.position = 0
        self.checksum = codec.GENESIS

    def fits(self, frame: Frame) -> bool:
        """Whether `frame` is the next one, and holds the records that it should."""
        if frame.first != self.position + 1 or frame.previous != self.checksum:
            return False
        try:
            frame.records()
        except LogDamaged:
            return False
        return True

    def add(self, frame: Frame) -> None:
        """Add a frame that fits."""
        self._batch.append(frame)
        self._bytes += len(frame.body)
        self.position, self.checksum = frame.last, frame.checksum
        if self._bytes >= _BATCH_BYTES:
            self._flush()

    def carry(self, notes: Mapping[int, tuple[Published, Checkpoint]]) -> list[str]:
        """Store the notes for trees that this log has, and say which of them were for others."""
        self._flush()
        peaks, agreed, differ = Peaks(), list[tuple[int, Published]](), list[str]()
        with self._layout.reading() as txn:
            leaves = (leaf for frame in self._layout.scan(txn, 0) for leaf in frame.leaves())
            for leaf in itertools.chain((None,), leaves) if notes else ():
                if leaf is not None:
                    peaks.append(leaf_hash(leaf))
                published, checkpoint = notes.get(peaks.size, (None, None))
                if published is None or checkpoint is None:
                    continue
                if checkpoint.root == peaks.root():
                    agreed.append((peaks.size, Published(published.note, peaks.hashes)))
                else:
                    differ.append(f"the first {peaks.size} records are not those that their published note vouches for")

        def put(txn: lmdb.Transaction[bytes]) -> None:
            for size, published in agreed:
                txn.put(place(size), encode_published(published), db=self._layout.notes)

        self._write(put)
        return differ

    def finish(self) -> None:
        """Make it all durable, and close it."""
        self._flush()
        self._write(self._fences)
        self.close()

    def close(self) -> None:
        """Release the folder. Safe to call twice."""
        self._layout.env.close()

    def _flush(self) -> None:
        self._write(lambda txn: self._put(txn, self._batch))
        self._batch, self._bytes = [], 0

    def _write(self, work: Callable[[lmdb.Transaction[bytes]], None]) -> None:
        while True:
            try:
                with self._layout.writing() as txn:
                    work(txn)
                    txn.commit()
                return
            except lmdb.MapFullError:
                self._layout.grow()

    def _put(self, txn: lmdb.Transaction[bytes], frames: Iterable[Frame]) -> None:
        layout = self._layout
        for frame in frames:
            txn.put(place(frame.first), codec.stored(frame), db=layout.frames, append=True)
            records = frame.records()
            for record in records:
                txn.put(stream_key(record.stream, record.revision), place(record.position), db=layout.streams)
            for key, used in uses(records):
                txn.put(key, encode_used(used), db=layout.keys)

    def _fences(self, txn: lmdb.Transaction[bytes]) -> None:
        for key in txn.cursor(self._layout.streams).iternext(values=False):
            txn.put(split_stream_key(key)[0].encode(), place(self.position + 1), db=self._layout.fences)
