"""How the command line shows things: documents for machines, tables and colours for people.

Titles, reasons and arguments come from anywhere, so every control character in them is shown as an escape. Documents
go to standard output, and with `--json` nothing else does; progress and errors go to standard error.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sandkeep.events import late
from sandkeep.sandboxes.text import escaped

if TYPE_CHECKING:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )
else:
    _LISTED = """
    progress:BarColumn,DownloadColumn,MofNCompleteColumn,Progress progress:SpinnerColumn,TextColumn,TimeRemainingColumn
    """
    globals().update(late.bound("rich", _LISTED))

_PATIENCE_SECONDS = 1.0
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{12})[0-9a-f]{28,52}")


def plain(text: str) -> Text:
    """Foreign text, harmless on a terminal."""
    return Text(escaped(text))


def second(time: str) -> str:
    """A document's time for people, to the second."""
    return time[:19].replace("T", " ")


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], empty: str = "") -> None:
    """A table; the line `empty` if it has no rows."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    _print(table, empty)


def print_lines(lines: Iterable[Text]) -> None:
    """Lines of text, as long as they are."""
    out = console()
    for line in lines:
        out.print(line, soft_wrap=True)


def print_whole(shown: RenderableType, width: int) -> None:
    """Something that fills so many columns."""
    _Console(highlight=False, width=width).print(shown)


def summary(data: object) -> str:
    """What is worth knowing of what an event holds, on one line."""
    hidden = ("intent", "limits", "public_key", "data")
    fields = {
        name: value
        for name, value in msgspec.to_builtins(data).items()
        if (name not in hidden and value not in (None, "", False, ())) or name == "exit_code"
    }
    return " ".join(f"{name.removesuffix('_ns')}={short(name, value)}" for name, value in fields.items())


def short(name: str, value: object) -> str:
    """The value of a field, in few words."""
    if isinstance(value, dict):
        return f"{value['size']}B" if "size" in value else "…"
    if isinstance(value, int) and name.endswith("_ns"):
        return f"{value / 1e9:.3g}s"
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if digest := _DIGEST.fullmatch(text):
        return digest[1]
    return text if len(text) <= 60 else text[:59] + "…"


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A callback that says on standard error what is going on: a spinner on a terminal; elsewhere a line for each new
    thing, once it has taken a second."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield say_slowly()
        return
    with console.status("") as status:
        yield lambda message: status.update(plain(message))


@contextlib.contextmanager
def measured(what: str, *, size: bool) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """As `progress`, and a callback that is told how much of how much is done, in bytes if it is a `size`: on a
    terminal, a bar of it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield say_slowly(), lambda done, total: None
        return
    counts = DownloadColumn() if size else MofNCompleteColumn()
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), counts
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as shown:
        task = shown.add_task(plain(what).plain, total=None)
        yield (
            lambda message: shown.update(task, description=plain(message).plain),
            lambda done, total: shown.update(task, completed=done, total=total),
        )


def say_slowly() -> Callable[[str], None]:
    """A callback that says on standard error what is going on, a line for each new thing, once it has taken a second.
    For what other output follows on the same terminal."""
    console = Console(stderr=True)
    begun = time.monotonic()

    def say(message: str) -> None:
        # Counters, which end in a number, would only fill a log.
        if time.monotonic() - begun >= _PATIENCE_SECONDS and not message[-1:].isdigit():
            console.print(plain(message), highlight=False, soft_wrap=True)

    return say


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # An id in two parts is none that anybody can copy.
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    return table


def _print(table: Table, empty: str = "") -> None:
    console().print(table if table.row_count else Text(empty))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would exit with status 1; to the command line it is no error.
        raise BrokenPipeError("nobody reads any more")


def console() -> Console:
    """Standard output, for what has colours on a terminal."""
    # What is piped into another program must not be wrapped at eighty columns.
    return _Console(highlight=False) if sys.stdout.isatty() else _Console(highlight=False, width=200)
