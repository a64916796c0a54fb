"""The options that every verb of the command line has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KeepPath = Annotated[Path, typer.Option("--keep", metavar="DIR", envvar="SANDKEEP_KEEP", help="The keep's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="A task's id, or at least 4 digits of its beginning.")]
Token = Annotated[
    int | None,
    typer.Option(
        "--token", metavar="N", min=1, envvar="SANDKEEP_TOKEN", help="What 'attach' printed, if one is attached."
    ),
]

Allow = Annotated[
    list[str] | None, typer.Option(metavar="HOST[:PORT]", help="A host it may reach, or *.HOST; may be repeated.")
]
Private = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST:PORT", help="One that the internet does not reach; keep.toml has to grant it."),
]
Services = Annotated[
    list[str] | None,
    typer.Option(
        "--service", metavar="NAME=TARGET:PORT", help="Under NAME, port PORT of task/TASK or container/CONTAINER."
    ),
]

Caches = Annotated[
    list[str] | None,
    typer.Option("--cache", metavar="NAME", help="A cache of the keep, or NAME=read-only; may be repeated."),
]
NoCaches = Annotated[bool, typer.Option("--no-caches", help="Not even those that every task has.")]

AddTags = Annotated[list[str] | None, typer.Option("--add", metavar="TAG", help="A tag to give; may be repeated.")]
RemoveTags = Annotated[
    list[str] | None, typer.Option("--remove", metavar="TAG", help="A tag to take; may be repeated.")
]

_LIMITS = "What a sandbox may use"


def _limit(name: str, metavar: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, metavar=metavar, help=what, rich_help_panel=_LIMITS)
    return option


Memory = Annotated[str | None, _limit("--memory", "SIZE", "Memory, like 2GiB.")]
Swap = Annotated[str | None, _limit("--swap", "SIZE", "Swap beside the memory.")]
Cpus = Annotated[str | None, _limit("--cpus", "N", "Processors, like 1.5.")]
Pids = Annotated[str | None, _limit("--pids", "N", "Processes and threads.")]
Tmp = Annotated[str | None, _limit("--tmp", "SIZE", "/tmp, which lies in memory.")]
Disk = Annotated[str | None, _limit("--disk", "SIZE", "The workspace.")]
OpenFiles = Annotated[str | None, _limit("--open-files", "N", "Files that one process has open.")]
Output = Annotated[str | None, _limit("--output", "SIZE", "What a command writes to one stream.")]
Time = Annotated[str | None, _limit("--time", "TIME", "How long a command takes, like 90s or 1h.")]

HERE = Path(".sandkeep")
