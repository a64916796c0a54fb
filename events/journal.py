"""The second copy of the log: every frame is also a line in a text file, in segments (see `segment`).

Concurrency. All processes append to the newest segment, under LMDB's writer lock. Each remembers where the file ended
and which checksum stood there; its length tells whether that still holds. If not, because others have written, sealed
or died, the end is read anew (`follow`). A lock on the file `lock` is shared by all who have the log open, so that
recovery can be alone.

Durability. A line is written before the log commits, with one `write` and no sync: the log's own sync is what callers
are promised. So after a crash the two may differ by what was under way, and are brought to agree when the log is next
opened or written: what the journal lacks is completed from the log, and what the log lacks, which nobody was told is
done, is cut and kept in `quarantine/`. At most one frame can have been under way; more than that missing from the log,
or a frame that the log did commit, is damage and refused.

A power loss can also tear what had not reached the disk further up. So a segment belongs to one boot of the machine:
the first to open it under another one checks all of it, rewrites it from the log if anything is torn, and seals it.

A full segment is sealed under the lock; a thread of its own compresses it, which makes it durable.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import secrets
import threading
from pathlib import Path
from typing import final

import lmdb
from blake3 import blake3

from sandkeep.events import codec, segment
from sandkeep.events.codec import Frame
from sandkeep.events.durable import sync_folder
from sandkeep.events.errors import LogBusy, LogDamaged, LogUnavailable
from sandkeep.events.lmdb_layout import Layout
from sandkeep.events.quarantine import Quarantine
from sandkeep.events.segment import Entry, Header, Trailer, decode_line, encode_line

SEGMENT_BYTES = 64 << 20
"""When a segment is full."""

_ADVICE = "run 'sandkeep recover'"
_TAIL = 64 << 10
_logger = logging.getLogger(__name__)


@final
class Journal:
    """The journal in `folder`, of a log that is open for writing. Used under that log's writer lock only."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, boot: str | None = None) -> None:
        """`boot` names this boot of the machine; by default the kernel's. Raises `LogBusy` during a recovery."""
        self._folder = folder
        self._limit = segment_bytes
        self._boot = boot or this_boot()
        self._file = -1
        self._path = folder
        self._end = 0
        self._checksum = codec.GENESIS
        self._log_id = b""
        self._dirty = False
        self._compressor: threading.Thread | None = None
        self._lock = lock(folder, alone=False)

    def refuse_if_orphaned(self, log: Path) -> None:
        """Raise `LogDamaged` if there is a journal, but not the log it belongs to."""
        if not (log / "data.mdb").exists() and segment.listed(self._folder):
            raise LogDamaged(f"{log} is missing, its journal in {self._folder} is not; {_ADVICE} to rebuild the log")

    def write(self, layout: Layout, txn: lmdb.Transaction[bytes], frame: Frame) -> None:
        """Add the frame that `txn` is about to commit. Raises `OSError` and what `follow` raises."""
        if not self._current(frame.previous):
            self.follow(layout, txn, frame.first - 1, frame.previous)
        self._put(frame, txn.id())

    def follow(self, layout: Layout, txn: lmdb.Transaction[bytes], head: int, checksum: bytes) -> None:
        """Bring the journal to agree with the log, whose head is given, and take up its end.

        Raises `LogDamaged` if the two contradict each other, and `OSError`.
        """
        if self._current(checksum):
            return
        self._release()
        self._log_id = layout.log_id
        self._mend_torn()
        position = self._resume(layout, txn, head, checksum)
        if position > head:
            raise LogDamaged(f"the journal goes on to position {position}, the log ends at {head}; {_ADVICE}")
        if 0 < position < head:
            known = next(layout.scan(txn, position - 1), None)
            agreed = known is not None and known.checksum == self._checksum
        else:
            agreed = self._checksum == (checksum if position else codec.GENESIS)
        if not agreed:
            raise LogDamaged(f"the journal and the log differ at position {position}; {_ADVICE}")
        if self._file < 0:
            self._begin(position + 1)
        for frame in layout.scan(txn, position):
            if frame.first > head:
                break
            if frame.first != position + 1 or frame.previous != self._checksum:
                raise LogDamaged(f"the journal and the log differ at position {position + 1}; {_ADVICE}")
            self._put(frame, 0)
            position = frame.last
        if any(path.suffix != ".zst" for path in segment.listed(self._folder)[:-1]):
            self._compress_soon()

    def close(self) -> None:
        """Make what was written durable, and let go. Safe to call twice. Raises `OSError`."""
        if self._compressor is not None:
            self._compressor.join()
            self._compress()  # what was sealed after the thread had looked
        try:
            if self._file >= 0 and self._dirty:
                os.fsync(self._file)
                sync_folder(self._folder)
        finally:
            self._release()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _current(self, checksum: bytes) -> bool:
        """Whether the file still ends where it did, and with the frame of this checksum."""
        if self._file < 0 or self._checksum != checksum:
            return False
        # Not fstat: a kernel with fine-grained times (Linux 6.13) then has to journal the time of each write, which
        # makes the log's sync a sixth slower.
        return os.lseek(self._file, 0, os.SEEK_END) == self._end

    def _mend_torn(self) -> None:
        """If the newest segment is of another boot, or not to be read: set aside all from the first torn one on, to be
        written anew from the log. Compressed ones were durable before they got their names."""
        plain = [path for path in segment.listed(self._folder) if path.suffix != ".zst"]
        if not plain:
            return
        header, last = segment.header(plain[-1]), segment.tail(plain[-1])[-1]
        if header is not None and header.log != self._log_id.hex():
            raise LogDamaged(f"{plain[-1]} is the journal of another log; {_ADVICE}")
        if header is not None and header.boot == self._boot and _readable(last[1], self._log_id):
            return
        self._cut_fragment(plain[-1])
        torn = list(itertools.dropwhile(self._holds, plain))
        aside = Quarantine(self._folder.with_name("quarantine"))
        for path in reversed(torn):  # so that a crash in between leaves no gap
            _logger.warning("%s is damaged; it is moved to %s and written anew from the log", path, aside.folder)
            aside.take(path)

    def _holds(self, path: Path) -> bool:
        """Whether a plain segment is whole, and sealed unless it is the newest."""
        newest = path == segment.listed(self._folder)[-1]
        return segment.whole(path, self._log_id) and (newest or segment.sealed(path))

    def _resume(self, layout: Layout, txn: lmdb.Transaction[bytes], head: int, checksum: bytes) -> int:
        """Find the last line that the log may have, take up its checksum, and return its position. The newest segment
        is left open if it may be written to."""
        mine, self._checksum = self._checksum, codec.GENESIS
        listed = segment.listed(self._folder)
        if not listed:
            return 0
        path = listed[-1]
        if path.suffix == ".zst":
            return self._end_of_compressed(path)
        self._cut_fragment(path)
        lines = segment.tail(path)
        entry = decode_line(lines[-1][1], self._log_id)
        sealed = isinstance(entry, Trailer)
        if sealed:
            entry = decode_line(lines[-2][1], self._log_id)
        elif isinstance(entry, Entry) and entry.frame.first == head + 1 and entry.frame.previous == checksum:
            if entry.txn != txn.id() or not layout.consecutive():
                raise LogDamaged(f"the log has lost position {head + 1}, which its journal holds; {_ADVICE}")
            # This process knows of its own: the map was full at the commit, and is tried again.
            self._cut(path, lines[-1][0], keep=entry.frame.checksum != mine)
            entry = decode_line(lines[-2][1], self._log_id)
        if isinstance(entry, Entry):
            position, self._checksum = entry.frame.last, entry.frame.checksum
        elif isinstance(entry, Header):
            position, self._checksum = entry.first - 1, bytes.fromhex(entry.previous)
        else:
            raise LogDamaged(f"{path} is sealed twice; {_ADVICE}")
        header = segment.header(path)
        if not sealed:
            self._open(path, os.O_APPEND)
            if header is not None and header.boot != self._boot and header.first <= position:
                self._seal()
        return position

    def _end_of_compressed(self, path: Path) -> int:
        position = 0
        for entry in segment.found(path, self._log_id):
            if isinstance(entry, Entry):
                position, self._checksum = entry.frame.last, entry.frame.checksum
            elif isinstance(entry, LogDamaged):
                raise LogDamaged(f"the journal is damaged: {entry}; {_ADVICE}") from entry
        return position

    def _cut_fragment(self, path: Path) -> None:
        """Cut what a process that died left of a line."""
        offset, last = segment.tail(path)[-1]
        if not last.endswith(b"\n"):
            self._cut(path, offset)

    def _cut(self, path: Path, offset: int, *, keep: bool = True) -> None:
        with open(path, "r+b") as file:
            if keep:
                aside = Quarantine(self._folder.with_name("quarantine"))
                file.seek(offset)
                aside.keep(f"{path.name}.{offset}", file.read())
                _logger.warning("%s had a line that was never committed; it is now in %s", path, aside.folder)
            file.truncate(offset)
            os.fsync(file.fileno())  # or a power loss could bring it back, in the place of what is written next

    def _put(self, frame: Frame, txn_id: int) -> None:
        if self._end >= self._limit and frame.first > segment.first_of(self._path):
            self._seal()
            self._begin(frame.first)
        self._write(encode_line(frame.first, frame.count, txn_id, frame.previous, frame.checksum, frame.body))
        self._checksum = frame.checksum

    def _write(self, content: bytes) -> None:
        self._dirty = True
        written = 0
        try:
            written = os.write(self._file, content)
        finally:
            if written != len(content):
                # A full disk. Nobody was told of this line, and it can be made again: so it need not be kept.
                os.ftruncate(self._file, self._end)
        if written != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self._path))
        self._end += written

    def _open(self, path: Path, flags: int) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
        self._end = os.fstat(self._file).st_size

    def _begin(self, first: int) -> None:
        """Open a new segment for what follows."""
        self._open(self._folder / segment.name(first), os.O_CREAT | os.O_EXCL)
        header = Header(segment.FORMAT, self._log_id.hex(), first, self._checksum.hex(), self._boot)
        self._write(segment.encode(header) + b"\n")
        sync_folder(self._folder)  # or a power loss could take this segment, and leave the ones behind it

    def _seal(self) -> None:
        """End the segment that is open. Nothing can be added to it from now on."""
        hasher, offset = blake3(), 0
        while chunk := os.pread(self._file, 1 << 20, offset):
            hasher.update(chunk)
            offset += len(chunk)
        self._write(segment.encode(Trailer(hasher.hexdigest())) + b"\n")
        self._release()
        self._compress_soon()

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _compress_soon(self) -> None:
        if self._compressor is None or not self._compressor.is_alive():
            self._compressor = threading.Thread(target=self._compress, name="sandkeep-journal")
            self._compressor.start()

    def _compress(self) -> None:
        for path in segment.listed(self._folder):
            try:
                if path.suffix != ".zst" and segment.sealed(path):
                    segment.compress(path)
            except FileNotFoundError:
                pass  # another process was faster
            except OSError as error:
                _logger.warning("%s is not compressed yet: %s", path, error)


def lock(folder: Path, *, alone: bool) -> int:
    """Hold the lock of the journal in `folder`, shared or `alone`, by the descriptor that is returned.

    Raises `LogBusy` if it is held otherwise, and `LogUnavailable`.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LogUnavailable(f"the journal in {folder} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        why = "other processes have it open; end them first" if alone else "it is being recovered; wait for that"
        raise LogBusy(f"the log of {folder} is in use: {why}") from error
    return descriptor


def this_boot() -> str:
    """A name for this boot of the machine. Where the system gives none each opening counts as a boot of its own."""
    with contextlib.suppress(FileNotFoundError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return secrets.token_hex(16)


def _readable(raw: bytes, log_id: bytes) -> bool:
    """Whether a last line is good, or one that its writer did not finish."""
    try:
        decode_line(raw, log_id)
    except LogDamaged:
        return not raw.endswith(b"\n")
    return True
