"""The command line's verbs for what sandboxes may use: change a task's limits, answer who asks for more, show what is
used.

They hold no logic.
"""

from __future__ import annotations

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
    with Keep.open(keep) as opened:
        found = opened.resources(task)
        extension = found.extend(memory, reason)
        now = found.limits
    _say_answer(found.id, extension, "granted", now, json)


@app.command("deny-extension")
def deny_extension(
    task: TaskId,
    stop: Annotated[bool, typer.Option("--stop", help="End it; its workspace was recorded.")] = False,
    reason: Reason = "",
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Let a sandbox that stands still for want of memory go on with what it has, where something in it may be ended."""
    with Keep.open(keep) as opened:
        found = opened.resources(task)
        extension = found.deny(reason, stop=stop)
        now = found.limits
    _say_answer(found.id, extension, "stopped" if stop else "denied", now, json)


@app.command("top")
def top(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Show what the live sandboxes use now, and what they have been promised."""
    with Keep.open(keep) as opened:
        found = monitor.watched(opened)
        budget = admission.budget(opened, limits.load(opened.path).budget)
    if json:
        render.print_json(render_resources.top_document(found, budget))
    else:
        render_resources.print_top(found, budget)


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


def _say_answer(task: str, extension: Extension, answer: str, now: Limits, json: bool) -> None:
    if json:
        numbers = {"used": extension.used_bytes, "wanted": extension.wanted_bytes, "memory": now.memory_bytes}
        checkpoint = extension.checkpoint
        render.print_json(
            {"task": task, "extension": extension.id, "answer": answer, "checkpoint": checkpoint, **numbers}
        )
    else:
        print(f"{task}  {answer}, memory {quantity.show_size(now.memory_bytes)}")
