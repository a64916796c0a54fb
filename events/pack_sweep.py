"""Garbage in packs: what nobody wants is condemned first, and removed when it still is after a grace period.

Whoever stores what is condemned stores it anew, so finding an object in the index is enough to rely on it, and costs no
write. An object that was found by somebody just before it was condemned is safe as long as his event comes
within the grace period: the sweep that would remove it wants it then. Chunks are wanted as long as a recipe
that names them is left.

What is removed from the index still lies in its pack. A pack of which more than half is such is written anew, which
needs it to be whole: one with damage in it is left as it is. Whoever reads meanwhile has the old file open, or finds it
gone and asks the index again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import final

import msgspec

from sandkeep.events import pack_frame
from sandkeep.events.batch import LEVEL, Batch
from sandkeep.events.durable import sync_folder
from sandkeep.events.errors import BlobDamaged, BlobMissing
from sandkeep.events.pack_frame import ARCHIVE_LEVEL, Kind, parts
from sandkeep.events.pack_index import Entries, Entry
from sandkeep.events.packs import Packs, locked, opened


def sweep(packs: Packs, wanted: Callable[[str], bool], grace_seconds: float) -> tuple[int, int]:
    """Remove what is not `wanted` and was condemned `grace_seconds` ago; see `BlobStore.sweep`."""
    if not packs.exist():
        return 0, 0
    with packs.changing() as index:
        gone, left = index.judge(_Verdict(packs, wanted, grace_seconds))
    live: Counter[bytes] = Counter()
    for entry in left.values():
        live[entry.pack] += entry.length
    extents = packs.index().extents()
    freed = 0
    for pack, extent in extents.items():
        if 2 * live[pack] < extent.raw:
            with contextlib.suppress(FileNotFoundError, BlobDamaged, BlobMissing):
                freed += _compact(packs, pack)
    return len(gone), freed


@final
class _Verdict:
    def __init__(self, packs: Packs, wanted: Callable[[str], bool], grace_seconds: float) -> None:
        self._packs = packs
        self._wanted = wanted
        self._now = time.time_ns()
        self._before = self._now - int(grace_seconds * 1e9)

    def __call__(self, entries: Entries) -> Entries:
        left: Entries = {}
        needed: set[bytes] = set()
        # Recipes first: what is left of them decides about their chunks.
        for digest, entry in sorted(entries.items(), key=lambda each: each[1].kind is not Kind.RECIPES):
            wanted = digest in needed or self._wanted(digest.hex())
            found = self._judged(entry, wanted)
            if found is not None:
                left[digest] = found
                needed.update(self._parts(digest, entry, wanted) if entry.kind is Kind.RECIPES else ())
        return left

    def _judged(self, entry: Entry, wanted: bool) -> Entry | None:
        if wanted:
            return msgspec.structs.replace(entry, condemned=0) if entry.condemned else entry
        since = entry.condemned or self._now
        return msgspec.structs.replace(entry, condemned=since) if since > self._before else None

    def _parts(self, digest: bytes, entry: Entry, wanted: bool) -> list[bytes]:
        try:
            return parts(self._packs.frame(entry).content(entry.number))
        except (BlobDamaged, FileNotFoundError) as error:
            if wanted:
                raise BlobDamaged(f"blob {digest.hex()} cannot be read: {error}") from error
            return []  # nobody can read it, and nobody wants to


def _compact(packs: Packs, pack: bytes) -> int:
    """Write what is left of a pack into another, and remove it; returns how many bytes that saved.

    Raises `FileNotFoundError` if somebody else did, and `BlobDamaged` or `BlobMissing` if it is not whole.
    """
    with opened(packs.path(pack)) as file:
        if not locked(file, packs.path(pack)):
            return 0  # somebody appends to it
        size = os.fstat(file).st_size
        return size - move(packs, pack, ARCHIVE_LEVEL if pack_frame.is_archive(file, pack) else LEVEL)[0]


def move(packs: Packs, pack: bytes, level: int, most_bytes: int | None = None) -> tuple[int, bool]:
    """Write what is left of a pack, or at least `most_bytes` of it, into another, at a level; and remove it if nothing
    is left then. Returns how many bytes were written, and whether it was removed. Whoever calls this has its lock.

    Raises as `BlobStore.batch` does, and `BlobDamaged` or `BlobMissing` if it is not whole: nothing is moved then.
    """
    size = 0
    with Batch(packs, level) as batch:
        for digest, entry in packs.index().within(pack).items():
            if most_bytes is not None and size >= most_bytes:
                break
            batch.move(digest, entry.kind, packs.read(digest, entry))
            size += entry.length
        batch.commit(moved=True)
    # If the index was made anew meanwhile, there may be more in the pack now than there was.
    with packs.changing() as index:
        if not index.release(pack):
            return batch.written, False
        packs.path(pack).unlink()
    sync_folder(packs.root)
    return batch.written, True
