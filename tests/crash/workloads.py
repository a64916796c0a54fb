"""What is done to a keep while it is recorded: `workloads NAME FOLDER CALLS` writes the calls to the file CALLS.

FOLDER is empty. Some workloads first make a keep in it in peace, and leave in it what a crash or damage would.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sandkeep.events import LmdbLog, LogUnavailable, codec, journal, lmdb_layout, segment
from sandkeep.events import catalogue as ev
from sandkeep.events.notary import publish
from sandkeep.events.note import Signer
from sandkeep.events.recovery import Mode, recover

from .disk import Acknowledged, Call, Started
from .recorder import Fault, Recorder

BIG = 1 << 30


@final
class Work:
    """A keep in `folder`, and the `calls` that were made in it, of which one may fail; `made` counts those."""

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.folder = folder
        self.fault = fault
        self.calls: list[Call] = []
        self.made = 0

    @contextlib.contextmanager
    def recorded(self) -> Iterator[Recorder]:
        """Record meanwhile, behind what was acknowledged before."""
        recorder = Recorder(self.folder, self.fault)
        self.calls = recorder.calls = [*self.calls, *recorder.calls]
        try:
            with recorder.running():
                yield recorder
        finally:
            self.made = recorder.made

    def opened(self, segment_bytes: int = BIG) -> closing[LmdbLog[None]]:
        return closing(LmdbLog[None](self.folder / "log", journal=self.folder / "journal", segment_bytes=segment_bytes))

    def append(self, log: LmdbLog[None], word: str, count: int = 1, size: int = 0) -> None:
        """Append so many events under the key `word`, on the stream of its first letter. If that fails, so does every
        append behind it."""
        self.calls.append(Started(word, count))
        events = [ev.TaskCompleted(summary=word + "." * size)] * count
        try:
            receipt = log.append(f"task/{word[0]}", events, actor="me", key=word)
        except LogUnavailable:
            with pytest.raises(LogUnavailable, match="is closed"):
                log.append("task/later", events, actor="me")
            raise
        self.calls.append(Acknowledged(word, receipt.first))

    def publish(self, log: LmdbLog[None], signer: Signer) -> None:
        """Publish a note, which counts as an append of no events."""
        self.calls.append(Started("note", 0))
        publish(log, signer)
        self.calls.append(Acknowledged("note", log.head().position))


def single(work: Work) -> None:
    """A keep is made, and one caller appends and publishes, before and after it is opened again."""
    signer = Signer("a/log", Ed25519PrivateKey.generate())
    with work.recorded():
        with work.opened() as log:
            for number in range(5):
                work.append(log, f"a{number}", 1 + number % 3, 300 * (number % 2))
            work.publish(log, signer)
        with work.opened() as log:
            for number in range(4):
                work.append(log, f"b{number}")
            work.publish(log, signer)
            work.append(log, "c")


def threads(work: Work) -> None:
    """Callers share commits."""
    with work.recorded(), work.opened() as log:
        gate = threading.Barrier(6)

        def run(name: str) -> None:
            gate.wait()
            for number in range(4):
                work.append(log, f"{name}{number}", 2, 200)

        with ThreadPoolExecutor(6) as callers:
            for each in [callers.submit(run, name) for name in "abcdef"]:
                each.result()


def large(work: Work) -> None:
    """Frames take many pages, and pages are used again."""
    with work.recorded(), work.opened() as log:
        for number in range(7):
            work.append(log, f"a{number}", 1 + number % 2, (3000, 60_000, 9000)[number % 3])


def rotation(work: Work) -> None:
    """Segments are sealed, compressed and begun."""
    with work.recorded(), work.opened(1500) as log:
        for number in range(12):
            work.append(log, f"a{number}", 1, 300)


def growth(work: Work) -> None:
    """The map grows."""
    lmdb_layout.MAP_BYTES = 64 << 10
    with work.recorded(), work.opened() as log:
        for number in range(12):
            work.append(log, f"a{number}", 1, 9000)
        assert log._layout.env.info()["map_size"] > 64 << 10


def _written(work: Work, segment_bytes: int = BIG) -> bytes:
    """A keep with something in it; a line of its journal that no commit followed."""
    with work.opened(segment_bytes) as log:
        for number in range(6):
            work.append(log, f"a{number}", 1, 300)
        with log._layout.writing() as txn:
            head, txn_id = log._layout.head(txn), txn.id()
        checksum = codec.checksum(head.checksum, log.log_id, head.position + 1, 1, b"x")
        return segment.encode_line(head.position + 1, 1, txn_id, head.checksum, checksum, b"x")


def tail(work: Work) -> None:
    """An opening cuts the journal's last line, which no commit followed."""
    stray = _written(work)
    path = segment.listed(work.folder / "journal")[-1]
    path.write_bytes(path.read_bytes() + stray)
    with work.recorded(), work.opened() as log:
        for number in range(4):
            work.append(log, f"b{number}")


def torn(work: Work) -> None:
    """The opening after a power loss sets torn segments aside and writes them anew."""
    with contextlib.ExitStack() as plain:
        compress, segment.compress = segment.compress, lambda path: None
        plain.callback(setattr, segment, "compress", compress)
        journal.this_boot = lambda: "the first"
        _written(work, 1500)
    middle = segment.listed(work.folder / "journal")[1]
    middle.write_bytes(bytes(middle.stat().st_size))
    journal.this_boot = lambda: "the second"
    with work.recorded(), work.opened(1500) as log:
        for number in range(4):
            work.append(log, f"b{number}")


def lost(work: Work) -> None:
    """An opening completes a journal that lacks its end."""
    _written(work)
    path = segment.listed(work.folder / "journal")[-1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    with work.recorded(), work.opened() as log:
        for number in range(4):
            work.append(log, f"b{number}")


def recovered(work: Work) -> None:
    """A log whose file is damaged is rebuilt from its journal."""
    _written(work)
    path = work.folder / "log" / "data.mdb"
    path.write_bytes(bytes(4096) + bytes(4096) + path.read_bytes()[8192:])
    with work.recorded():
        assert recover(work.folder, Mode.STRICT, actor="me").ok
        with work.opened() as log:
            work.append(log, "b")


def failed_sync(work: Work) -> None:
    """A sync of the log fails, and the keep is opened again and used, although nobody knows what is on the disk."""
    _failed(work, "fdatasync")


def failed_commit(work: Work) -> None:
    """As before, but it is the write of the meta page."""
    _failed(work, "pwrite")


def _failed(work: Work, name: str) -> None:
    _written(work)
    work.fault = Fault(3, way="after", only=(name,))
    with work.recorded() as recorder:
        with contextlib.suppress(LogUnavailable), work.opened() as log:
            for number in range(20):
                work.append(log, f"b{number}", 1, 300)
        assert recorder.failed
        with work.opened() as log:
            for number in range(4):
                work.append(log, f"c{number}", 1, 300)


WORKLOADS: dict[str, Callable[[Work], None]] = {
    each.__name__: each
    for each in (single, threads, large, rotation, growth, tail, torn, lost, recovered, failed_sync, failed_commit)
}


def main() -> None:
    work = Work(Path(sys.argv[2]))
    WORKLOADS[sys.argv[1]](work)
    Path(sys.argv[3]).write_bytes(msgspec.msgpack.encode(work.calls))
