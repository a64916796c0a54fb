"""The command line's questions to the registry: which tasks there are, or were, and what became of them. No logic.

Each takes `--as-of`: a position of the log, or a time.
"""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from sandkeep.projections import Filter, Sort, TaskState
from sandkeep.sandboxes import render, render_checkpoints, render_forks, render_resources, view
from sandkeep.sandboxes.errors import BadSettings
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AddTags, AsJson, KeepPath, RemoveTags, TaskId

app = typer.Typer()

AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="MOMENT", help="A position or a time of the past, instead of now.")
]
Time = Annotated[str | None, typer.Option(metavar="TIME", help="A time, as 2026-01-31 or 2026-01-31T12:00:00Z.")]


@app.command("list-tasks")
def list_tasks(
    state: Annotated[list[TaskState] | None, typer.Option(help="Only tasks in this state; may be repeated.")] = None,
    owner: Annotated[str | None, typer.Option(metavar="NAME", help="Only tasks of this owner.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Only with this tag; may be repeated.")] = None,
    parent: Annotated[str | None, typer.Option(metavar="TASK", help="Only the parts of this task.")] = None,
    text: Annotated[str, typer.Option(metavar="WORDS", help="Only with these words, or words so begun.")] = "",
    created_since: Time = None,
    created_before: Time = None,
    updated_since: Time = None,
    updated_before: Time = None,
    sort: Annotated[Sort, typer.Option(help="Newest first, last updated first, or by title.")] = Sort.CREATED,
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most.")] = 100,
    cursor: Annotated[str | None, typer.Option(metavar="CURSOR", help="Go on where a page ended.")] = None,
    as_of: AsOf = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """List tasks, a page at a time: all but the cleaned ones, unless --state says otherwise."""
    with Keep.open(keep) as opened, opened.as_of(as_of) as then:
        wanted = Filter(
            states=tuple(state or (each for each in TaskState if each is not TaskState.CLEANED)),
            owner=owner,
            tags=tuple(tag or ()),
            parent=None if parent is None else then.task(parent).id,
            text=text,
            created_since=_time(created_since),
            created_before=_time(created_before),
            updated_since=_time(updated_since),
            updated_before=_time(updated_before),
        )
        page = then.tasks(wanted, sort=sort, reverse=reverse, limit=limit, cursor=cursor)
    if json:
        render.print_json({"tasks": [render.task_document(task) for task in page.tasks], "next": page.next})
    else:
        render.print_tasks(page.tasks)
        if page.next is not None:
            print(f"there are more: --cursor {page.next}")


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


@app.command("show-task")
def show_task(task: TaskId, as_of: AsOf = None, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Show what is true of a task now, its checkpoints, the own workspaces in it that are not merged, and what is under
    way or was left behind by a crash."""
    with Keep.open(keep) as opened, opened.as_of(as_of) as then:
        state = then.task(task)
        checkpoints = then.checkpoints(state.id)
        own = then.own_workspaces(state.id)
        origin = then.forked_from(state.id)
        folder = opened.task(state.id).workspace
        workspace = str(folder) if as_of is None and folder.exists() else None
        share, caches = None, opened.caches.of(state.id) if workspace is not None else ()
        if workspace is not None:
            with contextlib.suppress(BadSettings):  # which 'doctor' says, and no question about a task is about
                share = opened.resources(state.id).disk
    if json:
        listed = [render_checkpoints.checkpoint_document(each) for each in checkpoints]
        forked = [render_forks.fork_document(each) for each in own]
        document = render.task_document(state) | {"workspace": workspace, "checkpoints": listed}
        document |= {"forked_from": None if origin is None else dict(zip(("task", "checkpoint"), origin, strict=True))}
        render.print_json(document | {"own_workspaces": forked, "disk": share, "caches": caches})
    else:
        render.print_task(state, workspace, origin)
        render_checkpoints.print_checkpoints(checkpoints)
        render_resources.print_shares(share, caches)
        render_forks.print_forks(own)


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
