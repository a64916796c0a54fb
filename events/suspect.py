"""The frames of a log that may be damaged, read by a process of its own.

A damaged LMDB file can end whoever maps it, or send a reader round in circles. So a child opens it, without touching
its locks, and sends what it finds as it goes; an alarm ends it when one step takes too long. Nothing it sends is
believed: each frame is checked here against its own checksum, and keys must ascend.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import final

import lmdb
import msgspec

from sandkeep.events import codec
from sandkeep.events.codec import Frame
from sandkeep.events.errors import BadNote, LogDamaged, LogUnavailable
from sandkeep.events.lmdb_layout import Published, decode_published, place, position_at
from sandkeep.events.log import MAX_EVENTS
from sandkeep.events.note import Checkpoint

MAX_STEP_SECONDS = 60
"""How long it may take to find one more frame."""

_SIZES = struct.Struct(">II")


@final
class Suspect:
    """The log in the folder `path`, under suspicion; read once. A context manager that ends the child.

    `log_id` is None if it could not be read. `last` is the highest position met so far, and once `frames` is at its end
    `fault` says why the child did not reach that of the log, if it did not, and `notes` holds the published notes that
    can be read, by the number of records they say they are for, with those; their signatures are unchecked.
    """

    def __init__(self, path: Path) -> None:
        """Raises `LogUnavailable` if the reading process cannot be started."""
        command = [sys.executable, "-P", "-c", f"import {__name__} as suspect; suspect.main()", str(path)]
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._words
            )
        except OSError as error:
            raise LogUnavailable(f"the process that reads the damaged log cannot be started: {error}") from error
        self.last = 0
        self.fault: str | None = None
        self.notes: dict[int, tuple[Published, Checkpoint]] = {}
        name, value = self._packet() or (b"", b"")
        self.log_id = value if name == b"log_id" and len(value) == 16 else None

    def __enter__(self) -> Suspect:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()
        self._words.close()

    def frames(self, log_id: bytes) -> Iterator[Frame | LogDamaged]:
        """What is stored: frames that prove themselves, under whatever key, and why something is none."""
        before = b""
        while (packet := self._packet()) is not None:
            key, value = packet
            if not key:
                self._take_notes()
                break
            if key <= before:
                self.fault = f"key {key[:16].hex()} is stored behind key {before[:16].hex()}"
                return
            before = key
            claimed, first = position_at(key) if len(key) == 8 else 0, codec.stored_first(value)
            if claimed != first:
                yield LogDamaged(f"key {key[:16].hex()} does not lead to the frame of its position")
            try:
                frame = codec.decode_frame(value, log_id, first)
            except LogDamaged as error:
                # A key alone proves little: one that was damaged as well could name any position.
                if self.last < claimed <= self.last + MAX_EVENTS:
                    self.last = claimed
                yield error
            else:
                self.last = max(self.last, frame.last)
                yield frame
        status = self._child.wait()
        if status < 0:
            self.fault = f"reading it ended in {signal.Signals(-status).name}"
        elif status:
            self._words.seek(0)
            words = self._words.read().decode("utf-8", "replace").strip().splitlines()
            self.fault = words[-1] if words else f"reading it ended with status {status}"

    def _take_notes(self) -> None:
        while (packet := self._packet()) is not None:
            try:
                published = decode_published(packet[1])
                text = published.note.decode().rpartition("\n\n")[0] + "\n"
                checkpoint = Checkpoint.parse(text)
            except (msgspec.DecodeError, UnicodeDecodeError, BadNote):
                continue  # `verify` has reported it
            if packet[0] == place(checkpoint.size):
                self.notes[checkpoint.size] = (published, checkpoint)
                self.last = max(self.last, checkpoint.size)

    def _packet(self) -> tuple[bytes, bytes] | None:
        source = self._child.stdout
        assert source is not None
        sizes = source.read(_SIZES.size)
        if len(sizes) < _SIZES.size:
            return None
        key_size, size = _SIZES.unpack(sizes)
        key, value = source.read(key_size), source.read(size)
        return (key, value) if len(value) == size else None


def main() -> None:
    """Send the id and the frames of the log named by the first argument to standard output, for `Suspect`."""
    try:
        _send_all(Path(sys.argv[1]))
    except lmdb.Error as error:
        sys.exit(" ".join(str(error).split()))


def _send_all(path: Path) -> None:
    if not (path / "data.mdb").exists():
        sys.exit("it is missing")
    signal.alarm(MAX_STEP_SECONDS)
    with lmdb.open(os.fspath(path), max_dbs=6, readonly=True, create=False, lock=False) as env:
        meta = env.open_db(b"meta", create=False)
        frames = env.open_db(b"frames", create=False)
        with env.begin() as txn:
            _send(b"log_id", txn.get(b"log_id", db=meta) or b"")
            cursor = txn.cursor(frames)
            while cursor.next():
                signal.alarm(0)
                _send(*cursor.item())
                signal.alarm(MAX_STEP_SECONDS)
            _send(b"", b"")  # the notes come last: what is wrong with them shall hide no frame
            try:
                notes = env.open_db(b"notes", txn=txn, create=False)
            except lmdb.NotFoundError:
                return
            for key, value in txn.cursor(notes):
                signal.alarm(0)
                _send(key, value)
                signal.alarm(MAX_STEP_SECONDS)


def _send(key: bytes, value: bytes) -> None:
    sys.stdout.buffer.write(b"".join((_SIZES.pack(len(key), len(value)), key, value)))
    sys.stdout.buffer.flush()
