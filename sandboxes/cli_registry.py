"""The command line's questions to the registry: which tasks there are, or were, and what became of them. No logic.

Each takes `--as-of`: a position of the log, or a time.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sandkeep.sandboxes import render, view
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AddTags, AsJson, KeepPath, RemoveTags, TaskId

app = typer.Typer()

AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="MOMENT", help="A position or a time of the past, instead of now.")
]
Time = Annotated[str | None, typer.Option(metavar="TIME", help="A time, as 2026-01-31 or 2026-01-31T12:00:00Z.")]


@app.command("find-task")
def find_task(
    words: Annotated[list[str], typer.Argument(help="Words of the title or of tags, or the beginning of an id.")],
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most.")] = 20,
    as_of: AsOf = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Find tasks by words in any order, also begun or misspelt; the best first, then the newest."""
    with Keep.open(keep) as opened, opened.as_of(as_of) as then:
        found = then.find(" ".join(words), limit=limit)
    if json:
        render.print_json([render.task_document(each.task) | {"fit": each.fit} for each in found])
    else:
        render.print_tasks([each.task for each in found], "no task fits; try fewer words, or 'sandkeep list-tasks'")


@app.command("changes")
def changes(
    since: Annotated[str, typer.Option("--from", metavar="MOMENT", help="A position or a time; what came after it.")],
    until: Annotated[str | None, typer.Option("--to", metavar="MOMENT", help="Only up to here, not to now.")] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Show which tasks were created, changed (field by field) and ended between two moments."""
    with Keep.open(keep) as opened:
        found = opened.changes(since, until)
    if json:
        render.print_json([render.changes_document(each) for each in found])
    else:
        render.print_changes(found)


@app.command("tag-task")
def tag_task(
    task: TaskId,
    add: AddTags = None,
    remove: RemoveTags = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Give a task tags, and take tags from it."""
    with Keep.open(keep) as opened:
        found = opened.task(task)
        found.tag(add=add or (), remove=remove or ())
        state = found.state
    if json:
        render.print_json(render.task_document(state))
    else:
        print(f"{state.id}  {' '.join(map(str, map(render.plain, state.tags)))}")


def _time(text: str | None) -> int | None:
    return None if text is None else view.nanoseconds(view.parse_time(text))
