"""The command line's verbs for what sandboxes may use: change a task's limits, answer who asks for more, show what is
used.

They hold no logic.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sandkeep.events.catalogue import Limits
from sandkeep.projections import Extension
from sandkeep.sandboxes import admission, limits, monitor, quantity, render, render_resources
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import (
    HERE,
    AsJson,
    Cpus,
    Disk,
    KeepPath,
    Memory,
    OpenFiles,
    Output,
    Pids,
    Swap,
    TaskId,
    Time,
    Tmp,
    Token,
)
from sandkeep.sandboxes.task_resources import TaskResources

app = typer.Typer()

Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why, for the record.")]


@app.command("set-limits")
def set_limits(
    task: TaskId,
    memory: Memory = None,
    swap: Swap = None,
    cpus: Cpus = None,
    pids: Pids = None,
    tmp: Tmp = None,
    disk: Disk = None,
    open_files: OpenFiles = None,
    output: Output = None,
    time: Time = None,
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Change what a task's sandbox may use, at once if one lives; --tmp and --open-files from the next one on."""
    asked = asked_for(memory, swap, cpus, pids, tmp, disk, open_files, output, time)
    with Keep.open(keep) as opened:
        found = opened.resources(task, token)
        now = found.set(asked)
    _say(found.id, now, json)


@app.command("extend-limits")
def extend_limits(
    task: TaskId,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="How much it may have; by default what it asked for.")
    ] = None,
    reason: Reason = "",
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Give more memory to a sandbox that stands still for want of it, and let it go on."""
    _answer(keep, task, "granted", lambda found: found.extend(memory, reason), json)


@app.command("deny-extension")
def deny_extension(
    task: TaskId,
    stop: Annotated[bool, typer.Option("--stop", help="End it; its workspace was recorded.")] = False,
    reason: Reason = "",
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Let a sandbox that stands still for want of memory go on with what it has, where something in it may be ended."""
    said = "stopped" if stop else "denied"
    _answer(keep, task, said, lambda found: found.deny(reason, stop=stop), json)


@app.command("top")
def top(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Show what the live sandboxes use now, and what they, and those started ahead, have been promised."""
    with Keep.open(keep) as opened:
        found = monitor.watched(opened)
        budget = admission.budget(opened, limits.load(opened.path).budget)
        with opened.projections.reading() as state:
            promised = sum(admission.promised(opened, state).values())
    if json:
        render.print_json(render_resources.top_document(found, promised, budget))
    else:
        render_resources.print_top(found, promised, budget)


def asked_for(*values: object) -> dict[str, object]:
    """The limits that options name, in the order of `limits.NAMES`."""
    return dict(zip(limits.NAMES, values, strict=True))


def _say(task: str, now: Limits, json: bool) -> None:
    document = limits.document(now)
    if json:
        render.print_json({"task": task, "limits": document})
        return
    sizes = ("memory", "swap", "tmp", "disk", "output")
    shown = (
        f"{name} {quantity.show_size(float(str(value))) if name in sizes else f'{value:g}'}"
        for name, value in document.items()
    )
    print(f"{task}  {', '.join(shown)}")


def _answer(keep: Path, task: str, said: str, act: Callable[[TaskResources], Extension], json: bool) -> None:
    with Keep.open(keep) as opened:
        found = opened.resources(task)
        extension = act(found)
        memory = found.limits.memory_bytes
    if json:
        about = {"task": found.id, "extension": extension.id, "answer": said, "checkpoint": extension.checkpoint}
        numbers = {"used": extension.used_bytes, "wanted": extension.wanted_bytes, "memory": memory}
        render.print_json(about | numbers)
    else:
        print(f"{found.id}  {said}, memory {quantity.show_size(memory)}")
