"""What the verbs for a task's record do: calls of the library, and documents of what it gave. They hold no logic."""

from __future__ import annotations

import itertools
import queue
from collections import deque
from collections.abc import Iterator, Sequence

from sandkeep.events import Record
from sandkeep.projections import Execution
from sandkeep.sandboxes import documents, documents_record
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.execution import Result, chunks

_LOOK_SECONDS = 0.5


def task_history(
    door: Door,
    *,
    task: str,
    after: int = 0,
    types: Sequence[str] = (),
    last: int | None = None,
    limit: int | None = None,
) -> list[documents_record.HistoryRecord]:
    """What ever happened in a task; see `Task.history`."""
    found = door.keep.task(task)
    line = found.line()
    records = itertools.islice(found.history(after, types=types, last=last), limit)
    return [documents_record.history_record(each, abandoned=each.position not in line) for each in records]


def task_executions(
    door: Door, *, task: str, failed: bool = False, last: int | None = None, output: int | None = None
) -> list[documents_record.Execution] | documents.Ran | documents_record.Execution:
    """The commands that were run in a task, or what one of them wrote; see `Task.executions`."""
    found = door.keep.task(task)
    if output is not None:
        return _output(door, found.execution(output))
    chosen = (each for each in found.executions() if each.failed or not failed)
    return [documents_record.execution(each) for each in sorted(deque(chosen, last), key=lambda each: each.number)]


def record_decision(
    door: Door, *, task: str, text: str, reason: str = "", alternative: Sequence[str] = ()
) -> documents_record.Decision:
    """Put on record what was decided; see `Task.record_decision`."""
    made = door.keep.task(task).record_decision(text, reason=reason, alternatives=alternative)
    return documents_record.decision(made)


def task_decisions(door: Door, *, task: str, last: int | None = None) -> list[documents_record.Decision]:
    """What was decided in a task; see `Task.decisions`."""
    return [documents_record.decision(each) for each in deque(door.keep.task(task).decisions(), last)]


def task_stats(door: Door, *, task: str) -> documents_record.Stats:
    """The numbers of a task; see `Task.stats`."""
    found = door.keep.task(task)
    return documents_record.stats(found.state, found.stats(), door.keep.resources(found.id).use)


def rebuild_memory(door: Door, *, task: str) -> documents_record.Remembered:
    """Make a memory folder anew; see `Task.rebuild_memory`."""
    done = door.keep.task(task).rebuild_memory()
    return documents_record.Remembered(
        not done.damage, done.task, done.revision, done.position, done.damage, done.quarantine
    )


def events(
    door: Door, *, follow: bool = False, after: int = 0, limit: int | None = None
) -> Iterator[documents_record.Record]:
    """The log, and what happens from now on; see `Keep.events` and `Bus.catch_up`."""
    records = _following(door, after) if follow else door.keep.events(after)
    for each in itertools.islice(records, limit):
        yield documents_record.record(each)


def _following(door: Door, after: int) -> Iterator[Record]:
    arrived: queue.SimpleQueue[Record | Exception] = queue.SimpleQueue()
    with door.keep.bus.catch_up(after).subscribe(arrived.put, on_error=arrived.put):
        while True:
            try:
                # Not for ever: an interrupt that comes just before the wait begins is seen when it ends.
                found = arrived.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(found, Exception):
                raise found
            yield found


def _output(door: Door, found: Execution) -> documents.Ran | documents_record.Execution:
    """What a command wrote, as `execute` tells it."""
    stdout, stderr, code, taken = found.stdout, found.stderr, found.exit_code, found.duration_ns
    if stdout is None or stderr is None or code is None or taken is None:
        door.note(f"run {found.number} has no output: {found.message or 'it is under way'}")
        return documents_record.execution(found)
    blobs = door.keep.blobs
    for name, output in (("stdout", stdout), ("stderr", stderr)):
        for piece in chunks(output, blobs):
            door.output(name, piece)
    result = Result(found.command, code, taken / 1e9, found.timed_out, stdout, stderr, oom_killed=found.oom_killed)
    return documents.ran(result, blobs)
