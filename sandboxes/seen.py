"""What the last snapshot of a workspace saw, so that the next one reads only what has changed since.

Of each folder: its status change time, the names in it with theirs, and the digest of its manifest. Nobody but the
kernel can set status change times. What may change without a new one is not relied on: a time that was not old when it
was looked at is left out (the "racy" entries of git's index), and all of it is forgotten when the machine was started
again, since a power loss takes content and leaves times.

It is a cache, kept in memory and in a file; one that is damaged, or of another workspace, is none.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import final

import msgspec
from blake3 import blake3

from sandkeep.events.durable import private
from sandkeep.events.journal import this_boot
from sandkeep.events.schema import NOT_DECODED

RACY_NS = 20_000_000
"""How old a change must be for the next one to have another time: more than a tick of any kernel's clock."""

WHOLE_NS = 2_000_000_000
"""The same where times seem to be kept in whole seconds, as file systems with small inodes do."""

_VERSION = 1
_CHECKSUM_BYTES = 32
_MOST_KEPT = 4
_FEW = 10


def is_old(changed_ns: int, now_ns: int) -> bool:
    """Whether a change at that time was so long ago that a later one has another time."""
    return changed_ns < now_ns - (RACY_NS if changed_ns % 1_000_000_000 else WHOLE_NS)


class Folder(msgspec.Struct):
    """A folder as it was seen, without the names of its folders in `names`. A time of 0 is not to be relied on.

    `linked` are the inodes of the files in it that have other names too. `files` and `size`, in bytes, count its own
    files.
    """

    changed_ns: int
    names: list[bytes]
    times: list[int]
    linked: dict[bytes, int]
    folders: dict[bytes, Folder]
    content: str
    files: int
    size: int


class Seen(msgspec.Struct):
    """A workspace as it was seen: its root `folder`, by device and inode, and the digest of its snapshot.

    It had so many `files`. All that it consists of was in the store while that had this `epoch`.
    """

    device: int
    inode: int
    epoch: bytes
    digest: str
    files: int
    folder: Folder


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A folder in a file, where the records of its folders follow it: no depth of nesting stands in the way then."""

    name: bytes
    changed_ns: int
    names: bytes
    times: bytes
    linked: dict[bytes, int]
    content: str
    files: int
    size: int
    folders: int


class _File(msgspec.Struct, frozen=True, array_like=True):
    version: int
    boot: str
    device: int
    inode: int
    epoch: bytes
    digest: str
    files: int
    folders: list[_Record]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_File).decode


@final
class SeenStore:
    """What was seen of each task's workspace, in the folder `root`. Safe to be used by several threads and processes:
    what is lost or overtaken costs time only."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._kept: OrderedDict[str, tuple[Seen, int]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, task: str) -> Seen | None:
        """What was last seen of a task's workspace, if that is known."""
        with self._lock:
            if task in self._kept:
                self._kept.move_to_end(task)
                return self._kept[task][0]
        return _load(self._root / task)

    def keep(self, task: str, seen: Seen, read: int) -> None:
        """Keep what was seen, of which so many entries were read anew; it is written when that is more than a few."""
        with self._lock:
            read += self._kept.pop(task, (seen, 0))[1]
            if read > _FEW and read > _entries(seen) // 100:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                _save(self._root / task, seen)
                read = 0
            self._kept[task] = (seen, read)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)

    def forget(self, task: str) -> None:
        """Forget a workspace, which is gone, or is not to be relied on."""
        with self._lock:
            self._kept.pop(task, None)
            (self._root / task).unlink(missing_ok=True)


def _entries(seen: Seen) -> int:
    count, waiting = 0, [seen.folder]
    while waiting:
        folder = waiting.pop()
        count += len(folder.names)
        waiting += folder.folders.values()
    return count


def _save(path: Path, seen: Seen) -> None:
    records: list[_Record] = []
    waiting = [(b"", seen.folder)]
    while waiting:
        name, folder = waiting.pop()
        records.append(
            _Record(
                name,
                folder.changed_ns,
                b"\0".join(folder.names),
                array("q", folder.times).tobytes(),
                folder.linked,
                folder.content,
                folder.files,
                folder.size,
                len(folder.folders),
            )
        )
        waiting += reversed(folder.folders.items())
    data = _encode(_File(_VERSION, this_boot(), seen.device, seen.inode, seen.epoch, seen.digest, seen.files, records))
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb", opener=private) as file:
            file.write(blake3(data).digest() + data)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> Seen | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    checksum, data = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    if blake3(data).digest() != checksum:
        return None
    with contextlib.suppress(*NOT_DECODED, EOFError, ValueError):
        found = _decode(data)
        if (found.version, found.boot) == (_VERSION, this_boot()):
            return Seen(found.device, found.inode, found.epoch, found.digest, found.files, _tree(found.folders))
    return None


def _tree(records: list[_Record]) -> Folder:
    root = _folder(records[0])
    above = [(root, records[0].folders)]
    for record in records[1:]:
        while not above[-1][1]:
            above.pop()
        parent, left = above[-1]
        above[-1] = (parent, left - 1)
        folder = parent.folders[record.name] = _folder(record)
        above.append((folder, record.folders))
    return root


def _folder(record: _Record) -> Folder:
    times = array("q")
    times.frombytes(record.times)
    names = record.names.split(b"\0") if record.names else []
    if len(times) != len(names):
        raise ValueError("a folder has more names than times")
    return Folder(
        record.changed_ns, names, times.tolist(), record.linked, {}, record.content, record.files, record.size
    )
