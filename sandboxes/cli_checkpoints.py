"""The command line's verbs for the checkpoints that there are. They hold no logic; see `task_checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from sandkeep.events import BadInput
from sandkeep.projections import Checkpoint
from sandkeep.sandboxes import expiry, render, render_checkpoints, repair
from sandkeep.sandboxes.fork_task import Asked
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AddTags, Allow, AsJson, KeepPath, Private, RemoveTags, Services, TaskId
from sandkeep.sandboxes.retention import Surplus

app = typer.Typer()

CheckpointId = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="The checkpoint's id, or the beginning of it.")]


@app.command("list-checkpoints")
def list_checkpoints(
    task: TaskId,
    every: Annotated[bool, typer.Option("--all", help="Also those that have expired.")] = False,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """List the checkpoints of a task, and what each adds to the one before it, before compression."""
    with Keep.open(keep) as opened:
        found = opened.checkpoints(task).list(expired=every)
    if json:
        render.print_json([render_checkpoints.listed_document(each) for each in found])
    else:
        render_checkpoints.print_listed(found)


@app.command("pin-checkpoint")
def pin_checkpoint(task: TaskId, checkpoint: CheckpointId, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Keep a checkpoint until it is unpinned, whatever the rules and budgets of keep.toml say."""
    with Keep.open(keep) as opened:
        found = opened.checkpoints(task).pin(checkpoint)
    _show(found, json)


@app.command("unpin-checkpoint")
def unpin_checkpoint(task: TaskId, checkpoint: CheckpointId, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Let the rules of keep.toml say again whether a checkpoint is kept."""
    with Keep.open(keep) as opened:
        found = opened.checkpoints(task).unpin(checkpoint)
    _show(found, json)


@app.command("tag-checkpoint")
def tag_checkpoint(
    task: TaskId,
    checkpoint: CheckpointId,
    add: AddTags = None,
    remove: RemoveTags = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Give a checkpoint tags, and take tags from it. As long as it has any it is kept."""
    with Keep.open(keep) as opened:
        found = opened.checkpoints(task).tag(checkpoint, add=add or (), remove=remove or ())
    _show(found, json)


@app.command("repair-checkpoints")
def repair_checkpoints(
    source: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="PATH", help="A keep, a folder of blobs or an audit bundle; may be repeated."),
    ] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Look for another copy of what is damaged or gone: in the packs, in what is named, and in the workspaces as they
    are. Exit status 1 if something is still missing."""
    with Keep.open(keep) as opened, render.progress() as progress:
        found = repair.repair(opened, source or (), progress)
    if json:
        render.print_json(found)
    else:
        for each in found.affected:
            print(render.plain(f"missing: {each.path or '/'!r} of checkpoint {each.checkpoint} of task {each.task}"))
        print(f"{len(found.repaired)} blobs were brought back, {len(found.missing)} are missing")
    raise typer.Exit(1 if found.missing else 0)


@app.command("fork-task")
def fork_task(
    task: TaskId,
    checkpoint: CheckpointId,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is; by default the other's title.")] = None,
    owner: Annotated[str | None, typer.Option(metavar="NAME", help="Whose task it is; by default yours.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Instead of the tags that the other had; may be repeated.")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the other's.")] = None,
    network: Annotated[
        str | None, typer.Option(metavar="MODE", help="Instead of what the other may reach; see create-task.")
    ] = None,
    allow: Allow = None,
    private: Private = None,
    services: Services = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Create a task that begins as another was at a checkpoint: its workspace, tags and decisions, and, unless others
    are named, the image, network, limits and caches that it has now."""
    named = {"title": title, "owner": owner, "tags": tag, "image": image, "network": network}
    more = {"allow": allow, "private": private, "services": services}
    asked = cast(Asked, {name: value for name, value in (named | more).items() if value is not None})
    with Keep.open(keep) as opened, render.progress() as progress:
        asked["progress"] = progress
        made = opened.fork_task(task, checkpoint, **asked)
        state, workspace = made.state, made.workspace
    if json:
        render.print_json(render.task_document(state) | {"workspace": str(workspace)})
    else:
        print(state.id)


@app.command("expire-checkpoints")
def expire_checkpoints(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Only those of this task.")] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Argument(metavar="[CHECKPOINT]...", help="These, whatever the rules say.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for those that are named.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which would.")] = False,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Let go what the rules and budgets of keep.toml do not keep, or the checkpoints that are named.

    They cannot be restored any more, and what only they hold is removed an hour later, at the earliest.
    """
    with Keep.open(keep) as opened:
        found = None if task is None else opened.task(task).id
        if found is not None and checkpoint:
            if dry_run:
                raise BadInput("--dry-run is for what the rules let go; leave out the checkpoints")
            mine = opened.checkpoints(found)
            done = [_surplus(mine.expire(each, reason)) for each in checkpoint]
        else:
            done = expiry.surplus(opened, found)
            done = done if dry_run else expiry.expire(opened, done)
    if json:
        render.print_json([render_checkpoints.surplus_document(each) for each in done])
    else:
        for each in done:
            print(f"{each.checkpoint.task}  {each.checkpoint.id}  {render.plain(each.reason)}")


def _surplus(expired: Checkpoint) -> Surplus:
    return Surplus(expired, expired.expired)


def _show(checkpoint: Checkpoint, json: bool) -> None:
    if json:
        render.print_json(render_checkpoints.checkpoint_document(checkpoint))
    else:
        print(render.plain("  ".join((checkpoint.id, *render_checkpoints.notes(checkpoint)))))
