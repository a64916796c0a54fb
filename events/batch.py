"""A batch: content that is stored together, and is durable all at once when the batch is committed.

What is known already is not stored again. Small content shares frames of about `FRAME_BYTES`, manifests frames of
their own. Large content is cut where its bytes say so (FastCDC; Xia et al., IEEE TPDS 31(9), 2020), so that a change in
it costs the chunks around that place; what is stored under its digest is the *recipe*, the digests of its chunks.

A batch belongs to one thread. Nothing of it is to be seen before it is committed, and nothing of it if it never is.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Protocol, final

from blake3 import blake3
from pyfastcdc import FastCDC

from sandkeep.events import pack_frame
from sandkeep.events.pack_frame import MAX_OBJECTS, Kind
from sandkeep.events.pack_index import Entries, Entry
from sandkeep.events.packs import Packs

FRAME_BYTES = 128 << 10
"""The size from which on a frame is full, before it is compressed."""

LARGE_BYTES = 1 << 20
"""The size from which on content is cut into chunks."""

CHUNK_BYTES = (16 << 10, 64 << 10, 256 << 10)
"""The least, the usual and the greatest size of a chunk."""


class Source(Protocol):
    """What a blob can be read from: `read` gives no bytes only at its end."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, or, if the caller sets no limit, as many as there are."""


@final
class Batch:
    """Made by `BlobStore.batch`; a context manager that commits unless an exception leaves it.

    `written` is how many bytes it has put into a pack. Raises `OSError` and `BlobsUnavailable`: it is not committed.
    """

    def __init__(self, packs: Packs) -> None:
        self._packs = packs
        self._waiting: dict[Kind, list[tuple[bytes, bytes]]] = {kind: [] for kind in Kind}
        self._sizes = dict.fromkeys(Kind, 0)
        self._new: set[bytes] = set()
        self._stored: Entries = {}
        self._pack = b""
        self._file = -1
        self._start = self._end = 0
        self.written = 0

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.close()

    def put(self, data: bytes, *, tree: bool = False) -> str:
        """Store `data` and return its digest; if it is a `tree`, beside other manifests."""
        digest = blake3(data).digest()
        if not self._knows(digest):
            if len(data) < LARGE_BYTES:
                self._add(Kind.TREES if tree else Kind.CONTENT, digest, data)
            else:
                self._cut(_Rest(data, None, len(data)))
        return digest.hex()

    def put_stream(self, source: Source, limit: int | None = None) -> tuple[str, int]:
        """Store what `source` gives until its end, or its first `limit` bytes, in bounded memory.

        Returns the digest and the number of bytes.
        """
        most = LARGE_BYTES if limit is None else min(LARGE_BYTES, limit)
        head = b""
        while len(head) < most and (more := source.read(most - len(head))):
            head += more
        if len(head) < LARGE_BYTES:
            return self.put(head), len(head)
        return self._cut(_Rest(head, source, limit))

    def commit(self, *, instead: bytes = b"") -> None:
        """Make all of it durable, and to be seen; `instead` of the pack that it was moved from, if it was."""
        for kind in Kind:
            self._flush(kind)
        if not self._stored:
            return
        self._append(pack_frame.encode(self._pack, Kind.END, ()))
        os.fdatasync(self._file)
        # From here on others may index it, so it stays even if we cannot.
        self._start = self._end
        with self._packs.changing() as index:
            index.commit(self._pack, self._end, self._stored, instead=instead)
        self._stored = {}

    def move(self, digest: bytes, kind: Kind, content: bytes) -> None:
        """Store an object of another pack once more."""
        self._add(kind, digest, content)

    def close(self) -> None:
        """Take back what was not committed."""
        if self._file >= 0:
            try:
                if self._end > self._start:
                    os.ftruncate(self._file, self._start)
            finally:
                os.close(self._file)
                self._file = -1

    def _knows(self, digest: bytes) -> bool:
        if digest in self._new:
            return True
        entry = self._packs.find(digest)
        return entry is not None and not entry.condemned

    def _cut(self, rest: _Rest) -> tuple[str, int]:
        least, usual, most = CHUNK_BYTES
        recipe = []
        for chunk in FastCDC(usual, min_size=least, max_size=most).cut_stream(rest):
            digest = blake3(chunk.data).digest()
            if not self._knows(digest):
                self._add(Kind.CONTENT, digest, bytes(chunk.data))
            recipe.append(digest)
        digest = rest.hasher.digest()
        if not self._knows(digest):
            self._add(Kind.RECIPES, digest, b"".join(recipe))
        return digest.hex(), rest.size

    def _add(self, kind: Kind, digest: bytes, content: bytes) -> None:
        self._new.add(digest)
        waiting = self._waiting[kind]
        waiting.append((digest, content))
        self._sizes[kind] += len(content)
        if self._sizes[kind] >= FRAME_BYTES or len(waiting) == MAX_OBJECTS:
            self._flush(kind)

    def _flush(self, kind: Kind) -> None:
        waiting = self._waiting[kind]
        if not waiting:
            return
        if self._file < 0:
            self._pack, self._file, self._start = self._packs.acquire()
            self._end = self._start
        offset = self._end
        self._append(pack_frame.encode(self._pack, kind, waiting))
        for number, (digest, content) in enumerate(waiting):
            self._stored[digest] = Entry(self._pack, offset, number, len(content), kind)
        self._waiting[kind], self._sizes[kind] = [], 0

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, self._end)
            self._end += written
            self.written += written
            view = view[written:]


@final
class _Rest:
    """Content of which the `head` has been read already; it is hashed and counted as it is read."""

    def __init__(self, head: bytes, source: Source | None, limit: int | None) -> None:
        self._head = head
        self._source = source
        self._limit = limit
        self.size = 0
        self.hasher = blake3()

    def read(self, n: int) -> bytes:
        """At most `n` bytes; none at the end, or at the limit."""
        if self._limit is not None:
            n = min(n, self._limit - self.size)
        if self._head:
            found, self._head = self._head[:n], self._head[n:]
        else:
            found = self._source.read(n) if self._source is not None and n else b""
        self.size += len(found)
        self.hasher.update(found)
        return found
