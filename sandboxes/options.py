"""The options that every verb of the command line has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KeepPath = Annotated[Path, typer.Option("--keep", metavar="DIR", envvar="SANDKEEP_KEEP", help="The keep's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

HERE = Path(".sandkeep")
