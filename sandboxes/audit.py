"""The audit of a keep: its key, its published checkpoints, and bundles for those who trust nobody.

A bundle (see `events.bundle`) holds all records, those of a range of positions, or those of one task. `verify_bundle`
is for its receiver: it needs the file and a verifier key, no keep and no engine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sandkeep.events import BadInput, BlobMissing, LogDamaged, audit, bundle, codec, notary
from sandkeep.events import catalogue as ev
from sandkeep.events.audit import AuditReport
from sandkeep.events.durable import private
from sandkeep.events.errors import BadKey
from sandkeep.events.merkle import Tree, leaf_hash
from sandkeep.events.note import MAX_NOTE_BYTES, Signer, VerifierKey, open_checkpoint
from sandkeep.events.vouched import Trees
from sandkeep.projections import registry
from sandkeep.sandboxes import manifest
from sandkeep.sandboxes.errors import KeyUnavailable

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_MAX_KEY_BYTES = 4096


class Exported(msgspec.Struct, frozen=True):
    """What was written into a bundle: how many records of which positions, vouched for by a note for `size` records."""

    file: str
    bytes: int
    size: int
    first: int
    last: int
    stream: str | None
    records: int
    blobs: int | None


def make_key(folder: Path) -> bytes:
    """Make a keep's audit signing key (Ed25519, RFC 8032) and return its public half, raw."""
    key = Ed25519PrivateKey.generate()
    folder.mkdir(mode=0o700)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(folder / "audit.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(private)
        file.flush()
        os.fsync(descriptor)
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def signer(path: Path, identity: str) -> Signer:
    """The audit key of the keep with this id in `path`. Raises `KeyUnavailable`."""
    file = path / "keys" / "audit.pem"
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnavailable(f"the audit key {file} cannot be read: {error}; restore it from a copy") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnavailable(f"{file} holds no Ed25519 key; restore it from a copy")
    return Signer(f"sandkeep/{identity}", key)


def keep_signer(keep: Keep) -> Signer:
    """The audit key of an open keep, which is the one that the log's first event names. Raises `KeyUnavailable`."""
    found = signer(keep.path, keep.id)
    first = next(keep.log.read(until=1), None)
    named = first.event if first is not None else None
    if not isinstance(named, ev.KeepCreated) or named.public_key != found.key.public:
        raise KeyUnavailable("keys/audit.pem is not the key that the log names; restore it from a copy")
    return found


def export(
    keep: Keep,
    file: Path,
    *,
    task: str | None = None,
    first: int | None = None,
    last: int | None = None,
    blobs: bool = True,
    progress: Callable[[str], None] = lambda message: None,
) -> Exported:
    """Write a bundle of all records, of those from position `first` to `last`, or of a task's; `file` must be new.

    Publishes a checkpoint first. With `blobs` the content that the records vouch for is in it too. Raises `BadInput`,
    `TaskNotFound`, `LogDamaged` if the log is not what its notes were signed for, `BlobMissing` and `BlobDamaged`;
    nothing is left behind then.
    """
    stream = None if task is None else registry.STREAM + keep.task(task).id
    if stream is not None and (first, last) != (None, None):
        raise BadInput("a bundle holds a task or a range of positions, not both; give one of them")
    progress("hashing the records")
    tree, notes = _history(keep)
    header = bundle.Header(first or 1, last or tree.size, stream, blobs)
    if not header.first <= header.last <= tree.size:
        raise BadInput(f"positions {header.first} to {header.last} are no range of this log; it has 1 to {tree.size}")
    writing = _Writing(keep, header, tree, notes, progress)
    target = _create(file)
    try:
        with target:
            bundle.write(target, writing.entries())
            target.flush()
            os.fsync(target.fileno())
            size = target.tell()
    except BaseException as error:
        with contextlib.suppress(OSError):
            file.unlink()
        if isinstance(error, BlobMissing) and header.last < tree.size:
            raise BlobMissing(f"{error}; if a checkpoint expired later, export up to that, or no content") from error
        raise
    return Exported(
        str(file), size, tree.size, header.first, header.last, stream, writing.records, writing.blobs if blobs else None
    )


def verify_bundle(file: str | os.PathLike[str], key: str, *, seen: Sequence[bytes] = ()) -> AuditReport:
    """Judge the bundle `file` by a verifier key, written out or in a file; `seen` are notes kept from before.

    Raises `BadKey`, `NotABundle`, and `OSError` if the file cannot be read.
    """
    with open(file, "rb") as source:
        return audit.verify(source, read_key(key), manifest.references, seen)


def read_key(key: str) -> VerifierKey:
    """The verifier key that `key` is, or that stands in the file of that name. Raises `BadKey`."""
    try:
        return VerifierKey.parse(key)
    except BadKey:
        try:
            with open(key, "rb") as file:
                text = file.read(_MAX_KEY_BYTES).decode()
        except (OSError, ValueError):  # no such file, a name that none can have, or no text
            text = ""
        if not text:
            raise
        return VerifierKey.parse(text.strip())


def read_note(file: Path) -> bytes:
    """A note that an auditor has kept; judged where it is used."""
    with open(file, "rb") as source:
        return source.read(MAX_NOTE_BYTES + 1)


def _history(keep: Keep) -> tuple[Tree, list[tuple[int, bytes]]]:
    """The tree of the newest note, published now, and all notes with their sizes, oldest first; compared."""
    key = keep_signer(keep)
    newest = open_checkpoint(notary.publish(keep.log, key), key.key)
    tree = Tree()
    for leaf in keep.log.leaves(until=newest.size):
        tree.append(leaf_hash(leaf))
    notes = [(size, each.note) for size, each in reversed(keep.log.notes()) if size <= newest.size]
    for size, note in notes:
        if open_checkpoint(note, key.key).root != tree.root(size):
            raise LogDamaged(
                f"the first {size} records are not those that the note for them vouches for; run 'sandkeep verify'"
            )
    return tree, notes


def _create(file: Path) -> BinaryIO:
    try:
        return open(file, "xb", opener=private)  # it holds what ran in the tasks, and is for whom its maker gives it to
    except FileExistsError as error:
        raise BadInput(f"{file} exists already; name a new file") from error


@final
class _Writing:
    """The entries of a bundle that is being written, and what has been counted on the way."""

    def __init__(
        self, keep: Keep, header: bundle.Header, tree: Tree, notes: list[tuple[int, bytes]], say: Callable[[str], None]
    ) -> None:
        self._keep, self._header, self._tree, self._notes, self._say = keep, header, tree, notes, say
        self._trees: dict[str, None] = {}
        self._contents: dict[str, None] = {}
        self._checkpoints = Trees()
        self.records = self.blobs = 0

    def entries(self) -> Iterator[bundle.Entry]:
        """All of it, in order."""
        yield self._header
        before = 0
        for size, note in self._notes:
            yield bundle.Note(note, tuple(self._tree.consistency(before, size)))
            before = size
        yield from self._leaves()
        if self._header.blobs:
            yield from self._content()
        yield bundle.End()

    def _leaves(self) -> Iterator[bundle.Entry]:
        header, size = self._header, self._tree.size
        whole = header.stream is None and (header.first, header.last) == (1, size)
        position = header.first - 1
        for leaf in self._keep.log.leaves(position, until=header.last):
            position += 1
            record = codec.decode_record(leaf)
            if header.stream not in (None, record.stream):
                continue
            self.records += 1
            if self.records % 1000 == 0:
                self._say(f"writing records: {self.records}")
            yield bundle.Leaf(leaf, () if whole else tuple(self._tree.inclusion(position - 1, size)))
            if not self._checkpoints.take(record):
                self._refer(ev.references(record.event))
        self._trees |= dict.fromkeys(self._checkpoints.left())

    def _refer(self, references: Iterator[ev.Reference]) -> None:
        for each in references:
            (self._trees if each.tree else self._contents)[each.digest] = None

    def _content(self) -> Iterator[bundle.Entry]:
        # Manifests first: whoever reads then knows which other content must come. Each is read once, since those that
        # it refers to are put behind it.
        waiting = list(self._trees)
        for digest in waiting:
            data = self._keep.blobs.get(digest)
            known = len(self._trees)
            self._refer(manifest.references(digest, data))
            waiting += list(self._trees)[known:]
            yield from self._blob(bundle.Tree(digest), iter([data]))
        for digest in self._contents:
            yield from self._blob(bundle.Blob(digest), self._keep.blobs.chunks(digest))

    def _blob(self, entry: bundle.Entry, chunks: Iterator[bytes]) -> Iterator[bundle.Entry]:
        self.blobs += 1
        self._say(f"writing blobs: {self.blobs}")
        yield entry
        yield from bundle.pack(chunks)
