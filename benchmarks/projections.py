"""How fast the registry takes tasks in, answers, tells the past and is rebuilt: at a million tasks, or events.

Creating. Tasks are created through a decider that first looks whether the id is taken, a thousand callers of one
process at a time; they share commits, each synced, to the log with its journal.

Asking. The registry of a million tasks is asked for tasks by id, for the first page of listings of every index, order
and combination of them (also such as match nothing, or only what is far away), and for words: rare, common, begun,
misspelt and absent. A run's value is the 99th percentile of its questions.

Rebuilding. One log of a million events is a mix: 100,000 lives of a task of ten events each, two hundred at a time. All
its projections are folded into a new generation, which is compared by digest with the one in use, and taken up. The
peer, in an environment of its own, folds a tenth of these events from its own store into indexed tables and compares
nothing; its time is taken ten times. The other log, a million creations, is rebuilt too, for its figure. The snapshots
that views of the past begin from were taken by an earlier rebuild.

Locking: see `_locks`.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from sandkeep.events import Event, LmdbLog
from sandkeep.events import catalogue as ev
from sandkeep.projections import (
    Checkpoints,
    Filter,
    ProjectionStore,
    Registry,
    Sort,
    StateView,
    TaskState,
    find_tasks,
    list_tasks,
    registry,
)

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import _locks
from benchmarks._harness import absolute, alternate, claim, options, report, versions, workspace
from benchmarks._peer import Peer

CALLERS = 1000
WORDS = [
    *("fix", "add", "test", "remove", "update", "refactor", "document", "parser", "lexer", "cache", "index", "login"),
    *("page", "flaky", "build", "release", "worker", "queue", "schema", "migration", "token", "session", "button"),
    *("layout", "error", "timeout", "retry", "memory", "leak", "crash", "report", "export", "import", "upload"),
    *("search", "filter", "cursor", "registry", "lock", "checkpoint", "restore", "snapshot", "sandbox", "container"),
    *("network", "proxy", "policy", "agent"),
]
OWNERS = [f"agent-{number}" for number in range(40)] + ["rarely"]
TAGS = ["backend", "frontend", "urgent", "later", "security", "speed", "docs", "ci"]
SQLITE = "eventsourcing on SQLite, into indexed tables"


def creation(number: int, chosen: random.Random, parents: Sequence[str]) -> ev.TaskCreated:
    """One of many different tasks; what words, owners and tags they have is as uneven as in life."""
    ranks = [min(int(chosen.expovariate(0.08)), len(WORDS) - 1) for _ in range(5)]
    words = [WORDS[rank] for rank in ranks]
    owner = OWNERS[-1] if number % 20_000 == 7 else OWNERS[min(int(chosen.expovariate(0.1)), len(OWNERS) - 2)]
    return ev.TaskCreated(
        intent=f"{number:x}",
        title=f"{' '.join(words)} #{number}",
        source=None,
        image="sandkeep/base",
        owner=owner,
        tags=tuple(tag for tag in TAGS if chosen.random() < 0.15),
        parent=chosen.choice(parents) if parents and chosen.random() < 0.1 else None,
    )


def life(number: int, chosen: random.Random) -> Iterator[Event]:
    """The ten events of a task's life."""
    name, output = f"{number:x}", ev.Output(120, b"x" * 120)
    yield creation(number, chosen, ())
    yield ev.WorkspacePrepared(name, "a" * 40)
    yield ev.SandboxRequested(f"{name}s", "sha256:" + "b" * 64, ev.Limits(1 << 30, 10**9, 512, 1 << 29))
    yield ev.SandboxStarted(f"{name}s", "c" * 64)
    for step in range(2):
        yield ev.CommandRequested(f"{name}{step}", ("python", "-m", "pytest", "-q"), "/workspace", ("HOME",), 10**9)
        yield ev.CommandExecuted(f"{name}{step}", int(number % 7 == 0), 10**9, False, output, ev.Output(0), 10**8)
    yield ev.CheckpointCreated(f"{number:012x}", "d" * 64, 10, 20_000, "label")
    yield ev.TaskFailed("no") if number % 9 == 0 else ev.TaskCompleted("done")


def mix(tasks: int) -> Iterator[tuple[str, Event]]:
    """The lives of so many tasks, two hundred at a time."""
    chosen = random.Random(4)
    live: list[tuple[str, Iterator[Event]]] = []
    begun = 0
    while begun < tasks or live:
        while begun < tasks and len(live) < 200:
            live.append((f"task/{chosen.getrandbits(48):012x}", life(begun, chosen)))
            begun += 1
        place = chosen.randrange(len(live))
        stream, events = live[place]
        event = next(events, None)
        if event is None:
            live[place] = live[-1]
            live.pop()
        else:
            yield stream, event


class Kept:
    """A log with its journal, and the projections that follow it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.store = ProjectionStore(folder / "projections", (Registry(), Checkpoints()))
        self.log: LmdbLog[StateView] = LmdbLog(folder / "log", follower=self.store, journal=folder / "journal")
        self.store.open(self.log)
        self.ids: list[str] = []

    def create(self, count: int) -> float:
        """Create so many tasks; tasks a second."""
        chosen = random.Random(len(self.ids))
        taken = 0.0
        for begin in range(0, count, CALLERS):
            made = [
                (f"{chosen.getrandbits(48):012x}", creation(len(self.ids) + number, chosen, self.ids[:50]))
                for number in range(min(CALLERS, count - begin))
            ]
            started = time.perf_counter()
            asyncio.run(self._create(made))
            taken += time.perf_counter() - started
            self.ids += [task for task, _ in made]
        return count / taken

    async def _create(self, made: Sequence[tuple[str, ev.TaskCreated]]) -> None:
        def decider(state: StateView, task: str, event: Event) -> list[Event]:
            return [] if registry.find(state, task) else [event]

        await asyncio.gather(
            *(
                self.log.decide_async(f"task/{task}", partial(decider, task=task, event=event), actor="bench")
                for task, event in made
            )
        )

    def append(self, events: Iterator[tuple[str, Event]]) -> None:
        """Append them, many a commit."""

        async def group(taken: list[tuple[str, Event]]) -> None:
            await asyncio.gather(*(self.log.append_async(stream, [event], actor="bench") for stream, event in taken))

        while taken := list(islice(events, CALLERS)):
            asyncio.run(group(taken))

    def rebuild(self) -> float:
        """Rebuild the projections; milliseconds."""
        started = time.perf_counter()
        rebuilt = self.store.rebuild()
        taken = time.perf_counter() - started
        if not rebuilt.same or rebuilt.position != self.log.head().position:
            raise RuntimeError("the rebuilt projections are not what they were")
        return taken * 1e3

    def past(self, count: int) -> float:
        """The slowest of `count` first pages as of moments all over the past; milliseconds."""
        head, slowest = self.log.head().position, 0.0
        for number in range(count):
            position = random.Random(number).randrange(head)
            started = time.perf_counter()
            with self.store.as_of(position) as state:
                list_tasks(state, Filter(states=(TaskState.ACTIVE,)), limit=50)
            slowest = max(slowest, time.perf_counter() - started)
        return slowest * 1e3

    def close(self) -> None:
        self.log.close()
        self.store.close()


def percentile(state: StateView, questions: Sequence[Callable[[StateView], object]], times: int) -> float:
    """The 99th percentile of the time that `questions` take, each asked `times` times in turn; seconds."""
    taken = []
    for _ in range(times):
        for question in questions:
            started = time.perf_counter()
            question(state)
            taken.append(time.perf_counter() - started)
    return statistics.quantiles(taken, n=100)[98]


def listings(kept: Kept) -> list[Callable[[StateView], object]]:
    """First pages of every index, alone and combined, in every order."""
    with kept.store.reading() as state:
        span = [registry.created(state, len(kept.ids) * part // 4).created_ns for part in (1, 3)]
    filters = [
        Filter(),
        *(Filter(states=(each,)) for each in TaskState),
        Filter(states=tuple(each for each in TaskState if each is not TaskState.CLEANED)),
        Filter(owner="agent-0"),
        Filter(owner="agent-20", states=(TaskState.CREATED,)),
        Filter(owner="rarely"),
        Filter(owner="nobody"),
        Filter(owner="agent-1", states=(TaskState.FAILED,)),
        Filter(tags=("urgent",)),
        Filter(tags=("urgent", "security", "docs")),
        Filter(tags=("ci",), owner="agent-3", states=(TaskState.CREATED, TaskState.ACTIVE)),
        Filter(tags=("nothing",)),
        Filter(parent=kept.ids[3]),
        Filter(parent=kept.ids[3], owner="agent-30"),
        Filter(text="cursor agent"),
        Filter(text="fix", tags=("urgent",)),
        Filter(created_since=span[0], created_before=span[1]),
        Filter(created_before=span[0], owner="agent-5"),
        Filter(updated_since=span[1]),
        Filter(updated_before=span[0], tags=("later",)),
    ]
    orders = [(sort, reverse) for sort in Sort for reverse in (False, True)]
    return [
        partial(list_tasks, wanted=wanted, sort=sort, reverse=reverse, limit=50)
        for wanted in filters
        for sort, reverse in orders
    ]


def queries(kept: Kept) -> list[Callable[[StateView], object]]:
    """Words that are common, rare, begun, misspelt and absent, and ids."""
    asked = ["fix", "test", "fix test", "proxy policy", "regi", "test flaky login", "agent network fix", "urgent fix"]
    asked += [
        "parsre",
        "tset",
        "migratoin schema",
        "timout",
        "fix zzzz",
        "qqqq",
        "flakky tests",
        "123456",
        "12",
        "se re",
    ]
    asked += [kept.ids[1][:6], kept.ids[-1], "security docs crash", "con", "pro cac", "snapshto of chekpoint"]
    return [partial(find_tasks, query=query) for query in asked]


def lookups(kept: Kept) -> list[Callable[[StateView], object]]:
    """Tasks by their id."""
    return [
        partial(registry.find, task_id=task) for task in random.Random(1).sample(kept.ids, min(1000, len(kept.ids)))
    ]


def created(folder: Path, count: int, runs: int) -> list[float]:
    """Tasks a second, in a new keep each run."""

    def once() -> float:
        with closing(Kept(folder / f"new-{time.monotonic_ns()}")) as kept:
            return kept.create(count)

    return alternate(runs, {"ours": once}, f"creating {count} tasks")["ours"]


def asked(kept: Kept, runs: int) -> dict[str, list[float]]:
    """The percentiles of questions to a full registry, in microseconds."""
    sides = {"lookup": (lookups(kept), 5, 1e6), "listing": (listings(kept), 2, 1e6), "find": (queries(kept), 5, 1e6)}

    def once(questions: list[Callable[[StateView], object]], times: int, unit: float) -> float:
        with kept.store.reading() as state:
            return percentile(state, questions, times) * unit

    return alternate(runs, {name: partial(once, *side) for name, side in sides.items()}, "questions to the registry")


def rebuilding(folder: Path, peer: Peer, many: int, runs: int) -> tuple[dict[str, list[float]], list[float]]:
    """Milliseconds to rebuild from a mix of `many` events, beside the peer's; and to look at its past."""
    tenth = max(10_000, many // 10)
    facts = [
        (stream, type(event).__name__, msgspec.json.encode(event).decode())
        for stream, event in islice(mix(many // 10), tenth)
    ]
    for begin in range(0, tenth, CALLERS):
        peer.ask("append", facts[begin : begin + CALLERS])
    with closing(Kept(folder / "mix")) as kept:
        kept.append(mix(many // 10))
        kept.rebuild()
        sides = {"ours": kept.rebuild, "peer": lambda: float(peer.ask("rebuild")) * 1e3 * many / tenth}
        rebuilt = alternate(runs, sides, "rebuilding from the mix")
        past = alternate(runs, {"ours": partial(kept.past, 10)}, "as of the past")
    return rebuilt, past["ours"]


def main() -> int:
    chosen = options(__doc__)
    size, many = max(2000, round(100_000 * chosen.scale)), max(20_000, round(1_000_000 * chosen.scale))
    runs = chosen.runs
    with workspace() as folder, Peer("registry_sqlite", "bench", str(folder)) as peer:
        measured = versions("lmdb", "msgspec", "blake3") | peer.ask("open")
        rates = created(folder, size, runs)
        rebuilt, past = rebuilding(folder, peer, many, runs)
        with closing(Kept(folder / "many")) as kept:
            taken = [many / kept.create(many)]
            answers = asked(kept, runs)
            creations = [kept.rebuild()]
        locks, floor = _locks.claims(folder / "locks", runs, chosen.scale)
    less = partial(absolute, better="lower")
    claims = [
        absolute(f"create {size:,} tasks through deciders", "tasks/s", rates, 10_000),
        less(f"create {many:,} tasks, once", "s", taken, 120 * many / 1e6),
        less("lookup by id, p99", "µs", answers["lookup"], 100),
        less("first page of a listing, p99", "µs", answers["listing"], 5000),
        less("find-task, p99", "µs", answers["find"], 50_000),
        less(f"rebuild from a mix of {many:,} events, verified", "ms", rebuilt["ours"], 8e3 * many / 1e6),
        claim("rebuild from a mix", "ms", rebuilt["ours"], rebuilt["peer"], peer_name=SQLITE, bar=1.0, better="lower"),
        less("first page of the past, slowest of 10", "ms", past, 1000),
        claim("rebuild from creations only, once", "ms", creations, [1e3], peer_name="1 s, no bar", bar=0.0),
        *locks,
    ]
    return report("projections", claims, measured, floor, check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
