"""The state of the transactional projections, in an LMDB environment of its own.

It is a cache (see `generation`): what is not fit for use is replaced by a new one folded from the log.

Concurrency. A decision is made inside the log's write lock, with this environment's write transaction open around it
and its state advanced to the head: `begin` makes such a `Session`. The log commits first; a crash between the two
commits leaves the state a few records behind, and whoever comes next catches up. `reading` gives a consistent view that
is at the head or later than it was at the call. Any number of threads and processes; not across a fork.

Rebuild. A new generation is folded beside the old one, while everybody goes on with that. Both are compared by digest
as of one position, each within a read transaction. Only then the old one's write lock is taken: what was decided
meanwhile is folded, and the old generation is marked as retired, which every other process sees at its next
transaction. A rebuild that was cut off is gone on with by the next.

The past. `as_of` begins from the newest snapshot before a position (see `snapshots`), and folds what is between into an
overlay in memory.
"""

from __future__ import annotations

import contextlib
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import final

import lmdb
import msgspec

from sandkeep.events import BadInput, EventLog, Record
from sandkeep.events.journal import this_boot
from sandkeep.projections.generation import POSITION, RETIRED, SNAPSHOTS, Generations, position_of
from sandkeep.projections.lmdb_state import LmdbState, LmdbView, ProjectionsUnavailable, ReadOnly
from sandkeep.projections.projection import BATCH, MemoryState, Projection, StateView, digest, fold
from sandkeep.projections.snapshots import Snapshots


class BadMoment(BadInput):
    """A moment that the log has not come to, or that is none."""

    code = "bad-moment"


class Rebuilt(msgspec.Struct, frozen=True):
    """What a rebuild found: the digests of the state before (None if there was none) and after it, as of `position`."""

    position: int
    before: str | None
    after: str

    @property
    def same(self) -> bool:
        """Whether the state that was thrown away was right."""
        return self.before in (None, self.after)


@final
class _StoreSession:
    """A write of the projections inside a write of the log (see `events.log.Session`)."""

    def __init__(self, store: ProjectionStore, txn: lmdb.Transaction[bytes]) -> None:
        self._store = store
        self._txn = txn
        self._state = LmdbState(txn)
        self._view = ReadOnly(self._state)

    @property
    def view(self) -> StateView:
        return self._view

    def apply(self, records: Sequence[Record]) -> None:
        self._store.fold(records, self._state)

    def commit(self) -> None:
        # The events are durable by now. If the cache cannot take them it is left behind, and caught up by the next.
        try:
            self._state.flush()
            position = position_of(self._txn)
            self._txn.commit()
        except lmdb.Error:
            self._txn.abort()
        else:
            self._store.came_to(position)

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
        identity = self._identity(log)
        self._generations = Generations(self._root, identity, self._boot_id)
        self._snapshots = Snapshots(self._root / SNAPSHOTS, identity)
        self._log = log
        with self._generations.exclusive(), self._guarded():
            self._take_up()
        with self.reading():
            pass

    def close(self) -> None:
        """Release the environment. Safe to call twice."""
        if self._log is not None:
            self._snapshots.close()
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
                if position_of(txn) < head:
                    self.advance(txn, read(position_of(txn)))
        except BaseException:
            txn.abort()
            raise
        return _StoreSession(self, txn)

    def fold(self, records: Sequence[Record], state: LmdbState) -> None:
        """Fold `records` into `state`, which is then at the position of the last of them."""
        with self._guarded():
            position = fold(self._projections, records, state)
            if position:
                state.put(POSITION, position.to_bytes(8, "big"))

    def advance(self, txn: lmdb.Transaction[bytes], records: Iterator[Record]) -> None:
        """Fold `records` into the state within `txn`."""
        with self._guarded():
            state = LmdbState(txn)
            while batch := list(islice(records, BATCH)):
                self.fold(batch, state)
                state.flush()

    def came_to(self, position: int) -> None:
        """The state in use was committed at `position`."""
        with self._lock:
            env = self._env
        if env is not None:
            self._snapshots.consider(env, position)

    @contextlib.contextmanager
    def reading(self) -> Iterator[StateView]:
        """A consistent view of the state, no older than the log's head at the call."""
        log = self._opened_log()
        head = log.head().position
        txn = self._transaction(write=False)
        if position_of(txn) < head:
            txn.abort()
            with self._guarded(), self._transaction(write=True) as writing:
                self.advance(writing, log.read(position_of(writing)))
            self.came_to(head)
            txn = self._transaction(write=False)
        try:
            yield LmdbView(txn)
        finally:
            txn.abort()

    @contextlib.contextmanager
    def as_of(self, position: int) -> Iterator[StateView]:
        """The state after the record at `position`. Raises `BadMoment` if there is none yet."""
        log = self._opened_log()
        head = log.head().position
        if not 0 <= position <= head:
            raise BadMoment(f"there is no position {position}; the log has those up to {head}")
        if position == head:
            with self.reading() as now:
                if self.position(now) == position:
                    yield now
                    return
        with self._snapshots.before(position) as txn:
            base = None if txn is None else LmdbView(txn)
            state = MemoryState(base)
            fold(self._projections, log.read(0 if txn is None else position_of(txn), until=position), state)
            yield ReadOnly(state)

    def refold(self, position: int) -> StateView:
        """The state after the record at `position`, made from nothing but the log. The cost is that of all of it."""
        state = MemoryState()
        fold(self._projections, self._opened_log().read(until=position), state)
        return state

    def digest(self, state: StateView) -> str:
        """The digest of `state` over all projections."""
        return digest(self._projections, state)

    def position(self, state: StateView) -> int:
        """The position that a `state` given by `reading` is of."""
        return int.from_bytes(state.get(POSITION) or b"", "big")

    def rebuild(self, progress: Callable[[int], None] = lambda position: None) -> Rebuilt:
        """Fold the whole log into a new generation and swap it in, while other processes go on.

        `progress` is called with positions along the way. A decision made meanwhile waits for the swap at most. What an
        earlier rebuild came to before it was cut off is used, unless the digests differ then: so all is folded anew.
        """
        self._opened_log()
        self._in_use()
        with self._generations.exclusive("rebuild.lock"), self._guarded():
            begun = self._generations.unfinished(self._opened_log().head().position)
            if begun is not None and (rebuilt := self._complete(*begun, progress, doubtful=True)) is not None:
                return rebuilt
            with self._generations.exclusive():
                begun = self._generations.begin("rebuilding")
            rebuilt = self._complete(*begun, progress, doubtful=False)
        assert rebuilt is not None
        return rebuilt

    def _complete(
        self, name: str, env: lmdb.Environment, progress: Callable[[int], None], *, doubtful: bool
    ) -> Rebuilt | None:
        """Fold what the generation `name` lacks, and swap it in; None if it is `doubtful` and not what is in use."""
        log = self._opened_log()
        used = False
        try:
            with env.begin() as txn:
                position = position_of(txn)
            while (head := log.head().position) > position:
                position = min(position + BATCH, head)
                with env.begin(write=True) as txn:
                    self.advance(txn, log.read(position_of(txn), until=position))
                self._snapshots.consider(env, position, eager=True)
                progress(position)
            rebuilt = self._compared(env)
            if doubtful and not rebuilt.same:
                return None
            # Nothing can be decided while the old generation's write transaction is held.
            with self._transaction(write=True) as old, self._generations.exclusive(), env.begin(write=True) as new:
                self.advance(new, log.read(position_of(new)))
                self._generations.take_up(name)
                # Before the old one is seen to be retired, which would make others open what is open here already.
                self._use(env)
                used = True
                old.put(RETIRED, b"1")
            with self._generations.exclusive():
                self._generations.remove_others()
        finally:
            if not used:
                self._snapshots.wait()
                env.close()
        if not rebuilt.same:
            self._snapshots.forget()
        return rebuilt

    def _compared(self, env: lmdb.Environment) -> Rebuilt:
        """The digests of the state in use and of the one in `env`, which is brought to the same position."""
        with self.reading() as old:
            position = self.position(old)
            with env.begin(write=True) as txn:
                self.advance(txn, self._opened_log().read(position_of(txn), until=position))
            with env.begin() as txn:
                return Rebuilt(position, self.digest(old), self.digest(LmdbView(txn)))

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

    def _in_use(self) -> lmdb.Environment:
        with self._lock:
            if self._env is None:
                raise ProjectionsUnavailable("the projections are closed; open the keep again")
            return self._env

    def _transaction(self, *, write: bool) -> lmdb.Transaction[bytes]:
        """A transaction on the generation in use, following another process's swap."""
        while True:
            txn = self._begin_transaction(write)
            if txn.get(RETIRED) is None:
                return txn
            txn.abort()
            with self._generations.exclusive():
                self._follow_swap()

    def _begin_transaction(self, write: bool) -> lmdb.Transaction[bytes]:
        env = self._in_use()
        try:
            try:
                return env.begin(write=write)
            except lmdb.ReadersFullError:  # by the dead, perhaps
                env.reader_check()
                return env.begin(write=write)
        except lmdb.Error as error:
            raise ProjectionsUnavailable(f"the projections in {self._root} cannot be opened: {error}") from error

    def _follow_swap(self) -> None:
        """Leave a generation that another process has retired. Called with the generations locked."""
        with self._begin_transaction(write=False) as txn:
            retired = txn.get(RETIRED) is not None
        if retired:
            self._take_up()

    def _take_up(self) -> None:
        """Use the generation that there is, or a new one if it is not fit. Called with the generations locked."""
        head = self._opened_log().head().position
        self._use(self._generations.current(head) or self._generations.begin("current")[1])

    def _use(self, env: lmdb.Environment) -> None:
        with self._lock:
            # Other threads may still read the old one; closing it now would end their transactions.
            if self._env is not None:
                self._retired.append(self._env)
            self._env = env

    def _identity(self, log: EventLog[StateView]) -> bytes:
        versions = sorted((projection.name, projection.version) for projection in self._projections)
        # What case-folding makes of a title is told by Unicode's tables.
        return msgspec.msgpack.encode((log.log_id, log.incarnation, versions, unicodedata.unidata_version))
