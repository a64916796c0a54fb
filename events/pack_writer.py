"""What a batch appends to a pack: frames, which a thread of its own compresses and writes while the next are gathered.

Compressing and writing let other threads run, so that a batch costs hardly more than reading and hashing what is put
into it. At most `QUEUED` frames wait; who adds another waits as well. A batch of a few frames has no thread.

What fails there is raised to whoever adds or finishes next. One thread may use a writer; and only the process that made
it: in one that was forked meanwhile it does nothing but let go.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from functools import partial
from typing import final

from sandkeep.events import pack_frame
from sandkeep.events.pack_frame import ARCHIVE_LEVEL, Kind
from sandkeep.events.pack_index import Placed
from sandkeep.events.packs import Packs

QUEUED = 12
"""How many frames wait to be compressed, at the most."""

Objects = Sequence[tuple[bytes, bytes]]
"""Contents, each with its digest in front."""


@final
class PackWriter:
    """Appends to one pack, which is acquired with the first frame. `written` is how many bytes that were."""

    def __init__(self, packs: Packs, level: int) -> None:
        self._packs = packs
        self._level = level
        self._process = os.getpid()
        self._file = -1
        self._start = 0
        self._queue: queue.Queue[tuple[Kind, Objects] | None] = queue.Queue(QUEUED)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self.pack = b""
        self.end = 0
        self.written = 0
        self.frames: list[Placed] = []

    def add(self, kind: Kind, objects: Objects) -> None:
        """Let a frame be appended. Raises `OSError` and `BlobsUnavailable`."""
        self._acquire()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="sandkeep-pack", daemon=True)
            self._thread.start()
        self._queue.put((kind, objects))
        self._check()

    def finish(self, rest: Sequence[tuple[Kind, Objects]]) -> bool:
        """Append the `rest`, and what ends a batch, and sync it; whether there was anything. Raises as `add` does."""
        self._join()
        self._check()
        for kind, objects in rest:
            self._acquire()
            self._append(kind, objects)
        if not self.frames:
            return False
        self._write(pack_frame.encode(self.pack, Kind.END, ()))
        self._packs.reserve.through(lambda: os.fdatasync(self._file))
        # From here on others may index it, so it stays even if we cannot.
        self._start = self.end
        return True

    def close(self) -> None:
        """Take back what was not finished."""
        self._stopping = True
        self._join()
        file, self._file = self._file, -1
        if file < 0:
            return
        try:
            if self.end > self._start and os.getpid() == self._process:
                os.ftruncate(file, self._start)
        finally:
            os.close(file)

    def _acquire(self) -> None:
        if self._file < 0:
            self.pack, self._file, self._start = self._packs.reserve.through(
                partial(self._packs.acquire, archive=self._level >= ARCHIVE_LEVEL)
            )
            self.end = self._start

    def _join(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._thread = None

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (found := self._queue.get()) is not None:
            if not self._stopping:
                try:
                    self._append(*found)
                except BaseException as error:  # noqa: BLE001 - raised by `_check`
                    self._failure, self._stopping = error, True

    def _append(self, kind: Kind, objects: Objects) -> None:
        offset = self.end
        self._write(pack_frame.encode(self.pack, kind, objects, self._level))
        self.frames.append((offset, kind, [(digest, len(content)) for digest, content in objects]))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = self._packs.reserve.through(partial(os.pwrite, self._file, view, self.end))
            self.end += written
            self.written += written
            view = view[written:]
