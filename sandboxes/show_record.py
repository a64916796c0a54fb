"""What the command line shows people of what is on record."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping

from rich.text import Text

from sandkeep.sandboxes import documents, documents_record, render
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.render import plain, print_lines, print_rows, second

_WIDEST_COMMAND = 60


def history(found: list[documents_record.HistoryRecord], asked: Mapping[str, object]) -> None:
    """A line for each event; those on a branch that was left have a mark."""
    for each in found:
        _print_record(each, "~" if each.abandoned else " ")


def event(found: documents_record.Record, asked: Mapping[str, object]) -> None:
    """A line for an event."""
    _print_record(found, " ")


def executions(
    found: list[documents_record.Execution] | documents.Ran | documents_record.Execution, asked: Mapping[str, object]
) -> None:
    """A table of commands that were run; of one, what it wrote has been shown as it was read."""
    if isinstance(found, list):
        columns = ("RUN", "BEGUN", "EXIT", "TOOK", "STDOUT", "STDERR", "COMMAND")
        print_rows(columns, map(_execution_row, found), "no command was run")


def decided(made: documents_record.Decision, asked: Mapping[str, object]) -> None:
    """That a decision is on record."""
    print(f"decision {made.number}, at position {made.position}")


def decisions(found: list[documents_record.Decision], asked: Mapping[str, object]) -> None:
    """What was decided, why, and against what."""
    print_lines(line for each in found for line in _decision_lines(each))


def stats(found: documents_record.Stats, asked: Mapping[str, object]) -> None:
    """The numbers of a task, and what all its sandboxes have used."""
    rows = {
        "state": found.state,
        "events": str(found.events),
        "runs": f"{found.executions}, of which failed {found.failures}, {found.timed_out} because their time was up",
        "running": f"{found.running_s:.3g}s",
        "output": f"{found.output_bytes}B",
        "checkpoints": f"{found.checkpoints}, restored {found.restores} times",
        "decisions": str(found.decisions),
    }
    print_rows(("TASK", found.task), rows.items())
    memory = show_size(found.memory_peak)
    used = f"at most {memory} of memory and {found.pids_peak} processes; {found.cpu_s} s of processors"
    print(f"used  {used}, {found.throttled_s} s throttled; {found.oom_kills} killed for want of memory")


def remembered(done: documents_record.Remembered, asked: Mapping[str, object]) -> None:
    """What was wrong with a memory folder, and that it is right now."""
    for line in done.damage:
        print(plain(f"damaged: {line}"))
    if done.quarantine is not None:
        print(f"what was there is in quarantine/{done.quarantine}")
    print(f"made the memory of task {done.task} anew, up to revision {done.revision}, position {done.position}")


def _print_record(found: documents_record.Record, mark: str) -> None:
    row = Text(f"{found.position:>6} {mark}{found.time[:23]}  ", "bright_black")
    row.append(f"{found.stream:<18} ").append(f"{found.type:<19} ", "bold")
    row.append(plain(render.summary(found.data)))
    whole = not sys.stdout.isatty()
    render.console().print(row, no_wrap=True, overflow="ellipsis", crop=not whole, soft_wrap=whole)


def _execution_row(execution: documents_record.Execution) -> tuple[str | Text, ...]:
    if execution.ended is None:
        ending = Text("running", "yellow")
    else:
        words = execution.error.code if execution.error is not None else str(execution.exit_code)
        ending = plain(words + " (time was up)" * execution.timed_out)
        ending.stylize("red" if execution.failed else "")
    command = shlex.join(execution.argv)
    return (
        str(execution.number),
        second(execution.begun),
        ending,
        "" if execution.duration_s is None else f"{execution.duration_s:.3g}s",
        *("" if size is None else f"{size}B" for size in (execution.stdout_bytes, execution.stderr_bytes)),
        plain(command if len(command) <= _WIDEST_COMMAND else command[: _WIDEST_COMMAND - 1] + "…"),
    )


def _decision_lines(decision: documents_record.Decision) -> Iterator[Text]:
    yield Text(f"{decision.number}. ", "bold").append(plain(decision.text))
    about = [f"{second(decision.time)}  {decision.actor}  position {decision.position}"]
    about += ["on a branch that was left"] if decision.abandoned else []
    about += [f"because: {decision.reason}"] if decision.reason else []
    about += [f"instead of: {each}" for each in decision.alternatives]
    for line in about:
        yield Text("   ").append(plain(line))
