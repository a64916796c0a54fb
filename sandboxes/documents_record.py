"""What verbs answer with about what is on record: events, runs, decisions and numbers; see `documents`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sandkeep.projections import Change, Fit
from sandkeep.sandboxes import documents
from sandkeep.sandboxes.documents import Task
from sandkeep.sandboxes.pages import numbers
from sandkeep.sandboxes.text import moment

if TYPE_CHECKING:
    from sandkeep import events, projections
    from sandkeep.events.catalogue import Output
    from sandkeep.projections import registry


class Record(msgspec.Struct, frozen=True):
    """An event as it is stored: `position` counts all of the log, `revision` those of its `stream`; `data` is what the
    event of this `type` and `version` holds."""

    position: int
    stream: str
    revision: int
    time: str
    time_ns: int
    actor: str
    cause: int | None
    key: str | None
    type: str
    version: int
    data: Any


class HistoryRecord(Record, frozen=True):
    """An event of a task, `abandoned` if it is on a branch that the task has left."""

    abandoned: bool


class Failure(msgspec.Struct, frozen=True):
    """Why something could not be done: a stable code, and what to do."""

    code: str
    message: str


class Execution(msgspec.Struct, frozen=True):
    """A command that was run: where its output is, not the output. While it is under way, or if nobody knows what
    became of it, all that is of its end is null."""

    number: int
    command: str
    actor: str
    argv: tuple[str, ...]
    cwd: str
    env: tuple[str, ...]
    timeout_s: float
    position: int
    begun: str
    ended: str | None
    exit_code: int | None
    duration_s: float | None
    timed_out: bool
    oom_killed: bool
    reason: str
    stdout_bytes: int | None
    stdout_blob: str | None
    stdout_truncated: bool
    stderr_bytes: int | None
    stderr_blob: str | None
    stderr_truncated: bool
    error: Failure | None

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than with exit code 0."""
        return self.ended is not None and self.exit_code != 0


class Decision(msgspec.Struct, frozen=True):
    """What somebody decided in a task, why, and against what; `abandoned` if the task has gone back to before it."""

    number: int
    text: str
    reason: str
    alternatives: tuple[str, ...]
    actor: str
    position: int
    time: str
    abandoned: bool


class Stats(msgspec.Struct, frozen=True):
    """The numbers of a task. `running_s` is the time that its commands took; what is behind `decisions` is of all its
    sandboxes."""

    task: str
    state: str
    events: int
    executions: int
    failures: int
    timed_out: int
    running_s: float
    output_bytes: int
    checkpoints: int
    restores: int
    decisions: int
    memory_peak: int
    pids_peak: int
    cpu_s: float
    throttled_s: float
    oom_kills: int


class FoundTask(Task, frozen=True):
    """A task that was looked for, and how it fits."""

    fit: Fit


class BeforeAfter(msgspec.Struct, frozen=True):
    """A value at the earlier moment, and at the later."""

    before: Any
    after: Any


class Changed(msgspec.Struct, frozen=True):
    """What became of a task between two moments: the task as it was at the later one, and the fields that differ."""

    change: Change
    task: Task
    fields: dict[str, BeforeAfter]


class Remembered(msgspec.Struct, frozen=True):
    """A memory folder that was made anew, up to a `revision` of its task. It is not `ok` if a page was not what had
    been written: `damage` says which, and what was there is in `quarantine`."""

    ok: bool
    task: str
    revision: int
    position: int
    damage: tuple[str, ...]
    quarantine: str | None


def record(found: events.Record) -> Record:
    """The document of a record."""
    return Record(**_record(found))


def history_record(found: events.Record, *, abandoned: bool) -> HistoryRecord:
    """The document of a record in a task's history."""
    return HistoryRecord(**_record(found), abandoned=abandoned)


def execution(found: projections.Execution) -> Execution:
    """The document of a command that was run."""
    same = ("number", "command", "actor", "argv", "cwd", "env", "position", "exit_code", "timed_out", "oom_killed")
    return Execution(
        **{name: getattr(found, name) for name in same},
        reason=found.reason,
        timeout_s=found.timeout_ns / 1e9,
        begun=moment(found.begun_ns),
        ended=None if found.ended_ns is None else moment(found.ended_ns),
        duration_s=None if found.duration_ns is None else found.duration_ns / 1e9,
        **_stream("stdout", found.stdout),
        **_stream("stderr", found.stderr),
        error=None if found.code is None else Failure(found.code, found.message or ""),
    )


def decision(found: projections.Decision) -> Decision:
    """The document of a decision."""
    same = ("number", "text", "reason", "alternatives", "actor", "position", "abandoned")
    return Decision(**{name: getattr(found, name) for name in same}, time=moment(found.time_ns))


def stats(task: registry.Task, found: projections.Stats, use: projections.Use) -> Stats:
    """The document of a task's numbers."""
    now = use.measured
    return Stats(
        task=task.id,
        state=task.state,
        **numbers(found),
        memory_peak=use.memory_bytes,
        pids_peak=use.pids,
        cpu_s=round((use.cpu_ns + (0 if now is None else now.cpu_ns)) / 1e9, 3),
        throttled_s=round((use.throttled_ns + (0 if now is None else now.throttled_ns)) / 1e9, 3),
        oom_kills=use.oom_kills + (0 if now is None else now.oom_kills),
    )


def found_task(found: projections.Found) -> FoundTask:
    """The document of a task that was looked for."""
    return FoundTask(**documents.task_fields(found.task), fit=found.fit)


def changed(found: projections.Changes) -> Changed:
    """The document of what became of a task."""
    fields = {name: BeforeAfter(before, after) for name, (before, after) in found.fields.items()}
    return Changed(found.change, documents.task(found.task), fields)


def _record(found: events.Record) -> dict[str, Any]:
    same = ("position", "stream", "revision", "time_ns", "actor", "cause", "key", "type", "version")
    return {name: getattr(found, name) for name in same} | {"time": moment(found.time_ns), "data": found.event}


def _stream(name: str, output: Output | None) -> dict[str, Any]:
    return {
        f"{name}_bytes": None if output is None else output.size,
        f"{name}_blob": None if output is None else output.blob,
        f"{name}_truncated": output is not None and output.truncated,
    }
