"""Whether a log's bytes are what was written.

`verify` scans in a process of its own, because a damaged LMDB file can end whoever maps it: then that process dies, and
the caller reports it. Every frame is checked against its own checksum, its link to the one before and its place; every
record against the stream index and, where its type is known, against that type. The scan goes on behind damage, so that
all of it is reported. It reads one consistent state while others write.

A chain of checksums can be made anew by whoever can write the file. So every published note is compared with the root
of the records it was signed for, which shows a history that was rewritten, or cut below what was published.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import final

import lmdb
import msgspec

from sandkeep.events import (
    catalogue,  # noqa: F401  # registers the types, so that their bodies can be checked
    codec,
    segment,
)
from sandkeep.events.codec import Frame, Record
from sandkeep.events.errors import BadEvent, BadNote, LogDamaged, LogUnavailable
from sandkeep.events.lmdb_file import is_cut
from sandkeep.events.lmdb_layout import Layout, encode_used, position_at, stream_key, uses
from sandkeep.events.merkle import Peaks, leaf_hash
from sandkeep.events.note import Checkpoint, VerifierKey, open_checkpoint
from sandkeep.events.segment import Entry, Header

MAX_DAMAGE = 100
"""How many damaged places are listed; more are only counted."""

_BEHIND = b"\xff" * 32
_FILLER_BYTES = 1900
_MOST_FILLERS = 50_000
"""Values of which two fill a page, and how many of them a check of the free pages writes at most."""


class LogReport(msgspec.Struct, frozen=True):
    """What a scan found: the last position whose frame is whole, how many events, and each damaged place.

    `checksum` is that of the last whole frame, in hex; `notes` counts the published notes that the records agree with;
    `damaged` counts the places of which `damage` lists the first.
    """

    head: int
    events: int
    frames: int
    checksum: str
    damaged: int
    damage: tuple[str, ...]
    notes: int = 0
    log_id: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return self.damaged == 0


def verify(path: Path, key: VerifierKey | None = None, *, deep: bool = False) -> LogReport:
    """Scan the log in the folder `path`; its notes must be signed with `key`, if one is given.

    If `deep`, also whether LMDB's pages are all accounted for and the free ones are free, by way of copies.

    Raises `LogUnavailable` only if the scanning process cannot be started.
    """
    command = [sys.executable, "-P", "-c", f"import {__name__} as verify; verify.main()", str(path)]
    command += ["" if key is None else str(key), *(["deep"] if deep else [])]
    try:
        # What the scan copies goes with this folder, also if the scan is ended by what it reads.
        with tempfile.TemporaryDirectory(prefix="sandkeep-verify-") as folder:
            variables = {**os.environ, "TMPDIR": folder}
            result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=variables, check=False)
    except OSError as error:
        raise LogUnavailable(f"the process that verifies the log cannot be started: {error}") from error
    if result.returncode == 0:
        return msgspec.json.decode(result.stdout, type=LogReport)
    if result.returncode < 0:
        what = f"the file is damaged so badly that reading it ended in {signal.Signals(-result.returncode).name}"
    else:
        words = result.stderr.decode("utf-8", "replace").strip().splitlines()
        what = words[-1] if words else f"the scan ended with status {result.returncode}"
    return LogReport(head=0, events=0, frames=0, checksum="", damaged=1, damage=(what,))


def refuse_if_cut(path: Path) -> None:
    """Raise `LogDamaged` if the file of the log in `path` was cut: whoever mapped it would end with SIGBUS."""
    # Pages at the end that were given back in the transaction that took them are never written.
    if is_cut(path) and not (report := verify(path)).ok:
        raise LogDamaged(f"the log in {path} was cut: {report.damage[0]}; 'sandkeep recover' rebuilds it")


def verify_journal(folder: Path, log: LogReport, *, deep: bool = False) -> tuple[str, ...]:
    """What is wrong with the journal in `folder` of a log that was found whole; compressed segments only if `deep`.

    A journal may lack the end of its log, which whoever opens the log completes, and may be ahead of it.
    """
    damage: list[str] = []
    segments = segment.listed(folder)
    position, checksum = 0, codec.GENESIS.hex()
    known = True
    for path in segments:
        if path.suffix == ".zst" and not deep:
            header = segment.header(path)
            if header is None or header.log != log.log_id:
                damage.append(f"{path.name}: the header is not that of a segment of this log")
            known = False  # where it ends is not known
            continue
        for entry in segment.found(path, bytes.fromhex(log.log_id)):
            match entry:
                case LogDamaged():
                    damage.append(str(entry))
                    known = False
                case Header():
                    if entry.log != log.log_id:
                        damage.append(f"{path.name}: it is of another log")
                    elif known and (entry.first, entry.previous) != (position + 1, checksum):
                        damage.append(f"{path.name}: it does not follow position {position}")
                    position, checksum, known = entry.first - 1, entry.previous, True
                case Entry(frame=frame):
                    if known and (frame.first, frame.previous.hex()) != (position + 1, checksum):
                        damage.append(f"{path.name}: position {frame.first} does not follow position {position}")
                    position, checksum, known = frame.last, frame.checksum.hex(), True
                    if position == log.head and checksum != log.checksum:
                        damage.append(f"{path.name}: position {position} is not that of the log")
        if path != segments[-1] and path.suffix != ".zst" and not segment.sealed(path):
            damage.append(f"{path.name}: the seal is missing")
    return tuple(damage[:MAX_DAMAGE])


def scan(path: Path, key: VerifierKey | None = None, *, deep: bool = False) -> LogReport:
    """Scan in this process. Raises `LogDamaged` and `LogUnavailable` if the log cannot even be opened."""
    layout = Layout(path, readonly=True)
    try:
        if deep:
            _check_pages(layout)
        return _scan(layout, key)
    finally:
        layout.env.close()


def _check_pages(layout: Layout) -> None:
    """Copy the log compactly, by which LMDB walks every page and misses those that nothing leads to; then have a plain
    copy written to, because only writers read the list of free pages. Raises `LogDamaged`."""
    with tempfile.TemporaryDirectory() as folder:
        layout.env.copy(folder, compact=True)
    with tempfile.TemporaryDirectory() as folder:
        layout.env.copy(folder)
        copy = Layout(Path(folder))
        try:
            _use_free_pages(copy)
            damage = _scan(copy, None).damage
        except (lmdb.Error, LogDamaged) as error:
            damage = (str(error),)
        finally:
            copy.env.close()
        if damage and _scan(layout, None).ok:
            raise LogDamaged(f"the list of free pages is damaged: after writing to a copy of the log, {damage[0]}")


def _use_free_pages(layout: Layout) -> None:
    """Write as much as the free pages hold, and behind the end of each database. What is no free page is overwritten by
    this. LMDB uses a page only in the second transaction after the one that freed it."""
    databases = [each for each in (layout.frames, layout.streams, layout.keys, layout.fences, layout.notes) if each]
    turns = 0
    while turns < 3:
        try:
            with layout.writing() as txn:
                stats = [txn.stat(database) for database in (layout.meta, *databases)]
                used = sum(each["branch_pages"] + each["leaf_pages"] + each["overflow_pages"] for each in stats)
                for number in range(min(2 * (layout.env.info()["last_pgno"] - used) + 16, _MOST_FILLERS)):
                    txn.put(b"filler %d" % number, bytes(_FILLER_BYTES), db=layout.meta)
                for database in databases:
                    txn.put(_BEHIND, bytes(_FILLER_BYTES // 10), db=database)
                    txn.delete(_BEHIND, db=database)
                txn.commit()
            turns += 1
        except lmdb.MapFullError:
            layout.grow()


def _scan(layout: Layout, key: VerifierKey | None) -> LogReport:
    damage: list[str] = []
    damaged = events = frames = head = used = 0
    checksum = codec.GENESIS

    def note(words: str) -> None:
        nonlocal damaged
        damaged += 1
        if len(damage) < MAX_DAMAGE:
            damage.append(words)

    with layout.env.begin() as txn:
        expected = 1
        tree = _Published(layout, txn, key)
        for frame in _frames(layout, txn):
            if isinstance(frame, LogDamaged):
                note(str(frame))
                continue
            if frame.first != expected:
                note(f"the log lacks positions {expected} to {frame.first - 1}")
            elif frame.previous != checksum:
                note(f"the frame at position {frame.first} does not follow the one before it")
            expected, checksum, head = frame.last + 1, frame.checksum, frame.last
            frames += 1
            try:
                records = frame.records()
            except LogDamaged as error:
                note(str(error))
                records = []
            for words in _check_records(layout, txn, records):
                note(words)
            for name, use in uses(records):
                used += 1
                if txn.get(name, db=layout.keys) != encode_used(use):
                    note(f"an idempotency key does not lead to position {use.receipt.first}, where it was used")
            events += frame.count
            if damaged == 0:  # behind damage there is no tree that a note could be compared with
                tree.add(frame)
        for words in tree.findings(whole=damaged == 0):
            note(words)
        keyed = txn.stat(layout.keys)["entries"]
        if keyed != used:
            note(f"the index of idempotency keys has {keyed} entries for {used} keys")
        indexed = txn.stat(layout.streams)["entries"]
        if indexed != events:
            note(f"the stream index has {indexed} entries for {events} events")
    return LogReport(head, events, frames, checksum.hex(), damaged, tuple(damage), tree.agreed, layout.log_id.hex())


@final
class _Published:
    """The notes of a log, and the tree of its records as far as it has been scanned."""

    def __init__(self, layout: Layout, txn: lmdb.Transaction[bytes], key: VerifierKey | None) -> None:
        self.agreed = 0
        self._peaks = Peaks()
        self._roots: dict[int, bytes] = {}
        self._findings: list[str] = []
        try:
            for size, published in layout.published(txn):
                try:
                    text = published.note.decode("utf-8", "replace").rpartition("\n\n")[0] + "\n"
                    checkpoint = Checkpoint.parse(text) if key is None else open_checkpoint(published.note, key)
                except BadNote as error:
                    self._findings.append(f"the note published for {size} records: {error}")
                    continue
                if checkpoint.size != size:
                    self._findings.append(f"the note published for {size} records is for {checkpoint.size}")
                    continue
                self._roots[size] = checkpoint.root
        except LogDamaged as error:
            self._findings.append(str(error))

    def add(self, frame: Frame) -> None:
        """Go on with the next frame, whose records have been found right."""
        peaks, roots = self._peaks, self._roots
        for leaf in frame.leaves():
            peaks.append(leaf_hash(leaf))
            root = roots.pop(peaks.size, None)
            if root is None:
                continue
            if root == peaks.root():
                self.agreed += 1
            else:
                self._findings.append(
                    f"the first {peaks.size} records are not those that their published note vouches for"
                )

    def findings(self, whole: bool) -> list[str]:
        """What is wrong with the notes; those beyond the end of a log that is `whole` show that it was cut."""
        cut = [
            f"the log ends at position {self._peaks.size}, but a note was published for {size} records"
            for size in sorted(self._roots)
            if whole
        ]
        return self._findings + cut


def _frames(layout: Layout, txn: lmdb.Transaction[bytes]) -> Iterator[Frame | LogDamaged]:
    for key, value in txn.cursor(layout.frames):
        if len(key) != 8:
            yield LogDamaged(f"key {key.hex()} is no position")
            continue
        try:
            yield codec.decode_frame(value, layout.log_id, position_at(key))
        except LogDamaged as error:
            yield error


def _check_records(layout: Layout, txn: lmdb.Transaction[bytes], records: list[Record]) -> Iterator[str]:
    """What is wrong with the records of a frame whose checksum holds."""
    for record in records:
        found = txn.get(stream_key(record.stream, record.revision), db=layout.streams)
        if found is None or position_at(found) != record.position:
            yield f"the stream index does not lead to position {record.position} ({record.stream})"
        if record.revision > 1 and txn.get(stream_key(record.stream, record.revision - 1), db=layout.streams) is None:
            yield f"{record.stream} lacks revision {record.revision - 1}"
        try:
            _ = record.event
        except BadEvent as error:
            yield f"position {record.position}: {error}"


def main() -> None:
    """Scan the log named by the first argument and print the report as JSON, for `verify`."""
    try:
        key = VerifierKey.parse(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2] else None
        report = scan(Path(sys.argv[1]), key, deep="deep" in sys.argv[3:])
    except (LogDamaged, LogUnavailable, lmdb.Error) as error:
        sys.exit(" ".join(str(error).split()))
    sys.stdout.buffer.write(msgspec.json.encode(report))
