"""Manifests: a workspace as a Merkle tree of folders, each of them one blob or a few.

A *root* names the workspace's own folder, with its mode and times, and which of its paths are the same file. A folder
is named by the digest of its entries in byte order of their names; so equal subtrees are equal digests, are stored
once, and two trees are compared in the time of their difference. A folder of more than `MOST_ENTRIES` is cut into
*nodes* below a *branch*, always at the same names, whatever was there before (as Merkle search trees are; Auvolat and
Taïani, SRDS 2019): so a change in a large folder costs the nodes around it.

Names, link targets and attributes are bytes, as they are on disk. Manifests may come from elsewhere, and are checked
when they are read.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec
from blake3 import blake3

from sandkeep.events import Batch, BlobDamaged, BlobStore
from sandkeep.events.catalogue import Reference
from sandkeep.events.schema import NOT_DECODED

MODE_BITS = 0o1777
"""What counts of a mode when changes are told, and is given back to a file unless more is asked for."""

MOST_ENTRIES = 512
"""The most entries in one node of a folder."""

_MOST_LEVELS = 8
_Item = TypeVar("_Item")


class Kind(enum.StrEnum):
    """What an entry is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character-device"
    BLOCK_DEVICE = "block-device"


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One name in a folder.

    `content` is the digest of a file's content or of a folder's manifest; `target` is where a link points. `size` is in
    bytes and counts for files only. `extents` are where the data of a sparse file lies, offset and length; `content` is
    then the digest of that data alone. `device` is the number (`st_rdev`) of a device.
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
    attributes: tuple[tuple[bytes, bytes], ...] = ()
    extents: tuple[tuple[int, int], ...] | None = None
    device: int = 0

    @property
    def stored(self) -> int:
        """How many bytes the blob is that holds a file's content."""
        return self.size if self.extents is None else sum(length for _, length in self.extents)


Manifest = dict[bytes, Entry]
"""The entries of one folder, by name."""


class Branch(msgspec.Struct, frozen=True, tag="branch"):
    """A folder in several nodes: the first name in each, and its digest."""

    nodes: tuple[tuple[bytes, str], ...]


class Root(msgspec.Struct, frozen=True, tag="root"):
    """A workspace: its own folder, an entry without a name, and the groups of paths that are one file each (hard
    links), paths and groups in byte order."""

    folder: Entry
    links: tuple[tuple[bytes, ...], ...] = ()


_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.FOLDER,
    stat.S_IFLNK: Kind.LINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
}
DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry] | Branch | Root).decode


def kind(mode: int) -> Kind:
    """The kind of what has this `st_mode`."""
    return _KINDS[stat.S_IFMT(mode)]


def store(manifest: Manifest, blobs: BlobStore | Batch) -> str:
    """Store one folder's entries, by themselves or in a batch, and return its digest."""
    entries = [manifest[name] for name in sorted(manifest)]
    if len(entries) <= MOST_ENTRIES:
        return _put(entries, blobs)
    nodes = [(cut[0].name, _put(cut, blobs)) for cut in _cuts(entries, lambda entry: entry.name)]
    while len(nodes) > MOST_ENTRIES:
        nodes = [(cut[0][0], _put(Branch(tuple(cut)), blobs)) for cut in _cuts(nodes, lambda node: node[0])]
    return _put(Branch(tuple(nodes)), blobs)


def store_root(root: Root, blobs: BlobStore | Batch) -> str:
    """Store a workspace's root and return its digest."""
    return _put(root, blobs)


def _put(node: list[Entry] | Branch | Root, blobs: BlobStore | Batch) -> str:
    data = _encode(node)
    return blobs.put(data, tree=True) if isinstance(blobs, Batch) else blobs.put(data)


def load(digest: str, blobs: BlobStore) -> Manifest:
    """One folder's entries, of a root those of its folder. Raises `BlobMissing`, or `BlobDamaged` for what is no
    manifest."""
    return {entry.name: entry for node in nodes(digest, blobs) for entry in leaf(node, blobs)}


def load_root(digest: str, blobs: BlobStore) -> Root:
    """The root that is stored under `digest`; one of an older checkpoint knows nothing of its folder but the entries.
    Raises as `load` does."""
    found = _node(digest, blobs.get(digest))
    return found if isinstance(found, Root) else Root(Entry(b"", Kind.FOLDER, 0o755, -1, -1, 0, content=digest))


def nodes(digest: str, blobs: BlobStore) -> Sequence[str]:
    """The digests of the nodes that hold a folder's entries, in the order of their names. Raises as `load` does."""
    found = _node(digest, blobs.get(digest))
    if isinstance(found, Root):
        return nodes(found.folder.content, blobs)
    if not isinstance(found, Branch):
        return [digest]
    below = [child for _, child in found.nodes]
    for _ in range(_MOST_LEVELS):
        # All leaves lie equally deep, so the first node of a level tells what the level is.
        if not isinstance(_node(below[0], blobs.get(below[0])), Branch):
            return below
        below = [child for each in below for child in _children(each, blobs)]
    raise BlobDamaged(f"manifest {digest} has more than {_MOST_LEVELS} levels")


def leaf(digest: str, blobs: BlobStore) -> list[Entry]:
    """The entries of one node. Raises as `load` does."""
    found = _node(digest, blobs.get(digest))
    if not isinstance(found, list):
        raise BlobDamaged(f"blob {digest} is no manifest of entries")
    return found


def differing(old: str, new: str, blobs: BlobStore) -> tuple[Manifest, Manifest]:
    """The entries of two folders, without those in nodes that both have. Raises as `load` does."""
    if old == new:
        return {}, {}
    before, after = nodes(old, blobs), nodes(new, blobs)
    shared = set(before) & set(after)

    def rest(found: Iterable[str]) -> Manifest:
        return {entry.name: entry for each in found if each not in shared for entry in leaf(each, blobs)}

    return rest(before), rest(after)


def references(digest: str, data: bytes) -> Iterator[Reference]:
    """What one manifest vouches for. Raises `BlobDamaged` if `data` is none."""
    found = _node(digest, data)
    if isinstance(found, Branch):
        yield from (Reference(child, 0, tree=True) for _, child in found.nodes)
        return
    for entry in found if isinstance(found, list) else (found.folder,):
        if entry.kind is Kind.FOLDER:
            yield Reference(entry.content, 0, tree=True)
        elif entry.kind is Kind.FILE:
            yield Reference(entry.content, entry.stored)


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
        for found in references(current, blobs.get(current)):
            if found.tree:
                waiting.append(found.digest)
            elif found.digest not in seen:
                seen.add(found.digest)
                yield found.digest


def _cuts(items: Sequence[_Item], name: Callable[[_Item], bytes]) -> Iterator[list[_Item]]:
    cut: list[_Item] = []
    for item in items:
        cut.append(item)
        if len(cut) == MOST_ENTRIES or blake3(name(item)).digest(1) == b"\0":
            yield cut
            cut = []
    if cut:
        yield cut


def _node(digest: str, data: bytes) -> list[Entry] | Branch | Root:
    """What is stored as `data` under `digest`. Raises `BlobDamaged` if it is no manifest."""
    try:
        found: list[Entry] | Branch | Root = _decode(data)
    except NOT_DECODED as error:
        raise BlobDamaged(f"blob {digest} is no manifest: {error}") from error
    if isinstance(found, Root):
        if found.folder.kind is not Kind.FOLDER:
            raise BlobDamaged(f"manifest {digest} is of a workspace that is no folder")
        _check_links(digest, found)
    elif isinstance(found, Branch):
        if not found.nodes:
            raise BlobDamaged(f"manifest {digest} has no nodes")
    else:
        for entry in found:
            # A name must never lead out of its folder.
            if not _is_name(entry.name):
                raise BlobDamaged(f"manifest {digest} holds {entry.name!r}, which is no name")
            if entry.extents is not None and not _lies_within(entry):
                raise BlobDamaged(f"manifest {digest} holds {entry.name!r}, with data where there can be none")
    return found


def _children(digest: str, blobs: BlobStore) -> list[str]:
    found = _node(digest, blobs.get(digest))
    if not isinstance(found, Branch):
        raise BlobDamaged(f"blob {digest} is no manifest of nodes")
    return [child for _, child in found.nodes]


def _check_links(digest: str, root: Root) -> None:
    for path in (path for group in root.links for path in group):
        if not all(map(_is_name, path.split(b"/"))):
            raise BlobDamaged(f"manifest {digest} holds {path!r}, which is no path")


def _is_name(name: bytes) -> bool:
    return bool(name) and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def _lies_within(entry: Entry) -> bool:
    end = 0
    for offset, length in entry.extents or ():
        if offset < end or length <= 0:
            return False
        end = offset + length
    return end <= entry.size
