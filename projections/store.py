"""The state of the transactional projections, in an LMDB environment of its own.

It is a cache. Each *generation* is a folder `projections/<generation>/`; the file `projections/current` names the one
in use and the boot of the machine it was made under. Nothing here is ever synced, so after a power loss the pages may
be anything: a generation of another boot, of other projections or versions, or of another log is not opened but
replaced by a new one folded from the log.

Concurrency. A decision is made inside the log's write lock, with this environment's write transaction open around it
and its state advanced to the head: `begin` makes such a `Session`. The log commits first; a crash between the two
commits leaves the state a few records behind, and whoever comes next catches up. `reading` gives a consistent view that
is at the head or later than it was at the call. Any number of threads and processes; not across a fork.

Rebuild. A new generation is folded beside the old one, compared with it by digest, and swapped in by marking the old
one retired inside a write transaction, which every other process sees at its next transaction.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import final

import lmdb
import msgspec

from sandkeep.events import EventLog, Record, SandkeepError
from sandkeep.events.journal import this_boot
from sandkeep.events.lmdb_layout import is_cut
from sandkeep.projections.projection import MemoryState, Projection, StateView, digest, fold

_logger = logging.getLogger(__name__)

_MAP_SIZE = 64 << 30
_MAX_READERS = 1024
_POSITION = b"!position"
_IDENTITY = b"!identity"
_RETIRED = b"!retired"


class ProjectionsUnavailable(SandkeepError):
    """The projections' environment cannot be opened, read or written."""

    code = "projections-unavailable"


class Rebuilt(msgspec.Struct, frozen=True):
    """What a rebuild found: the digests of the state before (None if there was none) and after it."""

    position: int
    before: str | None
    after: str

    @property
    def same(self) -> bool:
        """Whether the state that was thrown away was right."""
        return self.before in (None, self.after)


class _Current(msgspec.Struct, frozen=True):
    generation: str
    boot_id: str


class LmdbView:
    """A `StateView` within one LMDB transaction."""

    def __init__(self, txn: lmdb.Transaction[bytes]) -> None:
        self._txn = txn

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._txn.get(key)
        except lmdb.Error as error:
            raise _unreadable(error) from error

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            cursor = self._txn.cursor()
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                yield cursor.item()
                found = cursor.next()
        except lmdb.Error as error:
            raise _unreadable(error) from error


@final
class LmdbState(LmdbView):
    """A `State` within one LMDB write transaction."""

    def put(self, key: bytes, value: bytes) -> None:
        self._txn.put(key, value)

    def delete(self, key: bytes) -> None:
        self._txn.delete(key)


@final
class _StoreSession:
    """A write of the projections inside a write of the log (see `events.log.Session`)."""

    def __init__(self, store: ProjectionStore, txn: lmdb.Transaction[bytes]) -> None:
        self._store = store
        self._txn = txn
        self._view = LmdbView(txn)

    @property
    def view(self) -> StateView:
        return self._view

    def apply(self, records: Sequence[Record]) -> None:
        self._store.advance(self._txn, records)

    def commit(self) -> None:
        # The events are durable by now. If the cache cannot take them it is left behind, and caught up by the next.
        with contextlib.suppress(lmdb.Error):
            self._txn.commit()

    def abort(self) -> None:
        self._txn.abort()


@final
class ProjectionStore:
    """The projections in the folder `root`. A `Follower` of the log whose state it holds."""

    def __init__(self, root: Path, projections: Sequence[Projection], boot_id: str | None = None) -> None:
        """`boot_id` names this boot of the machine; by default the kernel's."""
        self._root = root
        self._projections = tuple(projections)
        self._boot_id = boot_id or this_boot()
        self._lock = threading.Lock()
        self._log: EventLog[StateView] | None = None
        self._env: lmdb.Environment | None = None
        self._retired: list[lmdb.Environment] = []

    def open(self, log: EventLog[StateView]) -> None:
        """Take up the current generation, or begin a new one if it is not fit for use, and catch up with `log`."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log = log
        with self._exclusive(), self._guarded():
            if not self._attach():
                self._begin_generation()
        with self.reading():
            pass

    def close(self) -> None:
        """Release the environment. Safe to call twice."""
        with self._lock:
            environments = [env for env in (self._env, *self._retired) if env is not None]
            self._env, self._retired = None, []
        for env in environments:
            env.close()

    def begin(self, head: int, read: Callable[[int], Iterator[Record]]) -> _StoreSession:
        """A session at position `head` (see `events.log.Follower`). Only the log calls this, under its write lock."""
        txn = self._transaction(write=True)
        try:
            with self._guarded():
                if _position(txn) < head:
                    self.advance(txn, read(_position(txn)))
        except BaseException:
            txn.abort()
            raise
        return _StoreSession(self, txn)

    def advance(self, txn: lmdb.Transaction[bytes], records: Sequence[Record] | Iterator[Record]) -> None:
        """Fold `records` into the state within `txn`."""
        with self._guarded():
            position = fold(self._projections, records, LmdbState(txn))
            if position:
                txn.put(_POSITION, position.to_bytes(8, "big"))

    @contextlib.contextmanager
    def reading(self) -> Iterator[StateView]:
        """A consistent view of the state, no older than the log's head at the call."""
        log = self._opened_log()
        head = log.head().position
        txn = self._transaction(write=False)
        if _position(txn) < head:
            txn.abort()
            with self._guarded(), self._transaction(write=True) as writing:
                self.advance(writing, log.read(_position(writing)))
            txn = self._transaction(write=False)
        try:
            yield LmdbView(txn)
        finally:
            txn.abort()

    def as_of(self, position: int) -> StateView:
        """The state after the record at `position`, folded anew in memory. The cost is that of the log before it."""
        state = MemoryState()
        fold(self._projections, self._opened_log().read(until=position), state)
        return state

    def digest(self, state: StateView) -> str:
        """The digest of `state` over all projections."""
        return digest(self._projections, state)

    def position(self, state: StateView) -> int:
        """The position that a `state` given by `reading` is of."""
        return int.from_bytes(state.get(_POSITION) or b"", "big")

    def rebuild(self, progress: Callable[[int], None] = lambda position: None) -> Rebuilt:
        """Fold the whole log into a new generation and swap it in, while other processes go on.

        `progress` is called with positions along the way. A decision made meanwhile waits for the swap at most.
        """
        log = self._opened_log()
        with self._exclusive(), self._guarded():
            self._follow_swap()
            generation = secrets.token_hex(8)
            env = self._create(generation)
            try:
                position = 0
                while (head := log.head().position) > position:
                    with env.begin(write=True) as txn:
                        self.advance(txn, _reported(log.read(position, until=head), progress))
                        position = _position(txn)
                # Nothing can be decided while the old generation's write transaction is held.
                with self._transaction(write=True) as old, env.begin(write=True) as new:
                    self.advance(old, log.read(_position(old)))
                    self.advance(new, log.read(position))
                    before, after = self.digest(LmdbView(old)), self.digest(LmdbView(new))
                    position = _position(new)
                    self._name_current(generation)
                    old.put(_RETIRED, b"1")
            finally:
                env.close()
            self._attach()
            self._remove_all_but(generation)
        return Rebuilt(position, before, after)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns what LMDB raises into `ProjectionsUnavailable`; a commit may fail too."""
        try:
            yield
        except lmdb.Error as error:
            raise ProjectionsUnavailable(f"the projections cannot be written: {error}; delete {self._root}") from error

    def _opened_log(self) -> EventLog[StateView]:
        if self._log is None:
            raise ProjectionsUnavailable("the projections are closed; open the keep again")
        return self._log

    def _transaction(self, *, write: bool) -> lmdb.Transaction[bytes]:
        """A transaction on the generation in use, following another process's swap."""
        while True:
            txn = self._begin_transaction(write)
            if txn.get(_RETIRED) is None:
                return txn
            txn.abort()
            with self._exclusive():
                self._follow_swap()

    def _begin_transaction(self, write: bool) -> lmdb.Transaction[bytes]:
        with self._lock:
            if self._env is None:
                raise ProjectionsUnavailable("the projections are closed; open the keep again")
            env = self._env
        try:
            try:
                return env.begin(write=write)
            except lmdb.ReadersFullError:  # by the dead, perhaps
                env.reader_check()
                return env.begin(write=write)
        except lmdb.Error as error:
            raise ProjectionsUnavailable(f"the projections in {self._root} cannot be opened: {error}") from error

    def _follow_swap(self) -> None:
        """Leave a generation that another process has retired. Called under `_exclusive`, which cannot be nested."""
        with self._begin_transaction(write=False) as txn:
            retired = txn.get(_RETIRED) is not None
        if retired and not self._attach():
            self._begin_generation()

    def _attach(self) -> bool:
        """Open the generation that `current` names, if it is one of this boot, these projections and this log."""
        try:
            current = msgspec.json.decode((self._root / "current").read_bytes(), type=_Current)
        except (FileNotFoundError, msgspec.DecodeError):
            return False
        path = self._root / current.generation
        if current.boot_id != self._boot_id or not current.generation.isalnum() or not path.is_dir():
            return False
        if is_cut(path):  # mapping it would end this process
            _logger.warning("the projections in %s were cut and are made anew", path)
            return False
        try:
            env = self._open_env(path)
            with env.begin() as txn:
                fit = txn.get(_IDENTITY) == self._identity() and txn.get(_RETIRED) is None
                fit = fit and _position(txn) <= self._opened_log().head().position
        except lmdb.Error as error:
            # A cache that cannot be opened is replaced like one that does not fit.
            _logger.warning("the projections in %s cannot be opened (%s) and are made anew", path, error)
            return False
        if fit:
            self._use(env)
        else:
            env.close()
        return fit

    def _begin_generation(self) -> None:
        generation = secrets.token_hex(8)
        env = self._create(generation)
        self._name_current(generation)
        self._use(env)
        self._remove_all_but(generation)

    def _remove_all_but(self, generation: str) -> None:
        for path in self._root.iterdir():
            if path.is_dir() and path.name != generation:
                shutil.rmtree(path)

    def _use(self, env: lmdb.Environment) -> None:
        with self._lock:
            # Other threads may still read the old one; closing it now would end their transactions.
            if self._env is not None:
                self._retired.append(self._env)
            self._env = env

    def _create(self, generation: str) -> lmdb.Environment:
        env = self._open_env(self._root / generation)
        with env.begin(write=True) as txn:
            txn.put(_IDENTITY, self._identity())
        return env

    def _open_env(self, path: Path) -> lmdb.Environment:
        path.mkdir(mode=0o700, exist_ok=True)  # LMDB would make it without the permission to enter it
        env = lmdb.open(
            os.fspath(path), map_size=_MAP_SIZE, max_readers=_MAX_READERS, mode=0o600, sync=False, metasync=False
        )
        # A reader that was killed would hold its place in the table, and old pages, for ever.
        env.reader_check()
        return env

    def _identity(self) -> bytes:
        versions = sorted((projection.name, projection.version) for projection in self._projections)
        log = self._opened_log()
        return msgspec.msgpack.encode((log.log_id, log.incarnation, versions))

    def _name_current(self, generation: str) -> None:
        temporary = self._root / f".current-{generation}"
        temporary.write_bytes(msgspec.json.encode(_Current(generation, self._boot_id)))
        temporary.replace(self._root / "current")

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process at a time chooses or makes a generation."""
        with open(self._root / "lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _unreadable(error: lmdb.Error) -> ProjectionsUnavailable:
    return ProjectionsUnavailable(f"the projections cannot be read: {error}; delete their folder, the log is the truth")


def _position(txn: lmdb.Transaction[bytes]) -> int:
    return int.from_bytes(txn.get(_POSITION) or b"", "big")


def _reported(records: Iterator[Record], progress: Callable[[int], None]) -> Iterator[Record]:
    for record in records:
        yield record
        if record.position % 1024 == 0:
            progress(record.position)
