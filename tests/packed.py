"""What lies in the packs of a store, and how it is lost and damaged on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sandkeep.events import BlobStore, pack_frame
from sandkeep.events.pack_index import Entry
from sandkeep.events.packs import Packs, opened
from sandkeep.sandboxes import manifest
from sandkeep.sandboxes.manifest import Kind


def objects(blobs: Path) -> dict[str, Entry]:
    """Where each object lies, by its digest."""
    packs = Packs(blobs / "packs")
    return {digest.hex(): entry for digest, entry in packs.index().all().items()} if packs.exist() else {}


def stored(blobs: Path) -> list[str]:
    """The digests of all that is stored, in packs and by itself."""
    return sorted([*objects(blobs), *(path.parent.name + path.name for path in blobs.glob("??/*"))])


def files_of(digest: str, blobs: BlobStore) -> Iterator[tuple[bytes, bytes]]:
    """The files of a tree, each by its name, with its content, read and verified."""
    waiting = [digest]
    while waiting:
        for entry in manifest.load(waiting.pop(), blobs).values():
            if entry.kind is Kind.FOLDER:
                waiting.append(entry.content)
            elif entry.kind is Kind.FILE:
                yield entry.name, blobs.get(entry.content)


def lose(blobs: Path, digest: str) -> None:
    """Let a blob be gone."""
    if digest not in objects(blobs):
        (blobs / digest[:2] / digest[2:]).unlink()
        return
    _, left = (
        Packs(blobs / "packs")
        .index()
        .judge(lambda entries: {key: entry for key, entry in entries.items() if key.hex() != digest})
    )
    assert bytes.fromhex(digest) not in left


def damage(blobs: Path, digest: str) -> set[str]:
    """Change the last byte of the file or frame that a blob is in; all that was in it."""
    entry = objects(blobs).get(digest)
    if entry is None:
        flip(blobs / digest[:2] / digest[2:], -1)
        return {digest}
    path = Packs(blobs / "packs").path(entry.pack)
    with opened(path) as file:
        header = pack_frame.read_header(file, entry.pack, entry.offset)
    flip(path, header.payload + header.stored - 1)
    return {found.hex() for found, _ in header.objects}


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
