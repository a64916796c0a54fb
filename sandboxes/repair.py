"""Bringing back what is damaged or gone in the store of blobs, from wherever else it still is.

What is damaged counts as missing first, so that nobody relies on it. Then these are asked, each for what the ones
before it did not have: the packs themselves, in which much of a damaged frame can be read, and which may hold a thing
twice; what the caller names: other keeps, their folders of blobs, audit bundles; and the workspaces of the tasks as
they are now, which are recorded once more. Everything is verified against its digest before it counts.

It can be done beside all other work, and again if it is cut off.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import msgspec

from sandkeep.events import BadInput, BlobDamaged, BlobMissing, BlobStore, bundle
from sandkeep.events.catalogue import references
from sandkeep.events.errors import BundleDamaged
from sandkeep.events.vouched import Trees
from sandkeep.sandboxes import manifest, snapshot
from sandkeep.sandboxes.damage import Affected, affected
from sandkeep.sandboxes.errors import CheckpointRefused

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_BYTES = 16 << 30
"""The most that one blob in a bundle may claim to be."""


class Repaired(msgspec.Struct, frozen=True):
    """The blobs that were brought back, those that are still missing, and what cannot be restored without them."""

    repaired: tuple[str, ...]
    missing: tuple[str, ...]
    affected: tuple[Affected, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


def repair(keep: Keep, sources: Sequence[Path] = (), progress: Callable[[str], None] = lambda words: None) -> Repaired:
    """Bring back what is damaged or gone of all that the log vouches for. Raises `BadInput` for what is no source."""
    stores = [_store(path) for path in sources if not _is_bundle(path)]
    bundles = [path for path in sources if _is_bundle(path)]
    progress("verifying blobs")
    lost = keep.blobs.discard(keep.blobs.verify())
    keep.blobs.salvage(lost)
    missing, ever = missing_blobs(keep), set(lost)
    asked: list[tuple[str, Callable[[set[str]], None]]] = [
        *((f"looking into {path}", partial(_take, keep, store)) for path, store in stores),
        *((f"looking into {path}", partial(_unpack, keep, path)) for path in bundles),
        ("recording the workspaces once more", lambda _: _record(keep)),
    ]
    for words, ask in asked:
        # A manifest that was brought back may name more that is missing.
        before: set[str] = set()
        while missing and missing != before:
            progress(f"{len(missing)} blobs are missing; {words}")
            ever |= missing
            ask(missing)
            before, missing = missing, missing_blobs(keep)
    back = sorted(each for each in ever if each in keep.blobs)
    return Repaired(tuple(back), tuple(sorted(missing)), tuple(affected(keep, missing)))


def missing_blobs(keep: Keep) -> set[str]:
    """What the log vouches for and is not stored, as far as the manifests that are stored tell."""
    found: set[str] = set()
    trees, waiting = Trees(), list[str]()
    for record in keep.log.read():
        if not trees.take(record):
            found.update(each.digest for each in references(record.event) if each.digest not in keep.blobs)
    waiting += trees.left()
    seen = set(waiting)
    while waiting:
        current = waiting.pop()
        try:
            below = list(manifest.references(current, keep.blobs.get(current)))
        except (BlobDamaged, BlobMissing):
            found.add(current)
            continue
        for each in below:
            if each.digest not in seen:
                seen.add(each.digest)
                if each.tree:
                    waiting.append(each.digest)
                elif each.digest not in keep.blobs:
                    found.add(each.digest)
    return found


def _is_bundle(path: Path) -> bool:
    return path.is_file()


def _store(path: Path) -> tuple[Path, BlobStore]:
    """The blobs of another keep, or in a folder of blobs."""
    for folder in (path / "blobs", path / ".sandkeep" / "blobs", path):
        if (folder / "packs").is_dir() or any(folder.glob("??/" + "?" * 62)):
            return path, BlobStore(folder)
    raise BadInput(f"{path} is neither a keep, nor a folder of blobs, nor an audit bundle; name one of these")


def _take(keep: Keep, store: BlobStore, wanted: set[str]) -> None:
    with keep.blobs.batch() as batch:
        for digest in sorted(wanted):
            with contextlib.suppress(BlobDamaged, BlobMissing):
                for _ in store.chunks(digest):  # else what is damaged would be put under another digest
                    pass
                batch.put_stream(_Pieces(store.chunks(digest)))


def _unpack(keep: Keep, path: Path, wanted: set[str]) -> None:
    """Take what a bundle holds, as far as it is one."""
    with open(path, "rb") as file, keep.blobs.batch() as batch, contextlib.suppress(BundleDamaged):
        entries = bundle.read(file)
        for entry in entries:
            if isinstance(entry, bundle.Tree | bundle.Blob):
                pieces = bundle.unpack(entries, entry.digest, _MOST_BYTES)
                with contextlib.suppress(BlobDamaged):
                    if entry.digest in wanted:
                        batch.put_stream(_Pieces(pieces))
                    for _ in pieces:
                        pass


def _record(keep: Keep) -> None:
    for task in keep.tasks():
        with contextlib.suppress(CheckpointRefused, FileNotFoundError):
            root = os.open(keep.task(task.id).workspace, _FOLDER)
            try:
                snapshot.take(root, keep.blobs)
            finally:
                os.close(root)


@final
class _Pieces:
    """Content that comes in pieces, as a batch reads it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        while not self._rest:
            found = next(self._pieces, None)
            if found is None:
                return b""
            self._rest = found
        given, self._rest = self._rest[:size], self._rest[size:]
        return given
