"""The command line's verbs for conflicts. They hold no logic; see `conflict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandkeep.events import BadInput
from sandkeep.events.catalogue import Rule
from sandkeep.projections import Conflict
from sandkeep.sandboxes import render, render_forks
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, Token
from sandkeep.sandboxes.own_workspace import OwnTask
from sandkeep.sandboxes.task import Task

app = typer.Typer()

_TaskId = Annotated[str, typer.Argument(metavar="TASK", help="A task's id, or at least 4 digits of its beginning.")]
_SIDES = ("ours", "theirs", "merged")


@app.command("conflicts")
def list_conflicts(
    task: _TaskId,
    settled: Annotated[bool, typer.Option("--all", help="Also those that were settled.")] = False,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """List the open conflicts among the agents that work on a task."""
    with Keep.open(keep) as opened:
        found = opened.conflicts(task).list(settled=settled)
    if json:
        render.print_json([render.conflict_document(each) for each in found])
    else:
        for each in found:
            print(render.plain(_line(each)))


@app.command("resolve-conflict")
def resolve_conflict(
    task: _TaskId,
    conflict: Annotated[str, typer.Argument(help="The conflict's id, or the beginning of it.")],
    take: Annotated[
        str,
        typer.Option(
            metavar="SIDE", help="ours: the later agent's; theirs: what was there; merged; or a file that has it right."
        ),
    ],
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Settle an open conflict; what gives way stays in the record."""
    with Keep.open(keep) as opened:
        done = opened.conflicts(task).resolve(conflict, take if take in _SIDES else Path(take))
    if json:
        render.print_json(render.conflict_document(done))
    else:
        print(render.plain(_line(done)))


@app.command("conflict-policy")
def conflict_policy(
    task: _TaskId,
    rules: Annotated[
        list[str] | None, typer.Argument(metavar="[PATTERN=STRATEGY]...", help="The first that matches counts.")
    ] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Show how a task's conflicts are settled, or set it: reject, last-writer-wins, three-way or ask, by path; and
    '*=own-workspace' to have each agent that collaborates work in its own."""
    with Keep.open(keep) as opened:
        found = opened.conflicts(task)
        if rules:
            found.set_rules([_rule(each) for each in rules])
        stand = found.rules()
    if json:
        render.print_json([{"pattern": rule.pattern, "strategy": rule.strategy} for rule in stand])
    else:
        for rule in stand:
            print(render.plain(f"{rule.pattern}={rule.strategy}"))


@app.command("merge")
def merge(
    task: _TaskId,
    which: Annotated[
        str | None, typer.Argument(metavar="[AGENT|ID]", help="Whose own workspace, or its id, if there are several.")
    ] = None,
    discard: Annotated[bool, typer.Option("--discard", help="Drop what is in it; a checkpoint of it stays.")] = False,
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Merge the own workspace of an agent that has gone without detaching into the task's workspace."""
    with Keep.open(keep) as opened:
        done = opened.own_workspaces(task, token).merge(which, discard=discard)
    if json:
        render.print_json(render_forks.merged_document(done))
    else:
        render_forks.print_merged(done)


def own_workspace(task: Task) -> str | None:
    """The id of the own workspace that commands of a task run in, if they do and it is there."""
    return task.forked if isinstance(task, OwnTask) else None


def _rule(words: str) -> Rule:
    pattern, equals, strategy = words.rpartition("=")
    if not equals:
        raise BadInput(f"{words[:80]!r} is no rule; write it as PATTERN=STRATEGY, such as '*.lock=ask'")
    return Rule(pattern, strategy)


def _line(conflict: Conflict) -> str:
    sides = f"{', '.join(conflict.agents)} over {', '.join(conflict.others) or 'nobody known'}"
    state = f"{conflict.taken} taken" if conflict.taken else "open"
    return f"{conflict.id}  {conflict.kind}  {conflict.path}  {sides}  {state}"
