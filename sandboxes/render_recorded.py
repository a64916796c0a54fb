"""What the command line shows of a task's record: runs, decisions and numbers, for machines and for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from rich.text import Text

from sandkeep.projections import Decision, Execution, Stats, registry
from sandkeep.sandboxes.render import Document, moment, plain, print_lines, print_rows

_WIDEST_COMMAND = 60


def execution_document(execution: Execution) -> Document:
    """A command that was run, for machines: where its output is, not the output."""
    document: Document = {
        "number": execution.number,
        "command": execution.command,
        "actor": execution.actor,
        "argv": execution.argv,
        "cwd": execution.cwd,
        "env": execution.env,
        "timeout_s": execution.timeout_ns / 1e9,
        "position": execution.position,
        "begun": moment(execution.begun_ns),
        "ended": None if execution.ended_ns is None else moment(execution.ended_ns),
        "exit_code": execution.exit_code,
        "duration_s": None if execution.duration_ns is None else execution.duration_ns / 1e9,
        "timed_out": execution.timed_out,
        "oom_killed": execution.oom_killed,
        "reason": execution.reason,
    }
    for name, output in (("stdout", execution.stdout), ("stderr", execution.stderr)):
        document[f"{name}_bytes"] = None if output is None else output.size
        document[f"{name}_blob"] = None if output is None else output.blob
        document[f"{name}_truncated"] = output is not None and output.truncated
    failure = {"code": execution.code, "message": execution.message}
    return document | {"error": None if execution.code is None else failure}


def decision_document(decision: Decision) -> Document:
    """A decision, for machines."""
    return {
        "number": decision.number,
        "text": decision.text,
        "reason": decision.reason,
        "alternatives": decision.alternatives,
        "actor": decision.actor,
        "position": decision.position,
        "time": moment(decision.time_ns),
        "abandoned": decision.abandoned,
    }


def stats_document(stats: Stats) -> Document:
    """The numbers of a task, for machines."""
    return {
        "events": stats.events,
        "executions": stats.executions,
        "failures": stats.failures,
        "timed_out": stats.timed_out,
        "running_s": stats.running_ns / 1e9,
        "output_bytes": stats.output_bytes,
        "checkpoints": stats.checkpoints,
        "restores": stats.restores,
        "decisions": stats.decisions,
    }


def print_executions(executions: Iterable[Execution]) -> None:
    """A table of commands that were run."""
    columns = ("RUN", "BEGUN", "EXIT", "TOOK", "STDOUT", "STDERR", "COMMAND")
    print_rows(columns, map(_execution_row, executions), "no command was run")


def print_decisions(decisions: Iterable[Decision]) -> None:
    """What was decided, why, and against what."""
    print_lines(line for each in decisions for line in _decision_lines(each))


def print_stats(task: registry.Task, stats: Stats) -> None:
    """The numbers of a task."""
    rows = {
        "state": task.state,
        "created": _second(task.created_ns),
        "events": str(stats.events),
        "runs": f"{stats.executions}, of which failed {stats.failures}, {stats.timed_out} because their time was up",
        "running": f"{stats.running_ns / 1e9:.3g}s",
        "output": f"{stats.output_bytes}B",
        "checkpoints": f"{stats.checkpoints}, restored {stats.restores} times",
        "decisions": str(stats.decisions),
    }
    print_rows(("TASK", task.id), rows.items())


def _execution_row(execution: Execution) -> tuple[str | Text, ...]:
    if execution.ended_ns is None:
        ending = Text("running", "yellow")
    else:
        words = execution.code if execution.exit_code is None else str(execution.exit_code)
        late = " (time was up)" if execution.timed_out else ""
        ending = plain(f"{words}{late}")
        ending.stylize("red" if execution.failed else "")
    command = shlex.join(execution.argv)
    return (
        str(execution.number),
        _second(execution.begun_ns),
        ending,
        "" if execution.duration_ns is None else f"{execution.duration_ns / 1e9:.3g}s",
        *("" if output is None else f"{output.size}B" for output in (execution.stdout, execution.stderr)),
        plain(command if len(command) <= _WIDEST_COMMAND else command[: _WIDEST_COMMAND - 1] + "…"),
    )


def _decision_lines(decision: Decision) -> Iterator[Text]:
    yield Text(f"{decision.number}. ", "bold").append(plain(decision.text))
    about = [f"{_second(decision.time_ns)}  {decision.actor}  position {decision.position}"]
    about += ["on a branch that was left"] if decision.abandoned else []
    about += [f"because: {decision.reason}"] if decision.reason else []
    about += [f"instead of: {each}" for each in decision.alternatives]
    for line in about:
        yield Text("   ").append(plain(line))


def _second(time_ns: int) -> str:
    return moment(time_ns)[:19].replace("T", " ")
