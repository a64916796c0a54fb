"""What the tests of the log share: a reference follower, worker processes, waiting, and a way into the raw database."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import final

import lmdb

from sandkeep.events import Event, Record
from sandkeep.events import catalogue as ev

WORKER = Path(__file__).with_name("worker.py")
DEADLINE_SECONDS = 30.0


def done(*words: str) -> list[Event]:
    """One small event a word."""
    return [ev.TaskCompleted(summary=word) for word in words]


def words(records: Sequence[Record] | Iterator[Record]) -> list[str]:
    """The words that `done` put into these records."""
    found = []
    for record in records:
        assert isinstance(record.event, ev.TaskCompleted)
        found.append(record.event.summary)
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    """Poll until `holds()`; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        time.sleep(0.002)


@contextlib.contextmanager
def worker(*arguments: object, script: Path = WORKER) -> Iterator[subprocess.Popen[str]]:
    """A worker process that has said "ready" and waits for a line on its standard input; killed if it still runs."""
    command = [sys.executable, "-P", str(script), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    """Let a waiting worker begin."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> list[str]:
    """The lines that a worker printed until its end, which must be a success."""
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    return output.splitlines()


@contextlib.contextmanager
def raw(path: Path, database: str) -> Iterator[lmdb.Transaction[bytes]]:
    """A write transaction on one database of a log that nobody has open, past all checks."""
    with lmdb.open(str(path), max_dbs=5, map_size=64 << 30) as env:
        db = env.open_db(database.encode())
        with env.begin(write=True, db=db) as txn:
            yield txn


def flip(file: Path, needle: bytes) -> None:
    """Change one bit of `needle` in `file`, in its page and in what older versions of that page are left."""
    content = file.read_bytes()
    assert needle in content
    file.write_bytes(content.replace(needle, bytes([needle[0] ^ 1]) + needle[1:]))


@final
class Replica:
    """The simplest follower: its state is the list of the log's records."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.aborts = 0

    def begin(self, head: int, read: Callable[[int], Iterator[Record]]) -> ReplicaSession:
        session = ReplicaSession(self, [*self.records, *read(len(self.records))])
        assert len(session.view) == head
        return session


@final
class ReplicaSession:
    def __init__(self, replica: Replica, records: list[Record]) -> None:
        self._replica = replica
        self._records = records

    @property
    def view(self) -> list[Record]:
        return self._records

    def apply(self, records: Sequence[Record]) -> None:
        self._records = [*self._records, *records]

    def commit(self) -> None:
        self._replica.records = self._records

    def abort(self) -> None:
        self._replica.aborts += 1
