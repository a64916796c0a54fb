"""Snapshots: copies of the state at past positions, that views of the past begin from.

A snapshot is a folder `snapshots/<position>/` with a compact copy of the environment, and `snapshot.json`, written
last, with the BLAKE3 of its file. They are caches: synced, compared with their digest before LMDB maps them, of this
log and these projections only, and deleted at will. One is taken every `SPACING` records. When there are more than
`MOST`, or they take more than `MOST_BYTES`, that one goes without which views of the past cost least more, if they are
asked for the more often the nearer they are: what it adds to the fold of those behind it, by its age.

Any number of threads and processes; one of them takes snapshots at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

import lmdb
import msgspec
from blake3 import blake3

from sandkeep.projections.generation import IDENTITY, MAP_SIZE, position_of

_logger = logging.getLogger(__name__)

SPACING = 65_536
"""How many records are between two snapshots, as they are taken."""

MOST = 16
"""How many snapshots are kept."""

MOST_BYTES = 4 << 30
"""How much they may take of the disk, as long as there are two at least."""

_SHARE = 0.05
_META = "snapshot.json"


class _Meta(msgspec.Struct, frozen=True):
    position: int
    bytes: int
    digest: str


@final
class Snapshots:
    """The snapshots in the folder `root`, of a state with this `identity`."""

    def __init__(self, root: Path, identity: bytes) -> None:
        """The folder is made with the first snapshot."""
        self._root = root
        self._identity = identity
        self._lock = threading.Lock()
        self._open: dict[int, lmdb.Environment] = {}
        self._forgotten: list[lmdb.Environment] = []
        self._taking: threading.Thread | None = None
        self._not_before = 0.0
        self._last = max((position for position, _ in self._kept()), default=0)

    def close(self) -> None:
        """Wait for a snapshot that is being taken, and release all."""
        self.wait()
        with self._lock:
            environments = [*self._open.values(), *self._forgotten]
            self._open, self._forgotten = {}, []
        for env in environments:
            env.close()

    def wait(self) -> None:
        """Until no snapshot is being taken by this process."""
        taking = self._taking
        if taking is not None:
            taking.join()

    def consider(self, env: lmdb.Environment, position: int, *, eager: bool = False) -> None:
        """Take a snapshot of `env`, which is at `position`, on another thread, if it is time for one.

        Unless `eager`, not so often that it takes more than `_SHARE` of all time: what was put off is taken later.
        """
        if abs(position - self._last) < SPACING or not (eager or time.monotonic() >= self._not_before):
            return
        with self._lock:
            if self._taking is not None and self._taking.is_alive():
                return
            self._last = position
            self._taking = threading.Thread(target=self._take_logged, args=(env,), name="sandkeep-snapshot")
            self._taking.start()

    def take(self, env: lmdb.Environment) -> None:
        """Take a snapshot of `env` now, unless another process is taking one or there is one close by."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self._root / "lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            with env.begin() as txn:
                position = position_of(txn)
            if all(abs(position - kept) >= SPACING // 2 for kept, _ in self._kept()):
                self._copy(env)
            self._thin()

    def forget(self) -> None:
        """Remove all: what they were copied from was not what the log says."""
        self.wait()
        for _, path in self._kept():
            shutil.rmtree(path, ignore_errors=True)
        with self._lock:
            # A view of the past may still read them.
            self._forgotten += self._open.values()
            self._open.clear()
            self._last = 0

    @contextlib.contextmanager
    def before(self, position: int) -> Iterator[lmdb.Transaction[bytes] | None]:
        """The newest snapshot that is not past `position`, None if there is none that is whole."""
        for kept, path in sorted(self._kept(), reverse=True):
            if kept <= position and (env := self._environment(kept, path)) is not None:
                with env.begin() as txn:
                    yield txn
                return
        yield None

    def _kept(self) -> list[tuple[int, Path]]:
        try:
            return [(int(path.name), path) for path in self._root.iterdir() if path.name.isdecimal()]
        except FileNotFoundError:
            return []

    def _environment(self, position: int, path: Path) -> lmdb.Environment | None:
        with self._lock:
            if position in self._open:
                return self._open[position]
            try:
                meta = msgspec.json.decode((path / _META).read_bytes(), type=_Meta)
                if (meta.position, meta.digest) != (position, _digest(path / "data.mdb")):
                    raise lmdb.CorruptedError("its digest is another")
                env = lmdb.open(os.fspath(path), map_size=MAP_SIZE, readonly=True, lock=False, max_readers=1024)
            except (FileNotFoundError, msgspec.DecodeError, lmdb.Error) as error:
                if path.exists():
                    _logger.warning("the snapshot %s cannot be used (%s) and is removed", path, error)
                    shutil.rmtree(path, ignore_errors=True)
                return None
            with env.begin() as txn:
                fit = txn.get(IDENTITY) == self._identity and position_of(txn) == position
            if not fit:
                env.close()
                shutil.rmtree(path, ignore_errors=True)
                return None
            self._open[position] = env
            return env

    def _take_logged(self, env: lmdb.Environment) -> None:
        begun = time.monotonic()
        try:
            self.take(env)
        except (OSError, lmdb.Error) as error:
            _logger.warning("no snapshot of the projections was taken: %s", error)
        ended = time.monotonic()
        self._not_before = ended + (ended - begun) / _SHARE

    def _copy(self, env: lmdb.Environment) -> None:
        making = self._root / ".making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        try:
            env.copy(os.fspath(making), compact=True)
            # The copy is of when it began, which may be later than when it was asked for.
            with (
                lmdb.open(os.fspath(making), map_size=MAP_SIZE, readonly=True, lock=False) as copy,
                copy.begin() as txn,
            ):
                position = position_of(txn)
            data = making / "data.mdb"
            meta = _Meta(position, data.stat().st_size, _digest(data))
            (making / _META).write_bytes(msgspec.json.encode(meta))
            for path in (data, making / _META, making):
                _sync(path)
            making.rename(self._root / str(position))
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _thin(self) -> None:
        kept = sorted(self._kept())
        sizes = {position: _size(path) for position, path in kept}
        while len(kept) > MOST or (len(kept) > 2 and sum(sizes[position] for position, _ in kept) > MOST_BYTES):
            positions = [0, *(position for position, _ in kept)]
            newest = positions[-1]

            def missed(place: int, positions: list[int] = positions, newest: int = newest) -> float:
                before, here, after = positions[place : place + 3]
                return (here - before) * (after - here) / (newest - here)

            spare = min(range(len(kept) - 1), key=missed)
            shutil.rmtree(kept.pop(spare)[1], ignore_errors=True)


def _digest(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def _size(path: Path) -> int:
    try:
        return (path / "data.mdb").stat().st_size
    except FileNotFoundError:
        return 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
