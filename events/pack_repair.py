"""What is damaged in packs: it is made to count as missing, and brought back from wherever else it still is.

What counts as missing is stored again by whoever has it; what is damaged would be found, and relied on. That much is
done for a single flipped bit as well as for a pack that is gone. After that the packs themselves are looked through:
the same object may lie in another place, and of a frame that is damaged somewhere often all can be read but what
lies there. Whatever is brought back matches its digest. The damaged place is left to whoever writes its pack anew.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator

from blake3 import blake3

from sandkeep.events import pack_frame
from sandkeep.events.batch import Batch
from sandkeep.events.errors import BlobDamaged, BlobMissing
from sandkeep.events.pack_frame import Kind
from sandkeep.events.pack_index import Entries
from sandkeep.events.packs import Packs, opened

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PIECE = 4096
_Object = tuple[bytes, Kind, bytes]


def discard(packs: Packs, digests: Iterable[bytes]) -> set[bytes]:
    """Let what is damaged of these, and what consists of it, count as missing; returns what does now."""
    suspects = set(digests)
    if not packs.exist():
        return set()
    packs.forget()

    def whole(entries: Entries) -> Entries:
        return {each: entry for each, entry in entries.items() if each not in suspects or _is_whole(packs, each)}

    with packs.changing() as index:
        gone = set(index.judge(whole)[0])
        return gone | packs.prune(index)


def salvage(packs: Packs, digests: Iterable[bytes]) -> set[bytes]:
    """Store anew what can still be read of these somewhere in the packs; returns what was. Raises as a batch does."""
    wanted, found = set(digests), set[bytes]()
    if not packs.exist() or not wanted:
        return found
    with Batch(packs) as batch:
        for pack in packs.names():
            with contextlib.suppress(FileNotFoundError), opened(packs.path(pack)) as file:
                for digest, kind, content in _readable(file, pack, wanted):
                    if digest not in found:
                        found.add(digest)
                        batch.move(digest, kind, content)
    with packs.changing() as index:
        return found - packs.prune(index)


def _is_whole(packs: Packs, digest: bytes) -> bool:
    entry = packs.find(digest)
    try:
        return entry is not None and all(True for _ in packs.chunks(digest, entry))
    except (BlobDamaged, BlobMissing):
        return False


def _readable(file: int, pack: bytes, wanted: set[bytes]) -> Iterator[_Object]:
    """The objects in a pack that are wanted and whole."""
    for offset, header in pack_frame.headers(file, pack, 0):
        if not any(digest in wanted for digest, _ in header.objects):
            continue
        try:
            raw = pack_frame.read(file, pack, offset).raw
        except BlobDamaged:
            # Whether a recipe is what it was, only its frame can tell.
            raw = b"" if header.kind is Kind.RECIPES else _unpacked(os.pread(file, header.stored, header.payload))
        start = 0
        for digest, length in header.objects:
            content, start = raw[start : start + length], start + length
            trusted = header.kind is Kind.RECIPES and len(content) == length
            if digest in wanted and (trusted or blake3(content).digest() == digest):
                yield digest, header.kind, content


def _unpacked(payload: bytes) -> bytes:
    """What a damaged payload still gives: all of it, or what comes before the place where it makes no sense."""
    decompressor, found = zstd.ZstdDecompressor(), []
    with contextlib.suppress(zstd.ZstdError, EOFError):
        for at in range(0, len(payload), _PIECE):
            found.append(decompressor.decompress(payload[at : at + _PIECE]))
    return b"".join(found)
