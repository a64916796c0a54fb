"""Content that is too large for an event, stored once under its BLAKE3 digest.

A blob by itself is one zstd file, `blobs/<2 hex digits>/<62 hex digits>`, written to a temporary name, synced and
renamed, and its folder synced: when `put` returns the content is durable, and a crash leaves no half blob under a
digest. Blobs that are stored together, in a *batch*, lie in packs (see `packs`), and are durable when it is committed.
Content is verified whenever it is read; what does not match raises `BlobDamaged` and is never returned.
Any number of threads and processes may write the same blob at once.

Garbage is swept beside writers. Storing a blob file anew renews its time, and only what has been old for a grace period
goes; it is moved aside first and moved back if its time was renewed in between, so a writer that found it is not
deceived. How packs are swept is told in `pack_sweep`.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import final

from blake3 import blake3

from sandkeep.events import pack_archive, pack_repair, pack_sweep
from sandkeep.events.batch import Batch, Source
from sandkeep.events.durable import private, sync_folder
from sandkeep.events.errors import BadInput, BlobDamaged, BlobMissing
from sandkeep.events.pack_frame import Kind, parts
from sandkeep.events.packs import Packs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK = 1 << 20
_LEVEL = 1
_ASIDE = ".aside"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@final
class BlobStore:
    """The blobs in the folder `root`, which is made if it is not there."""

    def __init__(self, root: Path, *, synced: bool = True) -> None:
        """Not `synced` it is a cache: what it holds may be gone, or fail verification, after a power loss."""
        self._root = root
        self._synced = synced
        self._folders: set[Path] = set()
        self._packs = Packs(root / "packs")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def batch(self) -> Batch:
        """Store many blobs with one sync: for a `with` block, which commits them all at its end.

        What is stored already is not stored again, and content that changed in part costs that part. See `Batch`.
        """
        return Batch(self._packs)

    def make_reserve(self) -> bool:
        """Set space aside for a batch that meets a full disk, if batches are stored here and there is plenty; whether
        that was done just now. Raises `OSError`."""
        return self._packs.exist() and self._packs.reserve.make()

    def epoch(self) -> bytes:
        """What stays the same as long as nothing that is stored by batches may have become garbage, or be lost."""
        return self._packs.epoch()

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its digest, 64 hex digits. Storing it again costs one look-up."""
        digest = blake3(data).hexdigest()
        return digest if self.renew(digest) else self.put_stream(io.BytesIO(data))[0]

    def put_stream(self, source: Source, limit: int | None = None) -> tuple[str, int]:
        """Store what `source` gives until its end, or its first `limit` bytes, in bounded memory.

        Returns the digest and the number of bytes.
        """
        temporary = self._root / f".{os.getpid()}-{secrets.token_hex(8)}"
        hasher, size = blake3(), 0
        compressor = zstd.ZstdCompressor(level=_LEVEL)
        try:
            with open(temporary, "xb", opener=private) as file:
                while chunk := source.read(_CHUNK if limit is None else min(_CHUNK, limit - size)):
                    size += len(chunk)
                    hasher.update(chunk)
                    file.write(compressor.compress(chunk))
                file.write(compressor.flush())
                file.flush()
                if self._synced:
                    os.fsync(file.fileno())
            digest = hasher.hexdigest()
            if not self.renew(digest):
                path = self._path(digest)
                if path.parent not in self._folders:
                    path.parent.mkdir(mode=0o700, exist_ok=True)
                    # Also if it was there: another writer may have made it, and not synced it yet.
                    self._sync(self._root)
                    self._folders.add(path.parent)
                temporary.rename(path)
                self._sync(path.parent)
            return digest, size
        finally:
            temporary.unlink(missing_ok=True)

    def adopt(self, other: BlobStore, digests: Iterable[str]) -> set[str]:
        """Store durably what `other`, on the same file system, holds of these blobs; returns those stored now.

        Each is verified first; what is damaged or missing is left out. Many cost far fewer syncs than `put` of each.
        """
        stored: set[str] = set()
        folders: set[Path] = set()
        for digest in digests:
            if digest in stored or self.renew(digest):
                stored.add(digest)
                continue
            path, source = self._path(digest), other._path(digest)
            try:
                for _ in other.chunks(digest):
                    pass
                if not source.exists():  # it is in a pack there
                    self.put(other.get(digest))
                    stored.add(digest)
                    continue
                with open(source, "rb") as file:
                    os.fsync(file.fileno())
                path.parent.mkdir(mode=0o700, exist_ok=True)
                os.link(source, path)
            except FileExistsError:  # another writer was quicker
                pass
            except (BlobMissing, BlobDamaged, FileNotFoundError):
                continue
            os.utime(path)
            folders.add(path.parent)
            stored.add(digest)
        for folder in (*folders, self._root) if folders else ():
            self._sync(folder)
        return stored

    def get(self, digest: str) -> bytes:
        """The content of a blob. Raises `BlobMissing`, or `BlobDamaged` if what is stored is something else."""
        return b"".join(self.chunks(digest))

    def pieces(self, digest: str) -> dict[str, int]:
        """What a blob is stored as, by digest, and how long each is: itself, or the chunks of a large one in a pack.

        Nothing is read but where they lie and which they are; the length of a blob by itself is that of its file.
        Raises `BlobMissing` and `BlobDamaged`.
        """
        entry = self._packs.find(self._key(digest))
        if entry is None:
            try:
                return {digest: self._path(digest).stat().st_size}
            except FileNotFoundError as error:
                raise BlobMissing(f"no blob {digest} is stored; 'sandkeep verify' lists what is missing") from error
        if entry.kind is not Kind.RECIPES:
            return {digest: entry.length}
        chunks = parts(self._packs.read(bytes.fromhex(digest), entry))
        return {chunk.hex(): lies.length for chunk in chunks if (lies := self._packs.find(chunk)) is not None}

    def chunks(self, digest: str) -> Iterator[bytes]:
        """The content of a blob in pieces of bounded size.

        The digest can only be checked at the end: `BlobDamaged` may follow pieces already given, so nothing may be made
        final before the iterator has ended.
        """
        entry = self._packs.find(self._key(digest))
        return self._file_chunks(digest) if entry is None else self._packs.chunks(bytes.fromhex(digest), entry)

    def _file_chunks(self, digest: str) -> Iterator[bytes]:
        path = self._path(digest)
        hasher = blake3()
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(path, "rb"))
            except FileNotFoundError as error:
                raise BlobMissing(f"no blob {digest} is stored; 'sandkeep verify' lists what is missing") from error
            decompressor = zstd.ZstdDecompressor()
            try:
                while not decompressor.eof:
                    data = file.read(_CHUNK) if decompressor.needs_input else b""
                    if not data and decompressor.needs_input:
                        raise BlobDamaged(f"blob {digest} is cut short")
                    piece = decompressor.decompress(data, max_length=_CHUNK)
                    hasher.update(piece)
                    yield piece
            except zstd.ZstdError as error:
                raise BlobDamaged(f"blob {digest} cannot be read: {error}") from error
            if decompressor.unused_data or file.read(1) or hasher.hexdigest() != digest:
                raise BlobDamaged(f"blob {digest} does not match its digest; restore {path} from a copy")

    def sweep(self, wanted: Callable[[str], bool], grace_seconds: float) -> tuple[int, int]:
        """Remove the blobs that are not `wanted` and have not been stored anew for `grace_seconds`, and what killed
        writers left; returns how many there were, and how many bytes smaller the store is. What is in a pack goes once
        a sweep that long ago did not want it either, and a pack shrinks when it is mostly garbage. Safe beside writers,
        if the grace period is longer than any takes from storing a blob to storing the event that refers to it.

        Raises `BlobMissing` and `BlobDamaged` if it cannot be told what a wanted blob consists of.
        """
        removed, size = pack_sweep.sweep(self._packs, wanted, grace_seconds)
        before = time.time() - grace_seconds
        for path in self._root.glob(f"*/*{_ASIDE}"):  # left by a sweep that was cut off
            path.rename(path.with_name(path.name.removesuffix(_ASIDE)))
        for path in (*self._root.glob("??/*"), *self._root.glob(".*-*")):
            if _DIGEST.fullmatch(path.parent.name + path.name) and wanted(path.parent.name + path.name):
                continue
            bytes_freed = _remove_if_old(path, before)
            removed, size = removed + (bytes_freed > 0), size + bytes_freed
        return removed, size

    def archive(self, age_seconds: float, most_bytes: int) -> tuple[int, int]:
        """Compress harder what has lain in packs for that long, a part at a time. See `pack_archive.archive`."""
        return pack_archive.archive(self._packs, age_seconds, most_bytes)

    def verify(self, share: float = 1.0) -> Iterator[str]:
        """The digests of the blobs that are not what they were, of all, or of a random `share` of files and frames.

        They are read from the disk, whatever was read before.
        """
        self.forget()
        for path in sorted(self._root.glob("??/*")):
            digest = path.parent.name + path.name
            if _DIGEST.fullmatch(digest) and random.random() < share and not _is_whole(self._file_chunks(digest)):
                yield digest
        for key, entry in self._packs.sample(share):
            if not _is_whole(self._packs.chunks(key, entry)):
                yield key.hex()

    def discard(self, digests: Iterable[str]) -> set[str]:
        """Let what is damaged of these blobs, and what consists of it, count as missing, so that whoever has it stores
        it again. Returns what does now; the damaged files stay for a while under other names."""
        suspects = set(digests)
        gone = {digest.hex() for digest in pack_repair.discard(self._packs, map(self._key, suspects))}
        for digest in suspects:
            path = self._path(digest)
            if path.exists() and not _is_whole(self._file_chunks(digest)):
                with contextlib.suppress(FileNotFoundError):
                    path.rename(path.with_name(f"{path.name}.damaged"))
                    gone.add(digest)
        return gone

    def salvage(self, digests: Iterable[str]) -> set[str]:
        """Store anew what can still be read of these in some pack, also in damaged ones; returns what was."""
        return {digest.hex() for digest in pack_repair.salvage(self._packs, map(self._key, digests))}

    def forget(self) -> None:
        """Read what is in packs from the disk from now on, whatever was read before."""
        self._packs.forget()

    def _sync(self, folder: Path) -> None:
        if self._synced:
            sync_folder(folder)

    def renew(self, digest: str) -> bool:
        """Whether the blob is there; if so, whoever sweeps leaves it for a while."""
        entry = self._packs.find(self._key(digest))
        if entry is not None and not entry.condemned:
            return True
        try:
            os.utime(self._path(digest))
        except FileNotFoundError:
            return False
        return True

    def __contains__(self, digest: str) -> bool:
        return self._packs.find(self._key(digest)) is not None or self._path(digest).exists()

    def _key(self, digest: str) -> bytes:
        if not _DIGEST.fullmatch(digest):
            raise BadInput(f"{digest!r} is no blob digest; it has 64 hexadecimal digits")
        return bytes.fromhex(digest)

    def _path(self, digest: str) -> Path:
        digest = self._key(digest).hex()
        return self._root / digest[:2] / digest[2:]


def _is_whole(chunks: Iterator[bytes]) -> bool:
    try:
        for _ in chunks:
            pass
    except (BlobDamaged, BlobMissing):
        return False
    return True


def _remove_if_old(path: Path, before: float) -> int:
    """Remove a file unless it is newer than `before`; returns its size, 0 if it stays or is gone."""
    aside = path.with_name(path.name + _ASIDE)
    try:
        if path.stat().st_mtime >= before:
            return 0
        path.rename(aside)
        found = aside.stat()
        if found.st_mtime >= before:
            aside.rename(path)
            return 0
        aside.unlink()
    except FileNotFoundError:
        return 0
    return found.st_size
