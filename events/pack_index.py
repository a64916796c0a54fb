"""Where each object lies in the packs: an LMDB environment, made anew from the packs whenever it is missing.

    objects  digest      -> where it lies, and since when it has been condemned
    packs    pack's name -> how much of it is indexed, and how many bytes that is unpacked
    epoch    "epoch"     -> a number by chance, another one whenever something may have been condemned or removed

Who found something while it was one epoch can rely on it as long as it still is.

A commit is synced, so what is found here is durable in its pack too: that is synced first. Any number of threads and
processes may use it; LMDB lets one write at a time. An environment may be open only once in a process, so all who use
one share it.

Raises `BlobsUnavailable` when LMDB fails.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import final
from weakref import WeakValueDictionary

import lmdb
import msgspec

from sandkeep.events import lmdb_file
from sandkeep.events.errors import BlobMissing, BlobsUnavailable
from sandkeep.events.pack_frame import DIGEST_BYTES, Kind

MAP_BYTES = 64 << 30
"""Address space for the index, at a hundred bytes an object; the file grows only as it is written."""

_DATABASES = (b"objects", b"packs", b"epoch")
_ENTRY = struct.Struct(">16sQIIBQ")
_PACK = struct.Struct(">QQ")
_CONDEMNED = struct.Struct(">Q")
_NEVER = _CONDEMNED.pack(0)
_FAILURES = (lmdb.Error, struct.error, ValueError)
_shared: WeakValueDictionary[tuple[int, int, int], Index] = WeakValueDictionary()
_sharing = threading.Lock()


class Entry(msgspec.Struct, frozen=True):
    """Where an object lies: its pack, the frame's offset in it, and its number in the frame; its length and kind. If
    `condemned` is not 0, nobody wanted it at that time, in ns, and it must be stored again to be used."""

    pack: bytes
    offset: int
    number: int
    length: int
    kind: Kind
    condemned: int = 0


class Extent(msgspec.Struct, frozen=True):
    """How far a pack is indexed, and how many bytes the objects are that were put into it so far."""

    end: int
    raw: int


Entries = dict[bytes, Entry]
"""Entries by the digests of their objects."""

Verdict = Callable[[Entries], Entries]
"""What is to be left of all entries, and how."""


Placed = tuple[int, Kind, Sequence[tuple[bytes, int]]]
"""A frame: its offset, its kind, and its objects by digest and length."""


class Batched(msgspec.Struct, frozen=True):
    """What is committed together: a pack, how far it is synced, and the frames that were put into it.

    What it `relies` on is a row of digests that were found in the index when it was the given `epoch`, or later. What
    was `moved` lay in another pack before.
    """

    pack: bytes
    end: int
    frames: Sequence[Placed]
    relies: bytes | bytearray = b""
    epoch: bytes = b""
    moved: bool = False


def shared(path: Path) -> Index:
    """The index in the folder `path`, opened unless this process has it open.

    Raises `FileNotFoundError` if there is none, `lmdb.Error` if it cannot be what it was.
    """
    found = os.stat(path / "data.mdb")
    key = (os.getpid(), found.st_dev, found.st_ino)
    with _sharing:
        index = _shared.get(key)
        if index is None:
            if lmdb_file.is_cut(path):  # mapping it would end this process
                raise lmdb.CorruptedError(f"{path} was cut")
            index = _shared[key] = Index(path)
        return index


def make(path: Path) -> None:
    """Make an empty index in the new folder `path`. Raises `lmdb.Error` and `OSError`."""
    path.mkdir(mode=0o700)
    lmdb_file.make(path / "data.mdb", _DATABASES, {}, map_bytes=MAP_BYTES)


@final
class Index:
    """An open index; see `shared`."""

    def __init__(self, path: Path) -> None:
        self._env = lmdb.open(
            os.fspath(path), map_size=MAP_BYTES, max_dbs=len(_DATABASES), max_readers=1024, mode=0o600, create=False
        )
        # A reader that was killed would hold its place in the table, and old pages, for ever.
        self._env.reader_check()
        self._objects, self._packs, self._epochs = (self._env.open_db(name, create=False) for name in _DATABASES)

    def epoch(self) -> bytes:
        """What stays the same as long as nothing is condemned or removed."""
        with _failing(), self._env.begin(db=self._epochs) as txn:
            found = txn.get(b"epoch")
        if found is None:
            with _failing(), self._env.begin(write=True, db=self._epochs) as txn:
                found = txn.get(b"epoch") or self._new_epoch(txn)
        return bytes(found)

    def _new_epoch(self, txn: lmdb.Transaction) -> bytes:
        epoch = secrets.token_bytes(16)
        txn.put(b"epoch", epoch, db=self._epochs)
        return epoch

    def find(self, digest: bytes) -> Entry | None:
        """Where the object lies."""
        try:  # as `_failing` does, which would cost as much as the rest
            with self._env.begin(db=self._objects) as txn:
                found = txn.get(digest)
            return None if found is None else _decode(found)
        except _FAILURES as error:
            raise _failed(error) from error

    def extent(self, pack: bytes) -> Extent:
        """How far a pack is indexed."""
        with _failing(), self._env.begin(db=self._packs) as txn:
            found = txn.get(pack)
            return Extent(0, 0) if found is None else Extent(*_PACK.unpack(found))

    def extents(self) -> dict[bytes, Extent]:
        """How far each pack is indexed."""
        with _failing(), self._env.begin(db=self._packs) as txn:
            return {pack: Extent(*_PACK.unpack(value)) for pack, value in txn.cursor()}

    def all(self) -> Entries:
        """Every entry there is."""
        with _failing(), self._env.begin(db=self._objects) as txn:
            return {digest: _decode(value) for digest, value in txn.cursor()}

    def knows(self, digest: bytes) -> bool:
        """Whether the object lies somewhere, and is not condemned."""
        try:
            with self._env.begin(db=self._objects) as txn:
                found = txn.get(digest)
        except _FAILURES as error:
            raise _failed(error) from error
        return found is not None and found[-_CONDEMNED.size :] == _NEVER

    def within(self, pack: bytes) -> Entries:
        """The entries of one pack, in the order in which they lie in it."""
        with _failing(), self._env.begin(db=self._objects) as txn:
            found = [(digest, _decode(value)) for digest, value in txn.cursor() if value[: len(pack)] == pack]
        return dict(sorted(found, key=lambda each: (each[1].offset, each[1].number)))

    def commit(self, batched: Batched) -> None:
        """Durably enter a batch, and see to what it relies on as `rely` does. Of what was moved, what has been removed
        since stays so, and so does what is condemned. Raises `BlobMissing`: nothing is entered then.
        """
        stored = sorted(
            (digest, _ENTRY.pack(batched.pack, offset, number, length, kind, 0))
            for offset, kind, objects in batched.frames
            for number, (digest, length) in enumerate(objects)
        )
        with _failing(), self._env.begin(write=True, db=self._objects) as txn:
            if batched.relies and txn.get(b"epoch", db=self._epochs) != batched.epoch:
                self._renew(txn, batched.relies)
            before = Extent(*_PACK.unpack(txn.get(batched.pack, db=self._packs) or _PACK.pack(0, 0)))
            # Another may have found the batch in the pack, when he made the index anew.
            if before.end < batched.end:
                raw = before.raw + sum(length for _, _, objects in batched.frames for _, length in objects)
                txn.put(batched.pack, _PACK.pack(batched.end, raw), db=self._packs)
            for digest, value in stored:
                if batched.moved:
                    found = txn.get(digest)
                    if found is None:
                        continue
                    value = value[: -_CONDEMNED.size] + found[-_CONDEMNED.size :]
                txn.put(digest, value)

    def rely(self, digests: bytes | bytearray, epoch: bytes) -> bytes:
        """Let what was found in that epoch or later, and was condemned since, be so no more; returns the epoch that it
        is. Raises `BlobMissing` if something was removed even."""
        now = self.epoch()
        if now != epoch:
            with _failing(), self._env.begin(write=True, db=self._objects) as txn:
                self._renew(txn, digests)
                now = bytes(txn.get(b"epoch", db=self._epochs) or self._new_epoch(txn))
        return now

    def _renew(self, txn: lmdb.Transaction, digests: bytes | bytearray) -> None:
        for start in range(0, len(digests), DIGEST_BYTES):
            digest = bytes(digests[start : start + DIGEST_BYTES])
            found = txn.get(digest)
            if found is None:
                raise BlobMissing(f"blob {digest.hex()} was removed while a batch relied on it; try it again")
            if found[-_CONDEMNED.size :] != _NEVER:
                txn.put(digest, bytes(found[: -_CONDEMNED.size]) + _NEVER)

    def judge(self, verdict: Verdict) -> tuple[Entries, Entries]:
        """Do what `verdict` makes of all entries, in one transaction; no entry is added meanwhile.

        Returns the entries that are gone and those that stay.
        """
        with _failing(), self._env.begin(write=True, db=self._objects) as txn:
            before = {digest: _decode(value) for digest, value in txn.cursor()}
            after = verdict(before)
            if any(after.get(digest) != entry for digest, entry in before.items()):
                self._new_epoch(txn)
            for digest, entry in before.items():
                if digest not in after:
                    txn.delete(digest)
                elif after[digest] != entry:
                    txn.put(digest, _encode(after[digest]))
        return {digest: entry for digest, entry in before.items() if digest not in after}, after

    def release(self, pack: bytes) -> bool:
        """Durably forget a pack in which nothing is left; whether that is so."""
        with _failing(), self._env.begin(write=True, db=self._objects) as txn:
            if any(value[: len(pack)] == pack for value in txn.cursor().iternext(keys=False, values=True)):
                return False
            txn.delete(pack, db=self._packs)
            return True

    def forget(self, packs: Iterable[bytes]) -> None:
        """Durably forget packs and all that was in them."""
        gone = set(packs)
        if not gone:
            return
        with _failing(), self._env.begin(write=True, db=self._objects) as txn:
            for digest in [digest for digest, value in txn.cursor() if value[:16] in gone]:
                txn.delete(digest)
            for pack in gone:
                txn.delete(pack, db=self._packs)
            self._new_epoch(txn)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise _failed(error) from error


def _failed(error: Exception) -> BlobsUnavailable:
    return BlobsUnavailable(
        f"the index of the packs cannot be used: {error}; see that the disk is not full,"
        f" or remove the folder blobs/packs/index, which is made anew"
    )


def _encode(entry: Entry) -> bytes:
    return _ENTRY.pack(entry.pack, entry.offset, entry.number, entry.length, entry.kind, entry.condemned)


def _decode(value: bytes) -> Entry:
    pack, offset, number, length, kind, condemned = _ENTRY.unpack(value)
    return Entry(pack, offset, number, length, Kind(kind), condemned)
