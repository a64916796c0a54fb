"""The command line's verbs for what is on record of a task: its history, runs, decisions, numbers and memory folder.

It holds no logic.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from sandkeep.events import BlobStore
from sandkeep.projections import Execution
from sandkeep.sandboxes import render, render_recorded, render_resources
from sandkeep.sandboxes.execution import Result, chunks
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId

app = typer.Typer()

After = Annotated[int, typer.Option(metavar="REVISION", min=0, help="Only what came after this revision of the task.")]
Last = Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the last N.")]


@app.command("task-history")
def task_history(
    task: TaskId,
    after: After = 0,
    kind: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only events of this type; may be repeated.")
    ] = None,
    last: Last = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only the first N; --after gives those behind."),
    ] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Show what ever happened in a task; what is on a branch that it has left has a ~."""
    with Keep.open(keep) as opened:
        found = opened.task(task)
        line = found.line()
        records = itertools.islice(found.history(after, types=kind or (), last=last), limit)
        if json:
            documents = ((record, render.record_document(record)) for record in records)
            render.print_json([each | {"abandoned": record.position not in line} for record, each in documents])
        else:
            render.print_records(records, line)


@app.command("task-executions")
def task_executions(
    task: TaskId,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that did not end with 0.")] = False,
    last: Last = None,
    output: Annotated[
        int | None, typer.Option(metavar="RUN", min=1, help="Print the output of this one, on the streams it used.")
    ] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """List the commands that were run in a task, or show what one of them wrote."""
    with Keep.open(keep) as opened:
        found = opened.task(task)
        if output is not None:
            _show_output(found.execution(output), opened.blobs, json)
            return
        chosen: Iterator[Execution] = (each for each in found.executions() if each.failed or not failed)
        executions = sorted(deque(chosen, last), key=lambda each: each.number)
    if json:
        render.print_json([render_recorded.execution_document(each) for each in executions])
    else:
        render_recorded.print_executions(executions)


@app.command("record-decision")
def record_decision(
    task: TaskId,
    text: Annotated[str, typer.Argument(help="What was decided, on one line.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
    alternative: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What else there was to choose; may be repeated.")
    ] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Put on record what you decided in a task, and why."""
    with Keep.open(keep) as opened:
        made = opened.task(task).record_decision(text, reason=reason, alternatives=alternative or ())
    if json:
        render.print_json(render_recorded.decision_document(made))
    else:
        print(f"decision {made.number}, at position {made.position}")


@app.command("task-decisions")
def task_decisions(task: TaskId, last: Last = None, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Show what was decided in a task, and why."""
    with Keep.open(keep) as opened:
        decisions = deque(opened.task(task).decisions(), last)
    if json:
        render.print_json([render_recorded.decision_document(each) for each in decisions])
    else:
        render_recorded.print_decisions(decisions)


@app.command("task-stats")
def task_stats(task: TaskId, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Show the numbers of a task: events, runs, failures, time, output, checkpoints, and what its sandboxes used."""
    with Keep.open(keep) as opened:
        found = opened.task(task)
        state, stats, use = found.state, found.stats(), opened.resources(task).use
    if json:
        used = render_resources.use_document(use)
        render.print_json({"task": state.id, "state": state.state, **render_recorded.stats_document(stats), **used})
    else:
        render_recorded.print_stats(state, stats)
        render_resources.print_use(use)


@app.command("rebuild-memory")
def rebuild_memory(task: TaskId, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Make a task's memory folder anew from the log. Exit status 1 if a page was not what had been written.

    A plan.md that was edited is left as it is; what was damaged goes to quarantine/.
    """
    with Keep.open(keep) as opened:
        done = opened.task(task).rebuild_memory()
    if json:
        render.print_json({"ok": not done.damage, **msgspec.structs.asdict(done)})
    else:
        for line in done.damage:
            print(f"damaged: {line}")
        if done.quarantine is not None:
            print(f"what was there is in quarantine/{done.quarantine}")
        print(f"made the memory of task {done.task} anew, up to revision {done.revision}, position {done.position}")
    raise typer.Exit(1 if done.damage else 0)


def _show_output(execution: Execution, blobs: BlobStore, json: bool) -> None:
    """What a command wrote, as `execute` shows it."""
    stdout, stderr = execution.stdout, execution.stderr
    if stdout is None or stderr is None or execution.exit_code is None or execution.duration_ns is None:
        if json:
            render.print_json(render_recorded.execution_document(execution))
        else:
            why = execution.message or "it is under way"
            print(f"sandkeep: run {execution.number} has no output: {render.plain(why)}", file=sys.stderr)
        return
    if json:
        seconds = execution.duration_ns / 1e9
        ran = (execution.command, execution.exit_code, seconds, execution.timed_out, stdout, stderr)
        result = Result(*ran, oom_killed=execution.oom_killed)
        render.print_json(render.result_document(result, blobs))
        return
    for output, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        for piece in chunks(output, blobs):
            render.write(stream.buffer, piece)
