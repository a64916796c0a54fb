"""Open what a power failure leaves: `states WORKLOAD CALLS SCRATCH SEED SECTOR MOST SHARD SHARDS`.

CALLS is what `workloads` has recorded. After each call that this SHARD has to look at, the states that the disk can be
in are made in the folder SCRATCH, MOST of them at the most, and each that is not like one before is opened and judged.
What is under way is written to standard error, for whoever finds that this process has died.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
from blake3 import blake3

from sandkeep.events import LmdbLog, LogDamaged, LogUnavailable, Record, journal, segment
from sandkeep.events import catalogue as ev
from sandkeep.events.recovery import Mode, recover
from sandkeep.events.segment import Entry
from sandkeep.events.verify import scan, verify_journal

from .disk import Acknowledged, Begun, Call, Disk, Started, State

_calls = msgspec.msgpack.Decoder(list[Call]).decode


class Promises:
    """What callers have asked for, and what they were told."""

    def __init__(self) -> None:
        self.started: dict[str, int] = {}
        self.acknowledged: dict[str, int] = {}
        self.notes: set[int] = set()

    def apply(self, call: Call) -> None:
        match call:
            case Started(word, count):
                self.started[word] = count
            case Acknowledged("note", size):
                self.notes.add(size)
            case Acknowledged(word, first):
                self.acknowledged[word] = first
            case _:
                pass

    def judge(self, folder: Path, recovering: bool) -> None:
        """Open a keep after a power failure. Raises `AssertionError` for what must not be."""
        if recovering:
            _recover(folder)
        for attempt in range(2):
            with _opened(folder) as log:
                records = [each for each in log.read() if not isinstance(each.event, ev.LogRecovered)]
                self._check(records, {size for size, _ in log.notes()})
                log_id = log.log_id
                log.append("task/after", [ev.TaskCompleted(summary="after")], actor="me", key=f"after{attempt}")
                self.started[f"after{attempt}"] = 1
            _check_copies(folder, log_id)
        for attempt in range(2):
            del self.started[f"after{attempt}"]

    def _check(self, records: list[Record], notes: set[int]) -> None:
        found: dict[str, list[int]] = {}
        for record in records:
            assert record.key is not None
            found.setdefault(record.key, []).append(record.position)
        assert self.notes <= notes, "a note is lost"
        for word, first in self.acknowledged.items():
            assert found.get(word, [0])[0] == first, f"{word} was acknowledged at {first}, and is at {found.get(word)}"
        for word, positions in found.items():
            assert len(positions) == self.started.get(word), f"{word} is there by half, or was never asked for"
            assert positions == list(range(positions[0], positions[-1] + 1)), f"{word} is not in one piece"


def _opened(folder: Path) -> closing[LmdbLog[None]]:
    return closing(LmdbLog[None](folder / "log", journal=folder / "journal"))


def _recover(folder: Path) -> None:
    try:
        with _opened(folder):
            pass
    except (LogDamaged, LogUnavailable):
        assert recover(folder, Mode.STRICT, actor="me").ok


def _check_copies(folder: Path, log_id: bytes) -> None:
    """The log and its journal are whole, dense, and the same."""
    report = scan(folder / "log", deep=True)
    assert report.ok, report.damage
    assert report.events == report.head
    assert verify_journal(folder / "journal", report, deep=True) == ()
    frames = [
        entry.frame
        for path in segment.listed(folder / "journal")
        for entry in segment.found(path, log_id)
        if isinstance(entry, Entry)
    ]
    assert sum(frame.count for frame in frames) == report.head
    assert frames == [] or frames[-1].checksum.hex() == report.checksum


def make(state: State, folder: Path) -> None:
    """Make a folder what the state says."""
    folder.mkdir()
    names: dict[int, Path] = {}
    for name, node in state.items():
        path = folder / name
        mode = 0 if node.status is None else node.status.mode
        if node.content is None:
            path.mkdir()
        elif node.number in names:
            path.hardlink_to(names[node.number])
        elif stat.S_ISLNK(mode):
            path.symlink_to(os.fsdecode(node.content))
        elif stat.S_ISFIFO(mode):
            os.mkfifo(path)
        else:
            path.write_bytes(node.content)
        names[node.number] = path
    for name, node in reversed(state.items()):
        if node.status is not None:
            path, status = folder / name, node.status
            os.chown(path, status.uid, status.gid, follow_symlinks=False)
            if not stat.S_ISLNK(status.mode):
                path.chmod(stat.S_IMODE(status.mode))
            os.utime(path, ns=(status.mtime_ns, status.mtime_ns), follow_symlinks=False)


def _digest(state: State, promises: Promises) -> bytes:
    hasher = blake3(f"{len(promises.started)} {len(promises.acknowledged)} {len(promises.notes)}".encode())
    for path, node in state.items():
        hasher.update(f"{path} {-1 if node.content is None else len(node.content)}\0".encode())
        hasher.update(node.content or b"")
    return hasher.digest()


def _moments(calls: list[Call], sector: int) -> Iterator[tuple[int, Disk, Promises]]:
    """What there is after each call, from when the recording began."""
    disk, promises, begun = Disk(sector), Promises(), False
    for number, call in enumerate(calls):
        disk.apply(call)
        promises.apply(call)
        begun = begun or isinstance(call, Begun)
        if begun:
            yield number, disk, promises


def main() -> None:
    calls, scratch = _calls(Path(sys.argv[2]).read_bytes()), Path(sys.argv[3])
    seed, sector, most, shard, shards = map(int, sys.argv[4:9])
    logging.disable()  # that a line is cut or a segment damaged is told each time
    journal.this_boot = lambda: "the last"
    seen: set[bytes] = set()
    for number, disk, promises in _moments(calls, sector):
        if number % shards != shard:
            continue
        chance = random.Random(f"{seed} {sector} {number}")
        for each, state in enumerate(disk.states(chance, most)):
            digest = _digest(state, promises)
            if digest in seen:
                continue
            seen.add(digest)
            print(f"\rcall {number} of {len(calls)}, state {each}", end="", file=sys.stderr, flush=True)
            make(state, scratch)
            promises.judge(scratch, recovering=sys.argv[1] == "recovered")
            shutil.rmtree(scratch)
    print(len(seen))
