"""The options that every verb of the command line has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KeepPath = Annotated[Path, typer.Option("--keep", metavar="DIR", envvar="SANDKEEP_KEEP", help="The keep's folder.")]
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="A task's id, or at least 4 digits of its beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

HERE = Path(".sandkeep")
