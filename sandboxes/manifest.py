"""Manifests: a folder's contents as a Merkle tree, one blob a folder.

The manifest of a folder lists its entries in byte order of their names; that of a subfolder is named by its digest, so
equal subtrees are equal digests and are stored once. The digest of the root's manifest names the whole tree: content,
names, kinds, modes, owners and times. Names and link targets are bytes, as they are on disk.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Iterator

import msgspec

from sandkeep.events import Batch, BlobDamaged, BlobStore
from sandkeep.events.catalogue import Reference
from sandkeep.events.schema import NOT_DECODED

MODE_BITS = 0o1777
"""What is kept of a mode. Set-user-id and set-group-id are never restored, and so not recorded."""


class Kind(enum.StrEnum):
    """What an entry is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    FIFO = "fifo"
    SOCKET = "socket"


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One name in a folder.

    `content` is the digest of a file's content or of a folder's manifest; `target` is where a link points. `size` is in
    bytes and counts for files only.
    """

    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    content: str = ""
    target: bytes = b""


Manifest = dict[bytes, Entry]
"""The entries of one folder, by name."""

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.FOLDER,
    stat.S_IFLNK: Kind.LINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


def kind(mode: int) -> Kind | None:
    """The kind of what has this `st_mode`; None for a device, which is never kept."""
    return _KINDS.get(stat.S_IFMT(mode))


def store(manifest: Manifest, blobs: BlobStore | Batch) -> str:
    """Store one folder's manifest, by itself or in a batch, and return its digest."""
    data = _encode([manifest[name] for name in sorted(manifest)])
    return blobs.put(data, tree=True) if isinstance(blobs, Batch) else blobs.put(data)


def load(digest: str, blobs: BlobStore) -> Manifest:
    """One folder's manifest, verified. Raises `BlobMissing`, or `BlobDamaged` if the blob is no manifest."""
    return parse(digest, blobs.get(digest))


def parse(digest: str, data: bytes) -> Manifest:
    """The manifest that is stored as `data` under `digest`. Raises `BlobDamaged` if it is none."""
    try:
        entries = _decode(data)
    except NOT_DECODED as error:
        raise BlobDamaged(f"blob {digest} is no manifest: {error}") from error
    for entry in entries:
        # A manifest may come from elsewhere; a name in it must never lead out of its folder.
        if not entry.name or entry.name in (b".", b"..") or b"/" in entry.name or b"\0" in entry.name:
            raise BlobDamaged(f"manifest {digest} holds {entry.name!r}, which is no name")
    return {entry.name: entry for entry in entries}


def references(digest: str, data: bytes) -> Iterator[Reference]:
    """What one folder's manifest vouches for. Raises `BlobDamaged` if `data` is none."""
    for entry in parse(digest, data).values():
        if entry.kind is Kind.FOLDER:
            yield Reference(entry.content, 0, tree=True)
        elif entry.kind is Kind.FILE:
            yield Reference(entry.content, entry.size)


def blobs_of(digest: str, blobs: BlobStore) -> Iterator[str]:
    """The digests of all that the tree `digest` consists of: its manifests, each verified, and its files' contents."""
    seen: set[str] = set()
    waiting = [digest]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        for entry in load(current, blobs).values():
            if entry.kind is Kind.FOLDER:
                waiting.append(entry.content)
            elif entry.kind is Kind.FILE and entry.content not in seen:
                seen.add(entry.content)
                yield entry.content
