"""The command line's verbs for what sandboxes may use: change a task's limits, answer who asks for more, show what is
used.

They hold no logic.
"""

from __future__ import annotations

import typer

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes import limits, quantity, render
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
