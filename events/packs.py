"""Packs: files that many small objects are appended to, so that a batch of them costs one sync and not thousands.

    packs/<32 hex digits>.pack   frames (see `pack_frame`), only ever appended to
    packs/index/                 where each object lies (see `pack_index`)
    packs/lock                   who makes the index anew is alone

Whoever appends to a pack holds an exclusive `flock` on it, which the kernel frees if he dies. So each of many writers
has a pack of his own, and leaves it to the next. The order of a batch is: its frames, and one that ends it; sync;
index. What a killed writer left behind the end of a batch is cut off by the next; a batch that was ended and not yet
indexed is indexed when the pack is next looked at. A pack is removed when its objects lie elsewhere and the index says
so: a reader that finds it gone asks the index again.

The index is a cache: it is compared with the packs when it is opened, and made anew if it is missing or cannot be
opened. Then every frame is read and checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import final

import lmdb
from blake3 import blake3

from sandkeep.events import pack_frame, pack_index
from sandkeep.events.durable import sync_folder
from sandkeep.events.errors import BlobDamaged, BlobMissing, BlobsUnavailable
from sandkeep.events.pack_frame import Frame, Kind, parts
from sandkeep.events.pack_index import Batched, Entries, Entry, Index
from sandkeep.events.reserve import Reserve

MAX_PACK_BYTES = 256 << 20
"""The size from which on a pack is not appended to any more."""

CACHE_BYTES = 32 << 20
"""How many bytes of frames are kept unpacked, at the most, or the last one."""

_NAME = re.compile(r"([0-9a-f]{32})\.pack")
_TRIES = 5


@final
class Packs:
    """The packs in the folder `root`, which is made when something is first put into it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reserve = Reserve(root.parent / "reserve")
        self._index_path = root / "index"
        self._data = os.fspath(self._index_path / "data.mdb")
        self._index: Index | None = None
        self._key: tuple[int, int, int] | None = None
        self._opening = threading.RLock()
        self._frames: OrderedDict[tuple[bytes, int], Frame] = OrderedDict()
        self._cached = 0
        self._caching = threading.Lock()

    def find(self, digest: bytes) -> Entry | None:
        """Where an object lies, if anywhere. Raises `BlobsUnavailable`."""
        index = self._index
        if index is not None and self._key is not None and self._key[0] == os.getpid():
            # If the index has been made anew, what the old one knows is still true, or its pack is found to be gone.
            with contextlib.suppress(BlobsUnavailable):
                found = index.find(digest)
                if found is not None:
                    return found
        return self.index().find(digest) if self.exist() else None

    def epoch(self) -> bytes:
        """What stays the same as long as nothing that was found is condemned or removed. Raises `BlobsUnavailable`."""
        return self.index().epoch()

    def exist(self) -> bool:
        """Whether anything was ever put into a pack here."""
        return self._index is not None or self.root.is_dir()

    def chunks(self, digest: bytes, entry: Entry) -> Iterator[bytes]:
        """The content that was found at `entry`, in pieces. Of large content only the pieces are verified before they
        are given, and the whole at the end.

        Raises `BlobMissing`, `BlobDamaged`, `BlobsUnavailable`.
        """
        content = self.read(digest, entry)
        if entry.kind is not Kind.RECIPES:
            yield content
            return
        hasher = blake3()
        for chunk in parts(content):
            lies = self.index().find(chunk)
            if lies is None or lies.kind is Kind.RECIPES:
                raise BlobMissing(f"blob {digest.hex()} lacks its part {chunk.hex()}; restore the packs from a copy")
            piece = self.read(chunk, lies)
            hasher.update(piece)
            yield piece
        if hasher.digest() != digest:
            raise BlobDamaged(f"blob {digest.hex()} does not match its digest; restore the packs from a copy")

    def read(self, digest: bytes, entry: Entry) -> bytes:
        """The object that was found at `entry`, as it is stored. Raises as `chunks` does."""
        wanted: Entry | None = entry
        for _ in range(_TRIES):
            if wanted is None:
                break
            try:
                frame = self.frame(wanted)
                objects = frame.header.objects
                if wanted.number >= len(objects) or objects[wanted.number][0] != digest:
                    raise BlobDamaged(f"it is not where the index has it; remove {self._index_path}")
                return frame.content(wanted.number)
            except FileNotFoundError:  # it has been moved, or is lost
                wanted = self.index().find(digest)
            except BlobDamaged as error:
                raise BlobDamaged(f"blob {digest.hex()} cannot be read: {error}") from error
        raise BlobMissing(f"no blob {digest.hex()} is stored any more; 'sandkeep verify' lists what is missing")

    def frame(self, entry: Entry) -> Frame:
        """The frame that an object was found in. Raises `FileNotFoundError` if its pack is gone, and `BlobDamaged`."""
        key = (entry.pack, entry.offset)
        with self._caching:
            found = self._frames.get(key)
            if found is not None:
                self._frames.move_to_end(key)
                return found
        with opened(self.path(entry.pack)) as file:
            found = pack_frame.read(file, entry.pack, entry.offset)
        with self._caching:
            if key not in self._frames:
                self._frames[key] = found
                self._cached += found.header.raw
            while self._cached > CACHE_BYTES and len(self._frames) > 1:
                self._cached -= self._frames.popitem(last=False)[1].header.raw
        return found

    def sample(self, share: float) -> Iterator[tuple[bytes, Entry]]:
        """The objects of a random `share` of the frames, in the order in which they lie."""
        found = self.index().all() if self.exist() else {}
        chosen: dict[tuple[bytes, int], bool] = {}
        for digest, entry in sorted(found.items(), key=lambda each: (each[1].pack, each[1].offset)):
            if chosen.setdefault((entry.pack, entry.offset), random.random() < share):
                yield digest, entry

    def forget(self) -> None:
        """Read all anew from now on."""
        with self._caching:
            self._frames.clear()
            self._cached = 0

    def path(self, pack: bytes) -> Path:
        """The file of a pack."""
        return self.root / f"{pack.hex()}.pack"

    def names(self) -> list[bytes]:
        """The packs that there are."""
        return sorted(bytes.fromhex(found[1]) for each in os.listdir(self.root) if (found := _NAME.fullmatch(each)))

    def acquire(self, *, archive: bool = False) -> tuple[bytes, int, int]:
        """A pack to append to: its name, its open file, on which the lock is, and where to go on. What is for the
        `archive` goes into other packs.

        Raises `OSError` and `BlobsUnavailable`.
        """
        while True:
            index = self.index()
            for pack in self.names():
                if (found := self._acquire(index, pack, archive)) is not None:
                    return found
            # It is taken as any other is: whoever looks first after it was made may have it, and write to it.
            os.close(os.open(self.path(secrets.token_bytes(16)), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _acquire(self, index: Index, pack: bytes, archive: bool) -> tuple[bytes, int, int] | None:
        try:
            file = os.open(self.path(pack), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # One that was cut is left to whoever opens the index next.
            if not index.extent(pack).end <= os.fstat(file).st_size < MAX_PACK_BYTES:
                return None
            if not locked(file, self.path(pack)):
                return None
            if os.fstat(file).st_size and pack_frame.is_archive(file, pack) != archive:
                return None
            known = index.extent(pack).end
            end = self._settle(index, pack, file)
            if end > known:
                self.prune(index)
            os.ftruncate(file, end)
            if not end:
                self._sync_names()
            file, kept = -1, file
            return pack, kept, end
        finally:
            if file >= 0:
                os.close(file)

    @contextlib.contextmanager
    def changing(self) -> Iterator[Index]:
        """The index, which nobody makes anew meanwhile."""
        while True:
            index = self.index()
            with self._locked(fcntl.LOCK_SH):
                if self._is_current(index):
                    yield index
                    return

    def index(self) -> Index:
        """The index as it is now, even if another process has made it anew. Raises `BlobsUnavailable`."""
        index = self._index
        if index is not None and self._is_current(index):
            return index
        with self._opening:
            try:
                return self._open()
            except (lmdb.Error, OSError) as error:
                raise BlobsUnavailable(f"the index of the packs in {self.root} cannot be made: {error}") from error

    def _is_current(self, index: Index) -> bool:
        try:
            found = os.stat(self._data)
        except FileNotFoundError:
            return False
        return index is self._index and (os.getpid(), found.st_dev, found.st_ino) == self._key

    def _open(self) -> Index:
        self.root.mkdir(mode=0o700, exist_ok=True)
        with self._locked(fcntl.LOCK_EX):
            try:
                index = pack_index.shared(self._index_path)
            except (FileNotFoundError, lmdb.Error):
                self._make()
                index = pack_index.shared(self._index_path)
            self._reconcile(index)
            found = os.stat(self._data)
            self._index, self._key = index, (os.getpid(), found.st_dev, found.st_ino)
        return index

    def _make(self) -> None:
        for left in self.root.glob(".*"):
            shutil.rmtree(left)
        new = self.root / f".index-{secrets.token_hex(4)}"
        pack_index.make(new)
        index = pack_index.shared(new)
        # Also packs that are written to at this moment: what their writers commit later, they index themselves.
        for pack in self.names():
            with opened(self.path(pack)) as file:
                self._settle(index, pack, file)
        self.prune(index)
        del index
        sync_folder(new)
        if self._index_path.exists():
            self._index_path.rename(self.root / f".old-{secrets.token_hex(4)}")
        new.rename(self._index_path)
        sync_folder(self.root)
        for left in self.root.glob(".*"):
            shutil.rmtree(left)

    def _reconcile(self, index: Index) -> None:
        """Make the index agree with the packs that nobody appends to at this moment."""
        known, there = index.extents(), self.names()
        sizes = {pack: _size(self.path(pack)) for pack in there}
        # What is gone, or was cut, is missing from now on, and stored again by whoever has it.
        lost = {pack for pack, extent in known.items() if sizes.get(pack, -1) < extent.end}
        index.forget(lost)
        settled = False
        for pack in there:
            if pack in lost or pack not in known or sizes[pack] != known[pack].end:
                with contextlib.suppress(FileNotFoundError), opened(self.path(pack)) as file:
                    if locked(file, self.path(pack)):
                        self._settle(index, pack, file)
                        settled = True
        if lost or settled:
            self.prune(index)

    def prune(self, index: Index) -> set[bytes]:
        """Drop the recipes of which a part is not there, so that they are stored again with it; returns them."""

        def complete(entry: Entry, entries: Entries) -> bool:
            try:
                return entries.keys() >= set(parts(self.frame(entry).content(entry.number)))
            except (BlobDamaged, FileNotFoundError):
                return False

        gone, _ = index.judge(
            lambda entries: {
                digest: entry
                for digest, entry in entries.items()
                if entry.kind is not Kind.RECIPES or complete(entry, entries)
            }
        )
        return set(gone)

    def _settle(self, index: Index, pack: bytes, file: int) -> int:
        """Index what was committed to a pack and is not in the index; returns where the last batch ends."""
        known = index.extent(pack).end
        if os.fstat(file).st_size == known:
            return known
        found, end = pack_frame.committed(file, pack, known)
        if end > known:
            os.fdatasync(file)
            index.commit(Batched(pack, end, [(offset, header.kind, header.objects) for offset, header in found]))
        return end

    def _sync_names(self) -> None:
        for folder in (self.root, self.root.parent, self.root.parent.parent):
            sync_folder(folder)

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with opened(self.root / "lock", os.O_RDWR | os.O_CREAT) as file:
            fcntl.flock(file, how)
            yield


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The file at `path`, open as a descriptor. Raises `OSError`."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def locked(file: int, path: Path) -> bool:
    """Lock the open file at `path`, unless somebody has, or it is gone from there; whether that was done."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
