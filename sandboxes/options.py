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

HERE = Path(".sandkeep")
