"""What the command line shows: documents for machines, tables and colours for people.

Titles, reasons and arguments come from anywhere, so every control character in them is shown as an escape. Documents
go to standard output, and with `--json` nothing else does; progress and errors go to standard error.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import BinaryIO

import msgspec
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sandkeep.events import BlobStore, Record
from sandkeep.events.catalogue import Output
from sandkeep.projections import Changes, Conflict, Lock, registry
from sandkeep.sandboxes.clock import BootTime
from sandkeep.sandboxes.execution import Result, content

JSON_OUTPUT_BYTES = 16 << 20
"""How much of a stream a JSON document holds at most; the rest is in the blob it names."""

_PATIENCE_SECONDS = 1.0
_COLOURS = {
    "created": "cyan",
    "active": "green",
    "paused": "yellow",
    "completed": "blue",
    "failed": "red",
    "cleaned": "bright_black",
}

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{12})[0-9a-f]{28,52}")

Document = dict[str, object]


def print_json(document: object) -> None:
    """One JSON document, on one line of standard output."""
    write(sys.stdout.buffer, msgspec.json.encode(document) + b"\n")


def write(stream: BinaryIO, data: bytes) -> None:
    """Write to a stream at once. Raises `BrokenPipeError` without a number: typer would end us for one with it."""
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError as error:
        raise BrokenPipeError("nobody reads any more") from error


def plain(text: str) -> Text:
    """Foreign text, harmless on a terminal."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def moment(time_ns: int) -> str:
    """A time as RFC 3339 has it, in UTC, to the microsecond."""
    whole = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    return whole.replace(microsecond=time_ns // 1000 % 10**6).isoformat().replace("+00:00", "Z")


def second(time: str) -> str:
    """A document's time for people, to the second."""
    return time[:19].replace("T", " ")


def task_document(task: registry.Task) -> Document:
    """A task, for machines."""
    return {
        "id": task.id,
        "title": task.title,
        "state": task.state,
        "source": task.source,
        "commit": task.commit,
        "image": task.image,
        "container": task.container,
        "idle": task.idle,
        "writable_root": task.writable,
        "system": task.system or None,
        "reason": task.reason,
        "owner": task.owner,
        "tags": task.tags,
        "parent": task.parent,
        "created": moment(task.created_ns),
        "updated": moment(task.updated_ns),
        "counts": {
            "events": task.events,
            "executions": task.executions,
            "failures": task.failures,
            "checkpoints": task.checkpoints,
            "output_bytes": task.bytes,
            "cpu_s": round(task.cpu_ns / 1e9, 6),
        },
        "pending": [
            {"intent": each.intent, "kind": each.kind, "position": each.position, "since": moment(each.time_ns)}
            for each in task.pending
        ],
    }


def conflict_document(conflict: Conflict) -> Document:
    """A conflict, for machines. Each side's content is the blob of that digest."""
    hidden = ("time_ns", "based")
    document: Document = {name: value for name, value in msgspec.structs.asdict(conflict).items() if name not in hidden}
    return document | {"detected": moment(conflict.time_ns), "resolved_at": conflict.resolved_at or None}


def record_document(record: Record) -> Document:
    """A record, for machines. Bytes in it are base64."""
    return {
        "position": record.position,
        "stream": record.stream,
        "revision": record.revision,
        "time": moment(record.time_ns),
        "time_ns": record.time_ns,
        "actor": record.actor,
        "cause": record.cause,
        "key": record.key,
        "type": record.type,
        "version": record.version,
        "data": record.event,
    }


def result_document(result: Result, blobs: BlobStore) -> Document:
    """What a command did, for machines. Bytes that are not UTF-8 are replaced in the text, and exact in the base64."""
    document: Document = {
        "command": result.command,
        "exit_code": result.exit_code,
        "duration_s": round(result.duration_s, 6),
        "timed_out": result.timed_out,
        "oom_killed": result.oom_killed,
    }
    for name, output in (("stdout", result.stdout), ("stderr", result.stderr)):
        document |= _stream(name, output, blobs)
    if result.news is not None:
        news = result.news
        document["news"] = {"changed": news.changed, "conflicts": [conflict_document(each) for each in news.conflicts]}
    return document


def _stream(name: str, output: Output, blobs: BlobStore) -> Document:
    data = content(output, blobs)[:JSON_OUTPUT_BYTES]
    document: Document = {
        name: data.decode("utf-8", "replace"),
        f"{name}_bytes": output.size,
        f"{name}_blob": output.blob,
        f"{name}_truncated": output.truncated or output.size > len(data),
    }
    try:
        data.decode()
    except UnicodeDecodeError:
        document[f"{name}_base64"] = data
    return document


def changes_document(changes: Changes) -> Document:
    """What became of a task, for machines."""
    task = task_document(changes.task)
    fields = {name: {"before": before, "after": after} for name, (before, after) in changes.fields.items()}
    return {"change": changes.change, "task": task, "fields": fields}


def print_changes(found: Iterable[Changes]) -> None:
    """A table of what became of tasks."""
    table = _table("TASK", "CHANGE", "TITLE", "FIELDS")
    for each in found:
        fields = (f"{name}: {_short(name, old)} → {_short(name, new)}" for name, (old, new) in each.fields.items())
        table.add_row(each.task.id, each.change.value, plain(each.task.title), plain(", ".join(fields)))
    _print(table, "nothing changed")


def print_tasks(
    tasks: Iterable[registry.Task], empty: str = "no tasks yet; 'sandkeep create-task TITLE' makes one"
) -> None:
    """A table of tasks."""
    table = _table("TASK", "STATE", "TITLE", "OWNER", "TAGS", "RUNS", "CHECKPOINTS", "PENDING", "UPDATED")
    for task in tasks:
        table.add_row(
            task.id,
            Text(task.state, _COLOURS[task.state]),
            plain(task.title),
            plain(task.owner),
            plain(" ".join(task.tags)),
            str(task.executions),
            str(task.checkpoints),
            Text(", ".join(pending.kind for pending in task.pending), "yellow"),
            moment(task.updated_ns)[:19].replace("T", " "),
        )
    _print(table, empty)


def print_task(task: registry.Task, workspace: str | None, origin: tuple[str, str] | None = None) -> None:
    """All that is true of one task."""
    rows = {
        "title": plain(task.title),
        "state": Text(task.state, _COLOURS[task.state]),
        "reason": plain(task.reason or ""),
        "owner": plain(task.owner),
        "tags": plain(" ".join(task.tags)),
        "parent": plain(task.parent or ""),
        "forked from": plain("" if origin is None else f"{origin[0]}, checkpoint {origin[1]}"),
        "source": plain(task.source or ""),
        "commit": plain(task.commit or ""),
        "workspace": plain(workspace or ""),
        "image": plain(task.image),
        "sandbox": plain((task.container or "")[:12] + (", frozen until the next command" if task.idle else "")),
        "root": plain(
            ", ".join(["can be written to"] * task.writable + [f"from {task.system[:19]}"] * bool(task.system))
        ),
        "runs": Text(f"{task.executions}, of which failed {task.failures}; {task.bytes} bytes of output"),
        "pending": Text(", ".join(f"{each.kind} since {moment(each.time_ns)}" for each in task.pending), "yellow"),
    }
    table = _table("TASK", task.id)
    for name, value in rows.items():
        if value.plain:
            table.add_row(name, value)
    _print(table)


def print_locks(found: list[Lock], now: BootTime) -> None:
    """Who holds what, who waits, and how contended each lock was."""
    held = _table("TASK", "AGENT", "", "MODE", "TOKEN", "SINCE", "LEASE LEFT")
    counted = _table("TASK", "GRANTS", "CONTENDED", "EXPIRED", "BROKEN", "TIMED OUT", "LONGEST WAIT")
    for lock in found:
        for each in (*lock.holding, *lock.waiting):
            left = now.left_ns(each.lease) / 1e9
            held.add_row(
                lock.task,
                plain(each.agent),
                "holds" if each.token else "waits",
                each.mode,
                str(each.token or ""),
                moment(each.since_ns)[:19].replace("T", " "),
                f"{left:.0f} s" if left else "over",
            )
        counts = lock.counts
        numbers = (counts.grants, counts.contended, counts.expired, counts.broken, counts.timed_out)
        counted.add_row(lock.task, *map(str, numbers), f"{counts.longest_wait_ns / 1e9:.3f} s")
    _print(held, "nobody holds a lock or waits for one")
    if found:
        _print(counted)


def print_records(records: Iterable[Record], line: Container[int] | None = None) -> None:
    """A line for each record, as they come; those that are not on the `line`, if one is given, have a mark."""
    console = _console()
    for record in records:
        mark = "~" if line is not None and record.position not in line else " "
        row = Text(f"{record.position:>6} {mark}{moment(record.time_ns)[:23]}  ", "bright_black")
        row.append(f"{record.stream:<18} ").append(f"{record.type:<19} ", "bold").append(plain(summary(record)))
        console.print(
            row, no_wrap=True, overflow="ellipsis", crop=sys.stdout.isatty(), soft_wrap=not sys.stdout.isatty()
        )


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], empty: str = "") -> None:
    """A table; the line `empty` if it has no rows."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    _print(table, empty)


def print_lines(lines: Iterable[Text]) -> None:
    """Lines of text, as long as they are."""
    console = _console()
    for line in lines:
        console.print(line, soft_wrap=True)


def print_whole(shown: RenderableType, width: int) -> None:
    """Something that fills so many columns."""
    _Console(highlight=False, width=width).print(shown)


def summary(record: Record) -> str:
    """What is worth knowing of an event, on one line."""
    hidden = ("intent", "limits", "public_key", "data")
    fields = {
        name: value
        for name, value in msgspec.to_builtins(record.event).items()
        if (name not in hidden and value not in (None, "", False, ())) or name == "exit_code"
    }
    return " ".join(f"{name.removesuffix('_ns')}={_short(name, value)}" for name, value in fields.items())


def _short(name: str, value: object) -> str:
    if isinstance(value, dict):
        return f"{value['size']}B" if "size" in value else "…"
    if isinstance(value, int) and name.endswith("_ns"):
        return f"{value / 1e9:.3g}s"
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if digest := _DIGEST.fullmatch(text):
        return digest[1]
    return text if len(text) <= 60 else text[:59] + "…"


def print_state(task: registry.Task, json: bool) -> None:
    """What a verb that changed a task's state has to say: the task as a document, or its id and state."""
    if json:
        print_json(task_document(task))
    else:
        print(f"{task.id}  {task.state}")


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
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A callback that is told how far of `total` something has come: a bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


@contextlib.contextmanager
def measured(what: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """As `progress`, and a callback that is told how many bytes of how many are done: on a terminal, a bar of them."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield say_slowly(), lambda done, total: None
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()
    with Progress(*columns, console=console, transient=True) as shown:
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
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table, empty: str = "") -> None:
    _console().print(table if table.row_count else empty)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would exit with status 1; to the command line it is no error.
        raise BrokenPipeError("nobody reads any more")


def _console() -> Console:
    # What is piped into another program must not be wrapped at eighty columns.
    return _Console(highlight=False) if sys.stdout.isatty() else _Console(highlight=False, width=200)
