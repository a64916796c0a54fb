"""The command line's verbs for the caches that tasks share. They hold no logic."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from sandkeep.sandboxes import caches as cache
from sandkeep.sandboxes import render
from sandkeep.sandboxes.cache_store import Listed
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath
from sandkeep.sandboxes.quantity import show_size

app = typer.Typer()


@app.command("caches")
def caches(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """List the caches that tasks share: who may use them how, what they take, and what they may."""
    with Keep.open(keep) as opened:
        found = opened.caches.listed()
    if json:
        render.print_json([_document(each) for each in found])
        return
    rows = []
    for each in found:
        declared = each.declared
        mode = "undeclared" if declared is None else cache.WRITE if declared.writable else cache.READ
        whose = "" if declared is None else "all" if declared.everybody else "asked"
        most = "" if declared is None else show_size(declared.size)
        taken, used = show_size(each.content.bytes), "" if not each.use.used_ns else render.moment(each.use.used_ns)
        rows.append((each.name, mode, whose, taken, most, str(len(each.tasks)), used))
    empty = "no caches; declare them under [caches] in keep.toml"
    render.print_rows(("CACHE", "MODE", "TASKS", "SIZE", "LIMIT", "IN USE BY", "LAST USED"), rows, empty)


@app.command("prune-caches")
def prune_caches(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this cache.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all that is in them.")] = False,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Remove from caches what was not used for longest, until each is as large as it may be; and all of those that are
    not declared any more."""
    with Keep.open(keep) as opened:
        done = opened.caches.prune(name, everything=everything)
    if json:
        render.print_json([msgspec.to_builtins(each) for each in done])
        return
    for each in done:
        removed = f"removed {each.removed.files} files, {show_size(each.removed.bytes)}"
        print(f"{render.plain(each.name)}  {removed}; {show_size(each.left.bytes)} left")


def _document(listed: Listed) -> render.Document:
    declared = listed.declared
    return {
        "name": listed.name,
        "mode": None if declared is None else cache.WRITE if declared.writable else cache.READ,
        "all_tasks": declared is not None and declared.everybody,
        "variable": None if declared is None else declared.variable,
        "limit": None if declared is None else declared.size,
        "bytes": listed.content.bytes,
        "files": listed.content.files,
        "tasks": listed.tasks,
        "uses": listed.use.tasks,
        "used": None if not listed.use.used_ns else render.moment(listed.use.used_ns),
        "pruned": listed.use.pruned,
        "pruned_bytes": listed.use.pruned_bytes,
    }
