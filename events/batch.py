"""A batch: content that is stored together, and is durable all at once when the batch is committed.

What is known already is not stored again. Small content shares frames of about `FRAME_BYTES`, manifests frames of
their own. Large content is cut where its bytes say so (FastCDC; Xia et al., IEEE TPDS 31(9), 2020), so that a change in
it costs the chunks around that place; what is stored under its digest is the *recipe*, the digests of its chunks.

A batch belongs to one thread. Nothing of it is to be seen before it is committed, and nothing of it if it never is.
What it relied on because it was known is looked at once more then: what has been condemned since is so no more, and if
something has been removed, nothing is committed.
"""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import Protocol, final

from blake3 import blake3
from pyfastcdc import FastCDC

from sandkeep.events.pack_frame import ARCHIVE_LEVEL, MAX_OBJECTS, Kind
from sandkeep.events.pack_index import Batched, Index
from sandkeep.events.pack_writer import PackWriter
from sandkeep.events.packs import Packs

FRAME_BYTES = 256 << 10
"""The size from which on a frame is full, before it is compressed; twice that in the archive."""

LEVEL = 3
"""How hard zstd tries."""

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

    Raises `OSError`, `BlobsUnavailable` and, when it is committed, `BlobMissing`: it is not committed then.
    """

    def __init__(self, packs: Packs, level: int = LEVEL) -> None:
        self._packs = packs
        self._writer = PackWriter(packs, level)
        self._full = FRAME_BYTES * (2 if level >= ARCHIVE_LEVEL else 1)
        self._waiting: dict[Kind, list[tuple[bytes, bytes]]] = {kind: [] for kind in Kind}
        self._sizes = dict.fromkeys(Kind, 0)
        self._new: set[bytes] = set()
        self._known = bytearray()
        self._index: Index | None = None
        self._epoch = b""

    @property
    def written(self) -> int:
        """How many bytes it has put into a pack."""
        return self._writer.written

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

    def commit(self, *, moved: bool = False) -> None:
        """Make all of it durable, and to be seen. If it was `moved`, see `Batched`."""
        rest = [(kind, objects) for kind, objects in self._waiting.items() if objects]
        writer = self._writer
        if self._known:
            # Before anything is durable. It is done again with the commit, where it can only fail within moments.
            with self._packs.changing() as index:
                self._epoch = self._packs.reserve.through(partial(index.rely, self._known, self._epoch))
        if writer.finish(rest):
            done = Batched(writer.pack, writer.end, writer.frames, self._known, self._epoch, moved)
            with self._packs.changing() as index:
                self._packs.reserve.through(partial(index.commit, done))
            self._packs.reserve.ease()
        for kind in Kind:
            self._waiting[kind], self._sizes[kind] = [], 0
        writer.frames = []
        self._known.clear()

    def move(self, digest: bytes, kind: Kind, content: bytes) -> None:
        """Store an object of another pack once more."""
        self._add(kind, digest, content)

    def close(self) -> None:
        """Take back what was not committed."""
        self._writer.close()

    def _knows(self, digest: bytes) -> bool:
        if digest in self._new:
            return True
        if self._index is None:
            # If it is made anew meanwhile, that is another epoch.
            self._index = self._packs.index()
            self._epoch = self._index.epoch()
        if not self._index.knows(digest):
            return False
        self._known += digest
        return True

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
        if self._sizes[kind] >= self._full or len(waiting) == MAX_OBJECTS:
            self._flush(kind)

    def _flush(self, kind: Kind) -> None:
        waiting = self._waiting[kind]
        self._waiting[kind], self._sizes[kind] = [], 0
        self._writer.add(kind, waiting)


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
