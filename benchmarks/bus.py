"""How fast the bus fans out, beside a bare RxPY Subject, and how soon another process has a record.

Fan-out. Twenty subscribers, each with a filter that lets one record in twenty through and a map, are given the same
records. The bus reads them from a log on disk, verifies and decodes them, contains faults and bounds memory; the
Subject is handed a list of decoded records and does none of that. The plain loop over twenty functions is what Python
allows. The records were committed before: the clock runs from the wake-up to the last delivery.

Delivery. This process commits one event at a time; another, subscribed with `live`, stamps each as it gets it. The bars
are absolute: microseconds, and for the idle process the microseconds of processor time it takes in a second.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import reactivex
from reactivex import operators as ops

from sandkeep.events import Bus, LmdbLog, Record
from sandkeep.events.catalogue import TaskCompleted

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import absolute, alternate, claim, options, report, sync_floor, versions, workspace

SUBSCRIBERS = 20
BATCH = 100


class Held:
    """A log that seems empty until it is let go, so that its bus may be subscribed to before."""

    def __init__(self, log: LmdbLog[None]) -> None:
        self._log = log
        self._wake: Callable[[], None] = lambda: None
        self.free = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def head(self) -> Any:
        return self._log.head() if self.free else EMPTY

    def read(self, after: int = 0) -> Iterator[Record]:
        return self._log.read(after) if self.free else iter(())

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._wake = callback
        return lambda: None

    def go(self) -> None:
        self.free = True
        self._wake()


class _Empty:
    position = 0


EMPTY = _Empty()


def chain(
    source: reactivex.Observable[Record], number: int, seen: list[int], quota: int, done: Callable[[], object]
) -> None:
    """One subscriber: every twentieth record, by its position; `done` is called with the last of its `quota`."""

    def mine(record: Record) -> bool:
        return record.position % SUBSCRIBERS == number

    def name(record: Record) -> str:
        return record.stream

    def count(stream: str) -> None:
        seen[number] += 1
        if seen[number] == quota:
            done()

    source.pipe(ops.filter(mine), ops.map(name)).subscribe(count)


def ours(log: LmdbLog[None], total: int) -> float:
    """Events a second through the bus, from the log."""
    held, seen = Held(log), [0] * SUBSCRIBERS
    ended = threading.Semaphore(0)
    with closing(Bus(held)) as bus:  # type: ignore[arg-type]
        for number in range(SUBSCRIBERS):
            chain(bus.live(missed=print), number, seen, total // SUBSCRIBERS, ended.release)
        started = time.perf_counter()
        held.go()
        for _ in range(SUBSCRIBERS):
            if not ended.acquire(timeout=120):
                sys.exit("benchmark: the bus did not deliver everything")
        taken = time.perf_counter() - started
    assert sum(seen) == total
    return total / taken


def subject(records: list[Record]) -> float:
    """Events a second through a bare Subject."""
    source: reactivex.Subject[Record] = reactivex.Subject()
    seen = [0] * SUBSCRIBERS
    for number in range(SUBSCRIBERS):
        chain(source, number, seen, len(records) // SUBSCRIBERS, lambda: None)
    started = time.perf_counter()
    for record in records:
        source.on_next(record)
    taken = time.perf_counter() - started
    assert sum(seen) == len(records)
    return len(records) / taken


def loop(records: list[Record]) -> float:
    """Events a second through twenty functions that do the same."""
    seen = [0] * SUBSCRIBERS

    def one(number: int) -> Callable[[Record], None]:
        def take(record: Record) -> None:
            if record.position % SUBSCRIBERS == number and record.stream:
                seen[number] += 1

        return take

    takers = [one(number) for number in range(SUBSCRIBERS)]
    started = time.perf_counter()
    for record in records:
        for take in takers:
            take(record)
    taken = time.perf_counter() - started
    assert sum(seen) == len(records)
    return len(records) / taken


LISTENER = """
import resource, sys, time, threading
from pathlib import Path
from sandkeep.events import Bus, LmdbLog
log = LmdbLog(Path(sys.argv[1]), doorbells=Path(sys.argv[2]))
bus = Bus(log)
bus.live().subscribe(lambda record: print(int(record.event.summary), time.monotonic_ns(), flush=True))
time.sleep(0.5)
print("ready", flush=True)
for line in sys.stdin:
    before = time.process_time()
    time.sleep(float(line))
    print("idle", time.process_time() - before, flush=True)
"""


class Listener:
    """Another process on the log, subscribed to it."""

    def __init__(self, folder: Path) -> None:
        self.log: LmdbLog[None] = LmdbLog(folder / "shared", doorbells=folder / "doorbells")
        command = [sys.executable, "-P", "-c", LISTENER, str(folder / "shared"), str(folder / "doorbells")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.percentiles: list[float] = []
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def delivery(self, count: int) -> float:
        """The median of `count` deliveries, in microseconds; the 99th percentile is kept in `percentiles`."""
        taken = []
        for _ in range(count):
            time.sleep(0.002)
            self.log.append("task/a", [TaskCompleted(summary="0")], actor="bench")
            committed = time.monotonic_ns()
            taken.append(max(0.0, (int(self._line().split()[1]) - committed) / 1000))
        self.percentiles.append(statistics.quantiles(taken, n=100)[98])
        return statistics.median(taken)

    def idle(self, seconds: float) -> float:
        """Processor time of the other process while nothing happens: microseconds a second."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._line().split()[1]) / seconds * 1e6

    def close(self) -> None:
        self._process.communicate()
        self.log.close()


def main() -> int:
    chosen = options(__doc__)
    measured = versions("reactivex", "lmdb", "msgspec")
    total = max(200, round(40_000 * chosen.scale) // BATCH * BATCH)
    with workspace() as folder, closing(LmdbLog[None](folder / "log")) as log:
        for commit in range(total // BATCH):
            log.append(f"task/{commit % 16}", [TaskCompleted(summary="x" * 100)] * BATCH, actor="bench")
        records = list(log.read())
        fan = alternate(
            chosen.runs,
            {
                "ours": partial(ours, log, total),
                "peer": partial(subject, records),
                "loop": partial(loop, records),
                "floor": partial(sync_floor, folder, max(20, round(500 * chosen.scale))),
            },
            f"{SUBSCRIBERS} subscribers with filter and map",
        )
        with closing(Listener(folder)) as listener:
            each = alternate(
                chosen.runs,
                {
                    "delivery": partial(listener.delivery, max(20, round(200 * chosen.scale))),
                    "idle": partial(listener.idle, 1.0),
                },
                "delivery to another process, and idling",
            )
            worst = listener.percentiles
    text = f"bus, {SUBSCRIBERS} live subscribers with filter and map"
    claims = [
        claim(text, "events/s", fan["ours"], fan["peer"], peer_name="bare RxPY Subject", bar=0.8),
        absolute(text, "events/s", fan["ours"], 100_000),
        claim(text, "events/s", fan["ours"], fan["loop"], peer_name="plain loop over 20 functions", bar=0.0),
        absolute("delivery to another process, p50", "µs", each["delivery"], 2000, better="lower"),
        absolute("delivery to another process, p99", "µs", worst, 20_000, better="lower"),
        absolute("idle processor time of a subscribed process", "µs/s", each["idle"], 10_000, better="lower"),
    ]
    return report("bus", claims, measured, fan["floor"], check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
