"""Judging an audit bundle: with the bundle and a verifier key, and trusting nobody.

What holds it together: the notes are signed; the tree of each begins with the tree of the one before; a record is in
the tree of the newest by its own proof or, when the bundle holds all records, because the root made from them is the
one that was signed; the content of blobs is what the digests in the records name. Whatever does not hold is a problem
with a stable code, and the verdict is that there is none.

Two things no bundle can show by itself. It may be an older one: give the notes you kept from before, as `seen`, and a
log that was cut or rewritten since, even by the holder of the key, is found out. And a bundle of one stream cannot show
that nothing came after its last record: only a bundle of all records can.

Nothing here needs a keep or an engine. Memory is bounded by the number of notes and blobs, not by their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, final

import msgspec

from sandkeep.events import (
    bundle,
    catalogue,
    codec,
)
from sandkeep.events.bundle import Blob, Entry, Header, Leaf, Note, Tree
from sandkeep.events.catalogue import Reference
from sandkeep.events.errors import BadNote, BlobDamaged, BundleDamaged, LogDamaged, SandkeepError, UnknownKey
from sandkeep.events.merkle import EMPTY_ROOT, Peaks, leaf_hash, verify_consistency, verify_inclusion
from sandkeep.events.note import Checkpoint, VerifierKey, open_checkpoint
from sandkeep.events.vouched import Trees

MAX_PROBLEMS = 100
"""How many problems are listed; more are only counted."""

MAX_MANIFEST_BYTES = 256 << 20
"""The largest manifest that is taken into memory: some millions of names in one folder."""


Manifests = Callable[[str, bytes], Iterable[Reference]]
"""What the manifest with this digest and content refers to; raises `BlobDamaged` if it is none."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that does not hold: a stable code, and what it is."""

    code: str
    message: str


class AuditReport(msgspec.Struct, frozen=True):
    """What was found: whether all holds, and what it is that does.

    The bundle holds `records` records from position `first` to `last`, those of `stream` only unless that is None. They
    are vouched for by the newest of `notes` notes, signed by `key` for `size` records with `root`, in hex. `blobs` were
    found to be what the records name; None if the bundle leaves out content. `found` counts the problems of which
    `problems` lists the first.
    """

    ok: bool
    key: str
    size: int
    root: str
    notes: int
    first: int
    last: int
    stream: str | None
    records: int
    blobs: int | None
    found: int
    problems: tuple[Problem, ...]


def verify(file: BinaryIO, key: VerifierKey, manifests: Manifests, seen: Sequence[bytes] = ()) -> AuditReport:
    """Judge the bundle in `file`. `seen` are notes of the same log that the auditor has kept from before.

    Raises `NotABundle`, and nothing else for whatever the bundle holds.
    """
    entries = bundle.read(file)
    header = next(entries)
    assert isinstance(header, Header)
    auditor = _Auditor(header, key, manifests)
    try:
        auditor.judge(entries, seen)
    except BundleDamaged as error:
        auditor.problem(error.code, str(error))
    return auditor.report()


@final
class _Auditor:
    """The judgement of one bundle, entry by entry."""

    def __init__(self, header: Header, key: VerifierKey, manifests: Manifests) -> None:
        self._header, self._key, self._manifests = header, key, manifests
        self._problems: list[Problem] = []
        self._found = 0
        self._notes: list[Checkpoint] = []
        self._roots: dict[int, bytes] = {}  # what the records are still to be compared with, when all are there
        self._peaks = Peaks()
        self._records = 0
        self._position = header.first - 1
        self._trees: set[str] = set()
        self._checkpoints = Trees()
        self._blobs: dict[str, int] = {}  # to the largest size that a record or manifest states for it
        self._given: set[tuple[type[Entry], str]] = set()

    def problem(self, code: str, message: str) -> None:
        """Note something that does not hold."""
        self._found += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(code, message))

    def report(self) -> AuditReport:
        """The verdict so far."""
        newest, header = self._newest, self._header
        return AuditReport(
            ok=self._found == 0,
            key=str(self._key),
            size=newest.size,
            root=newest.root.hex(),
            notes=len(self._notes),
            first=header.first,
            last=header.last,
            stream=header.stream,
            records=self._records,
            blobs=len(self._given) if header.blobs else None,
            found=self._found,
            problems=tuple(self._problems),
        )

    def judge(self, entries: Iterator[Entry], seen: Sequence[bytes]) -> None:
        """Go through the bundle. Raises `BundleDamaged` where it cannot be read on."""
        waiting = True
        for entry in entries:
            if isinstance(entry, Note):
                self._note(entry)
                continue
            if waiting:
                waiting = False
                if not self._begin(seen):
                    return
            if isinstance(entry, Leaf):
                self._leaf(entry)
                continue
            if not self._trees:  # all records come before all content
                self._trees.update(self._checkpoints.left())
            if isinstance(entry, Tree):
                self._tree(entry.digest, entries)
            elif isinstance(entry, Blob):
                self._blob(entry.digest, entries)
        self._end()

    @property
    def _newest(self) -> Checkpoint:
        return self._notes[-1] if self._notes else Checkpoint(self._key.name, 0, EMPTY_ROOT)

    @property
    def _all(self) -> bool:
        """Whether the bundle says that it holds every record that the newest note vouches for."""
        return self._header.stream is None and (self._header.first, self._header.last) == (1, self._newest.size)

    def _open(self, note: bytes, whose: str) -> Checkpoint | None:
        try:
            return open_checkpoint(note, self._key)
        except UnknownKey as error:
            self.problem("wrong-key", f"{whose}: {error}")
        except BadNote as error:
            self.problem(error.code, f"{whose}: {error}")
        return None

    def _note(self, entry: Note) -> None:
        newest = self._newest
        checkpoint = self._open(entry.note, f"note {len(self._notes) + 1} of the bundle")
        if checkpoint is None:
            return
        if checkpoint.size <= newest.size:
            words = f"the note for {checkpoint.size} records comes behind the one for {newest.size}"
            forked = checkpoint.size == newest.size and checkpoint.root != newest.root
            self.problem("forked-history" if forked else "bundle-damaged", words)
            return
        if not verify_consistency(newest.size, checkpoint.size, entry.proof, newest.root, checkpoint.root):
            self.problem(
                "forked-history",
                f"nothing shows that the history of {checkpoint.size} records begins with the one of {newest.size}"
                " that was signed before",
            )
        self._notes.append(checkpoint)

    def _begin(self, seen: Sequence[bytes]) -> bool:
        """Compare the notes with those seen before, and say what the records must be. False if nothing vouches."""
        header, newest = self._header, self._newest
        if not self._notes:
            if self._found == 0:
                self.problem("bad-note", "the bundle holds no note, so nothing vouches for its records")
            return False
        if header.first > header.last or header.last > newest.size:
            self.problem(
                "cut-short",
                f"the bundle claims positions {header.first} to {header.last}; the newest note vouches for 1 to"
                f" {newest.size}",
            )
        self._roots = {checkpoint.size: checkpoint.root for checkpoint in self._notes} if self._all else {}
        mine = {checkpoint.size: checkpoint.root for checkpoint in self._notes}
        for note in seen:
            checkpoint = self._open(note, "the note you have kept")
            if checkpoint is None:
                continue
            if checkpoint.size > newest.size:
                self.problem(
                    "cut-short", f"you have a note for {checkpoint.size} records; the bundle's newest is {newest.size}"
                )
            elif mine.get(checkpoint.size, checkpoint.root) != checkpoint.root:
                self.problem("forked-history", f"you have another note for {checkpoint.size} records than the bundle")
            elif self._all:
                self._roots[checkpoint.size] = checkpoint.root
            elif checkpoint.size not in mine:
                self.problem("forked-history", f"the bundle lacks the note for {checkpoint.size} records that you have")
        return True

    def _leaf(self, entry: Leaf) -> None:
        header, hashed = self._header, leaf_hash(entry.record)
        if self._all:
            self._grow(hashed)
        try:
            record = codec.decode_record(entry.record)
        except LogDamaged as error:
            self.problem("bad-record", f"behind position {self._position}: {error}")
            return
        position = record.position
        if header.stream is None and position != self._position + 1:
            self.problem("out-of-order", f"position {position} stands where {self._position + 1} should")
        elif not self._position < position <= header.last:
            self.problem("out-of-order", f"position {position} stands behind {self._position}")
        self._position = position
        self._records += 1
        if header.stream is not None and (record.stream, record.revision) != (header.stream, self._records):
            self.problem(
                "out-of-order",
                f"position {position} is revision {record.revision} of {record.stream}, where revision"
                f" {self._records} of {header.stream} should be",
            )
        newest = self._newest
        if not self._all and not verify_inclusion(hashed, position - 1, newest.size, entry.proof, newest.root):
            self.problem("changed-record", f"the record at position {position} is not the one that was signed for")
        try:
            # What has expired since may be gone, and is not asked for.
            if not self._checkpoints.take(record):
                self._refer(catalogue.references(record.event))
        except SandkeepError as error:
            self.problem(error.code, f"position {position}: {error}")

    def _grow(self, leaf: bytes) -> None:
        """Go on with the tree of all records, and compare it with the notes on the way."""
        self._peaks.append(leaf)
        root = self._roots.pop(self._peaks.size, None)
        if root is not None and root != self._peaks.root():
            self.problem("changed-record", f"the first {self._peaks.size} records are not those that were signed for")
            self._roots.clear()  # behind this every root differs, and says nothing new

    def _refer(self, references: Iterable[Reference]) -> None:
        for digest, size, tree in references:
            if tree:
                self._trees.add(digest)
            else:
                self._blobs[digest] = max(size, self._blobs.get(digest, 0))

    def _content(self, kind: type[Entry], digest: str, limit: int, entries: Iterator[Entry]) -> Iterator[bytes]:
        """The content that follows, of at most `limit` bytes; raises `BlobDamaged` if it is not the right one."""
        if (kind, digest) in self._given:
            self.problem("bundle-damaged", f"blob {digest} is given twice")
        self._given.add((kind, digest))
        return bundle.unpack(entries, digest, limit)

    def _tree(self, digest: str, entries: Iterator[Entry]) -> None:
        if digest not in self._trees:
            self._unknown(digest, entries)
            return
        try:
            data = b"".join(self._content(Tree, digest, MAX_MANIFEST_BYTES, entries))
            self._refer(self._manifests(digest, data))
        except BlobDamaged as error:
            self.problem("replaced-blob", str(error))

    def _blob(self, digest: str, entries: Iterator[Entry]) -> None:
        if digest not in self._blobs:
            self._unknown(digest, entries)
            return
        try:
            for _ in self._content(Blob, digest, self._blobs[digest], entries):
                pass
        except BlobDamaged as error:
            self.problem("replaced-blob", str(error))

    def _unknown(self, digest: str, entries: Iterator[Entry]) -> None:
        """Pass over content that nobody asked for; it is not worth unpacking."""
        self.problem("unknown-blob", f"no record of the bundle refers to blob {digest}")
        for piece in entries:
            if isinstance(piece, bundle.Data) and not piece.data:
                return

    def _end(self) -> None:
        header = self._header
        self._trees.update(self._checkpoints.left())
        if header.stream is None and self._position != header.last:
            self.problem("cut-short", f"the records end at position {self._position}, not at {header.last}")
        if self._records == 0:
            self.problem("cut-short", "the bundle holds no records")
        if not header.blobs:
            if self._given:
                self.problem("unknown-blob", "the bundle says that it leaves out content, and holds some")
            return
        wanted = {(Tree, digest) for digest in self._trees} | {(Blob, digest) for digest in self._blobs}
        for _, digest in sorted(wanted - self._given, key=lambda each: each[1]):
            self.problem("missing-blob", f"the bundle lacks blob {digest}, which its records refer to")
