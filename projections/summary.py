"""What a task's own stream tells, at the cost of reading that stream: what was run and decided in it, and its numbers.

Pure folds over the records of one task. What is asked often, and of many tasks, is kept in the registry instead;
`stats` joins both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from sandkeep.events import Event, Record
from sandkeep.events import catalogue as ev
from sandkeep.events.catalogue import Output
from sandkeep.projections.registry import Task


class Execution(msgspec.Struct, frozen=True):
    """A command of a task. `number` counts its commands from 1, in the order in which they were asked for.

    While it is under way, all from `ended_ns` on is None. One that could not be run, or of which nobody knows what
    became, has a `code` and a `message` instead of an exit code, a duration and output.
    """

    number: int
    command: str
    actor: str
    argv: tuple[str, ...]
    cwd: str
    env: tuple[str, ...]
    timeout_ns: int
    position: int
    begun_ns: int
    ended_ns: int | None = None
    exit_code: int | None = None
    duration_ns: int | None = None
    timed_out: bool = False
    stdout: Output | None = None
    stderr: Output | None = None
    code: str | None = None
    message: str | None = None
    oom_killed: bool = False
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than with exit code 0."""
        return self.ended_ns is not None and self.exit_code != 0


class Decision(msgspec.Struct, frozen=True):
    """What somebody decided; `number` counts the task's decisions from 1. It is `abandoned` if the task has gone back
    to before it."""

    number: int
    text: str
    reason: str
    alternatives: tuple[str, ...]
    actor: str
    position: int
    time_ns: int
    abandoned: bool = False


class Tally(msgspec.Struct, frozen=True):
    """What can be counted in a task's stream and is not in the registry."""

    events: int = 0
    decisions: int = 0
    restores: int = 0
    timed_out: int = 0
    running_ns: int = 0
    output_bytes: int = 0


class Stats(msgspec.Struct, frozen=True):
    """The numbers of a task. `running_ns` is the time its commands took, `output_bytes` what they wrote."""

    events: int
    executions: int
    failures: int
    timed_out: int
    running_ns: int
    output_bytes: int
    checkpoints: int
    restores: int
    decisions: int


def executions(records: Iterable[Record]) -> Iterator[Execution]:
    """The commands in a task's stream, in the order in which they ended; those under way come last."""
    waiting: dict[str, Execution] = {}
    number = 0
    for record in records:
        # Decoding an event costs more than the rest; the names say enough.
        if not record.type.startswith("Command"):
            continue
        match record.event:
            case ev.CommandRequested() as asked:
                number += 1
                waiting[asked.intent] = Execution(
                    number,
                    asked.intent,
                    record.actor,
                    asked.argv,
                    asked.cwd,
                    asked.env,
                    asked.timeout_ns,
                    record.position,
                    record.time_ns,
                )
            case (ev.CommandExecuted() | ev.CommandFailed()) as outcome if outcome.intent in waiting:
                yield _ended(waiting.pop(outcome.intent), outcome, record.time_ns)
    yield from waiting.values()


def decisions(records: Iterable[Record]) -> Iterator[Decision]:
    """The decisions in a task's stream, oldest first."""
    number = 0
    for record in records:
        if record.type == ev.DecisionRecorded.__name__ and isinstance(event := record.event, ev.DecisionRecorded):
            number += 1
            yield decision(number, record, event)


def decision(number: int, record: Record, event: ev.DecisionRecorded) -> Decision:
    """The decision that `record` holds."""
    return Decision(number, event.text, event.reason, event.alternatives, record.actor, record.position, record.time_ns)


def count(tally: Tally, event: Event) -> Tally:
    """The tally after `event`."""
    change: dict[str, int] = {}
    match event:
        case ev.CommandExecuted():
            change = {
                "timed_out": tally.timed_out + event.timed_out,
                "running_ns": tally.running_ns + event.duration_ns,
                "output_bytes": tally.output_bytes + event.stdout.size + event.stderr.size,
            }
        case ev.CheckpointRestored():
            change = {"restores": tally.restores + 1}
        case ev.DecisionRecorded():
            change = {"decisions": tally.decisions + 1}
    return msgspec.structs.replace(tally, events=tally.events + 1, **change)


def tally(records: Iterable[Record]) -> Tally:
    """The tally of a task's stream."""
    found = Tally()
    for record in records:
        found = count(found, record.event)
    return found


def stats(task: Task, tally: Tally) -> Stats:
    """The numbers of a task, from what the registry keeps of it and the tally of its stream."""
    return Stats(
        events=tally.events,
        executions=task.executions,
        failures=task.failures,
        timed_out=tally.timed_out,
        running_ns=tally.running_ns,
        output_bytes=tally.output_bytes,
        checkpoints=task.checkpoints,
        restores=tally.restores,
        decisions=tally.decisions,
    )


def _ended(execution: Execution, outcome: ev.CommandExecuted | ev.CommandFailed, time_ns: int) -> Execution:
    if isinstance(outcome, ev.CommandFailed):
        return msgspec.structs.replace(execution, ended_ns=time_ns, code=outcome.code, message=outcome.message)
    return msgspec.structs.replace(
        execution,
        ended_ns=time_ns,
        exit_code=outcome.exit_code,
        duration_ns=outcome.duration_ns,
        timed_out=outcome.timed_out,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        oom_killed=outcome.oom_killed,
        reason=outcome.reason,
    )
