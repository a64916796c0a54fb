"""What the tests of the projections share: a log with a store that follows it, records, and commands on tasks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgspec

from sandkeep.events import Event, LmdbLog, Receipt, Record, schema
from sandkeep.events import catalogue as ev
from sandkeep.projections import (
    Caches,
    Checkpoints,
    Conflicts,
    Forks,
    Images,
    Locks,
    MemoryState,
    Networks,
    Projection,
    ProjectionStore,
    Registry,
    Resources,
    StateView,
    Task,
    digest,
    fold,
)
from sandkeep.projections.generation import SNAPSHOTS
from sandkeep.projections.registry import find

WORKER = Path(__file__).with_name("worker.py")
PROJECTIONS: tuple[Projection, ...] = (
    Registry(),
    Checkpoints(),
    Locks(),
    Conflicts(),
    Forks(),
    Images(),
    Networks(),
    Resources(),
    Caches(),
)


class Keep(NamedTuple):
    """An open log and the projections that follow it."""

    log: LmdbLog[StateView]
    store: ProjectionStore

    def digest(self) -> str:
        with self.store.reading() as state:
            return self.store.digest(state)

    def find(self, task: str) -> Task | None:
        with self.store.reading() as state:
            return find(state, task)

    def create(self, task: str) -> Receipt:
        """Create a task, if it is not there."""
        return self.log.decide(f"task/{task}", lambda state: [] if find(state, task) else [created(task)], actor="me")

    def check(self) -> str:
        """The digest, once the state in use is found to be what a fold of the whole log gives."""
        state = MemoryState()
        fold(PROJECTIONS, self.log.read(), state)
        assert self.digest() == digest(PROJECTIONS, state)
        return self.digest()


@contextlib.contextmanager
def keep(folder: Path, projections: Sequence[Projection] = PROJECTIONS, boot_id: str = "boot") -> Iterator[Keep]:
    """Open the log and the projections in `folder`."""
    store = ProjectionStore(folder / "projections", projections, boot_id)
    with contextlib.closing(LmdbLog[StateView](folder / "log", follower=store)) as log, contextlib.closing(store):
        store.open(log)
        yield Keep(log, store)


def generations(folder: Path) -> list[Path]:
    """The folders of the generations there are."""
    return [path for path in (folder / "projections").iterdir() if path.is_dir() and path.name != SNAPSHOTS]


def tamper(folder: Path, key: bytes, value: bytes) -> None:
    """Change the state of projections that nobody has open."""
    [path] = generations(folder)
    with lmdb.open(str(path), map_size=64 << 30) as env, env.begin(write=True) as txn:
        assert txn.put(key, value)


def created(task: str) -> Event:
    return ev.TaskCreated(intent=f"make {task}", title=f"Title of {task}", source=None, image="base")


def records(events: Iterable[tuple[str, Event]]) -> list[Record]:
    """The records that a log would hold after these events on these streams."""
    revisions: dict[str, int] = {}
    made = []
    for position, (stream, event) in enumerate(events, 1):
        revisions[stream] = revisions.get(stream, 0) + 1
        name, version, body = schema.encode(event)
        raw = msgspec.Raw(body)
        made.append(Record(position, stream, revisions[stream], 100 * position, "me", None, None, name, version, raw))
    return made


def folded(events: Iterable[tuple[str, Event]]) -> MemoryState:
    """The state after these events."""
    state = MemoryState()
    fold(PROJECTIONS, records(events), state)
    return state


def within(seconds: float, work: Callable[[], object]) -> Callable[[], None]:
    """Start `work` on a thread; the function returned waits for it, and fails when it takes longer (a deadlock)."""
    done = threading.Event()

    def run() -> None:
        work()
        done.set()

    threading.Thread(target=run, daemon=True).start()

    def wait() -> None:
        assert done.wait(seconds), "it failed, or did not come to an end"

    return wait
