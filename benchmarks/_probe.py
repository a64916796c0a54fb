"""What `benchmarks/log.py` needs a process of its own for: building long logs, and what a fresh process takes.

    frames FOLDER BATCH TOTAL   build a log of TOTAL events, BATCH to a frame
    keep FOLDER TOTAL           build a keep of so many events, its projections at the head; print a task's id
    empty                       the peak memory of a process that imports nothing of ours, in KiB, and its anonymous
    replay FOLDER               the same of one that replays the log in FOLDER
    open FOLDER TASK            milliseconds from opening the keep to the first answers, and those of the imports

Building turns LMDB's syncs off, in the building process only, and begins with a map that need not grow; all else is the
path of every append. So the log holds what synced appends of the same times would have stored, byte for byte, and lies
in the page cache as theirs would.
Nothing is imported at the top that an empty process would not have.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

SAMPLED = 10_000
"""Events between two looks at the memory."""

MAP_BYTES = 4 << 30
"""Address space of a log that is built: more than it comes to need."""


def status(name: str) -> int:
    """A figure of this process from proc(5), in KiB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _unsynced() -> None:
    import lmdb

    opened = lmdb.open

    def unsynced(*arguments: object, **options: object) -> object:
        changed = {**options, "sync": False, "metasync": False, "map_size": MAP_BYTES}
        return opened(*arguments, **changed)  # type: ignore[arg-type]

    lmdb.open = unsynced  # type: ignore[assignment]


def frames(folder: str, size: str, total: str) -> None:
    _unsynced()
    from pathlib import Path

    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from benchmarks._logs import STREAMS, sample
    from sandkeep.events import LmdbLog
    from sandkeep.events.catalogue import CommandRequested

    batch = int(size)
    events = [CommandRequested(**fields) for fields in sample(1000)]
    log: LmdbLog[None] = LmdbLog(Path(folder))
    for commit in range(int(total) // batch):
        at = commit * batch % len(events)
        log.append(f"task/{commit % STREAMS}", events[at : at + batch], actor="bench")
    log.close()


def keep(folder: str, total: str) -> None:
    _unsynced()
    from sandkeep.events import Event
    from sandkeep.events import catalogue as ev
    from sandkeep.sandboxes import Keep

    run = ev.CommandRequested("", ("python3", "-m", "pytest", "-q"), "/workspace", ("HOME", "PATH"), 10**9)
    quiet = ev.Output(0, b"")
    task = ""
    with Keep.init(folder) as made:
        made_events = made.head().position
        while made_events < int(total):
            task = f"{made_events:012x}"
            begun = [ev.TaskCreated(task, "Fix the parser", None, "sandkeep/base"), ev.WorkspacePrepared(task, None)]
            made.log.append(f"task/{task}", begun, actor="bench")
            for number in range(499):
                intent = f"{task}{number:x}"
                pair: list[Event] = [
                    ev.CommandRequested(intent, run.argv, run.cwd, run.env, run.timeout_ns),
                    ev.CommandExecuted(intent, 0, 10**6, False, quiet, quiet),
                ]
                made.log.append(f"task/{task}", pair, actor="bench")
            made_events += 1000
        made.tasks()
        made.publish_checkpoint()
    print(f'"{task}"')


def empty() -> None:
    print([status("VmHWM"), status("RssAnon")])


def replay(folder: str) -> None:
    from pathlib import Path

    from sandkeep.events import LmdbLog

    log: LmdbLog[None] = LmdbLog(Path(folder))
    own = 0
    event = None
    for record in log.read():
        event = record.event
        if record.position % SAMPLED == 0:
            own = max(own, status("RssAnon"))
    assert event is not None
    print([status("VmHWM"), own])
    log.close()


def opening(folder: str, task: str) -> None:
    started = time.perf_counter()
    from sandkeep.sandboxes import Keep

    imported = time.perf_counter()
    opened = Keep.open(folder)
    found, listed = opened.task(task), opened.tasks()
    answered = time.perf_counter()
    assert found.id == task
    assert task in {one.id for one in listed}
    print([(answered - imported) * 1000, (imported - started) * 1000])
    opened.close()


if __name__ == "__main__":
    actions: dict[str, Callable[..., None]] = {
        "frames": frames, "keep": keep, "empty": empty, "replay": replay, "open": opening,
    }  # fmt: skip
    actions[sys.argv[1]](*sys.argv[2:])
