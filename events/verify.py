"""Whether a log's bytes are what was written.

`verify` scans in a process of its own, because a damaged LMDB file can end whoever maps it: then that process dies, and
the caller reports it. Every frame is checked against its own checksum, its link to the one before and its place; every
record against the stream index and, where its type is known, against that type. The scan goes on behind damage, so that
all of it is reported. It reads one consistent state while others write.

A chain of checksums can be made anew by whoever can write the file. So every published note is compared with the root
of the records it was signed for, which shows a history that was rewritten, or cut below what was published.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import final

import lmdb
import msgspec

from sandkeep.events import (
    catalogue,  # noqa: F401  # registers the types, so that their bodies can be checked
    codec,
)
from sandkeep.events.codec import Frame
from sandkeep.events.errors import BadEvent, BadNote, LogDamaged, LogUnavailable
from sandkeep.events.lmdb_layout import Layout, position_at, stream_key
from sandkeep.events.merkle import Peaks, leaf_hash
from sandkeep.events.note import Checkpoint, VerifierKey, open_checkpoint

MAX_DAMAGE = 100
"""How many damaged places are listed; more are only counted."""


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

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return self.damaged == 0


def verify(path: Path, key: VerifierKey | None = None) -> LogReport:
    """Scan the log in the folder `path`; its notes must be signed with `key`, if one is given.

    Raises `LogUnavailable` only if the scanning process cannot be started.
    """
    command = [sys.executable, "-P", "-c", f"import {__name__} as verify; verify.main()", str(path)]
    if key is not None:
        command.append(str(key))
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
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


def scan(path: Path, key: VerifierKey | None = None) -> LogReport:
    """Scan in this process. Raises `LogDamaged` and `LogUnavailable` if the log cannot even be opened."""
    layout = Layout(path, readonly=True)
    try:
        return _scan(layout, key)
    finally:
        layout.env.close()


def _scan(layout: Layout, key: VerifierKey | None) -> LogReport:
    damage: list[str] = []
    damaged = events = frames = head = 0
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
            for words in _check_records(layout, txn, frame):
                note(words)
            events += frame.count
            if damaged == 0:  # behind damage there is no tree that a note could be compared with
                tree.add(frame)
        for words in tree.findings(whole=damaged == 0):
            note(words)
        indexed = txn.stat(layout.streams)["entries"]
        if indexed != events:
            note(f"the stream index has {indexed} entries for {events} events")
    return LogReport(head, events, frames, checksum.hex(), damaged, tuple(damage), tree.agreed)


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


def _check_records(layout: Layout, txn: lmdb.Transaction[bytes], frame: Frame) -> Iterator[str]:
    """What is wrong with the records of a frame whose checksum holds."""
    try:
        records = frame.records()
    except LogDamaged as error:
        yield str(error)
        return
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
        report = scan(Path(sys.argv[1]), VerifierKey.parse(sys.argv[2]) if len(sys.argv) > 2 else None)
    except (LogDamaged, LogUnavailable, lmdb.Error) as error:
        sys.exit(" ".join(str(error).split()))
    sys.stdout.buffer.write(msgspec.json.encode(report))
