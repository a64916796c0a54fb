"""The command line: `sandkeep VERB`. It holds no logic; each verb is a call of the Python API and a way to show what
it gave.

Exit status: 0 done; 1 refused or failed; 2 bad input; for `execute` without `--json`, that of the command. With
`--json` one JSON document is printed (`events` prints one a line), `{"error": ...}` when it could not be done.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from sandkeep.events import Record, SandkeepError, recovery
from sandkeep.events.recovery import Mode
from sandkeep.sandboxes import (
    cli_audit,
    cli_caches,
    cli_checkpoints,
    cli_conflicts,
    cli_files,
    cli_images,
    cli_lifecycle,
    cli_locks,
    cli_memory,
    cli_network,
    cli_processes,
    cli_registry,
    cli_resources,
    commands,
    render,
)
from sandkeep.sandboxes.door import named, run
from sandkeep.sandboxes.identity import FORMAT, default_actor, identify
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath, TaskId, Token
from sandkeep.sandboxes.terminal_door import TerminalDoor
from sandkeep.sandboxes.verification import verify_log
from sandkeep.sandboxes.vocabulary import VERBS, Verb

_LOOK_SECONDS = 0.5

_HELP = "Isolated Docker sandboxes for coding agents, with a verifiable record of everything that happens in them."

app = typer.Typer(
    name="sandkeep",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(cli_audit.app)
app.add_typer(cli_registry.app)
app.add_typer(cli_lifecycle.app)
app.add_typer(cli_checkpoints.app)
app.add_typer(cli_files.app)
app.add_typer(cli_locks.app)
app.add_typer(cli_memory.app)
app.add_typer(cli_conflicts.app)
app.add_typer(cli_images.app)
app.add_typer(cli_caches.app)
app.add_typer(cli_network.app)
app.add_typer(cli_processes.app)
app.add_typer(cli_resources.app)


@app.command("init")
def init(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Make a keep: the folder that holds the log, the tasks and their checkpoints."""
    with Keep.init(keep) as made:
        document = {"keep": str(made.path), "id": made.id, "format": FORMAT}
    if json:
        render.print_json(document)
    else:
        print(f"made a keep in {document['keep']}")


@app.command("complete-task")
def complete_task(
    task: TaskId,
    summary: Annotated[str, typer.Option(metavar="TEXT", help="What came of it.")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="It was given up; --summary says why.")] = False,
    token: Token = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """End a task: its sandbox is removed; workspace and checkpoints stay until cleanup-task."""
    with Keep.open(keep) as opened:
        found = opened.task(task, token)
        if failed:
            found.fail(summary)
        else:
            found.complete(summary)
        state = found.state
    render.print_state(state, json)


@app.command("cleanup-task")
def cleanup_task(task: TaskId, token: Token = None, keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Remove what an ended task has on disk and in Docker. Its history and its checkpoints stay."""
    with Keep.open(keep) as opened:
        found = opened.task(task, token)
        found.clean_up()
        state = found.state
    render.print_state(state, json)


@app.command("verify")
def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Also unpack the journal, and check the log's pages.")] = False,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Check the log, its journal, the blobs it vouches for and the projections. Exit status 1 if any is off."""
    with render.progress() as progress:
        path = keep.absolute()
        report = verify_log(path, progress, identify(path), deep=deep)
        if report.ok:
            with Keep.open(keep) as opened:
                report = opened.verify(progress)
    if json:
        render.print_json(report)
    else:
        for line in report.damage:
            print(f"damaged: {render.plain(line)}")
        verdict = "all is as it was" if report.ok else "DAMAGED"
        notes = f"{report.notes} published notes"
        print(f"{verdict}: {report.events} events up to position {report.head}, {notes}, {report.blobs} blobs")
    raise typer.Exit(0 if report.ok else 1)


@app.command("recover")
def recover(
    mode: Annotated[Mode, typer.Option(help="What may be lost; see docs/guides/recovery.md.")] = Mode.STRICT,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Make a damaged log whole again, from itself and its journal. Exit status 1 if anything is lost, or would be.

    What was damaged goes to quarantine/; nothing is deleted.
    """
    path = keep.absolute()
    identify(path)
    with render.progress() as progress:
        progress("recovering the log")
        done = recovery.recover(path, mode, actor=default_actor())
    if json:
        render.print_json(done)
    else:
        for line in done.damage:
            print(f"damaged: {render.plain(line)}")
        for what, ranges in (("lost", done.lost), ("salvaged", done.salvaged)):
            for span in ranges:
                print(f"{what}: positions {span.first} to {span.last}")
        did = (
            f"recovered from {done.source}; what was there is in {done.quarantine}" if done.recovered else "all is well"
        )
        print(f"{did}: the log ends at position {done.head}")
    raise typer.Exit(0 if done.ok else 1)


@app.command("replay")
def replay(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Rebuild what is true now from the log, and compare it with what was stored. Exit status 1 if they differ."""
    begun = time.perf_counter()
    with Keep.open(keep) as opened, render.bar("replaying", opened.head().position) as came_to:
        rebuilt = opened.replay(came_to)
    document = {
        "ok": rebuilt.same,
        "events": rebuilt.position,
        "digest": rebuilt.after,
        "before": rebuilt.before,
        "duration_s": round(time.perf_counter() - begun, 6),
    }
    if json:
        render.print_json(document)
    else:
        verdict = "the same as before" if rebuilt.same else f"NOT the {rebuilt.before} of before"
        print(f"replayed {rebuilt.position} events: digest {rebuilt.after}, {verdict}")
    raise typer.Exit(0 if rebuilt.same else 1)


@app.command("events")
def events(
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what happens, until interrupted.")] = False,
    after: Annotated[int, typer.Option(metavar="POSITION", min=0, help="Only what came after it.")] = 0,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Show the log, of all tasks and processes. With --json, one document a line."""

    def show(record: Record) -> None:
        if json:
            render.print_json(render.record_document(record))
        else:
            render.print_records([record])

    with Keep.open(keep) as opened:
        if not follow:
            for record in opened.events(after):
                show(record)
            return
        arrived: queue.SimpleQueue[Record | Exception] = queue.SimpleQueue()
        with opened.bus.catch_up(after).subscribe(arrived.put, on_error=arrived.put):
            while True:
                try:
                    # Not for ever: an interrupt that comes just before the wait begins is seen when it ends.
                    found = arrived.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    continue
                if isinstance(found, Exception):
                    raise found
                show(found)


def _act(verb: Verb, given: dict[str, Any]) -> int:
    """Do a verb and show what it gave; returns the exit status."""
    json = given.pop("json", False)
    with TerminalDoor(Path(given.pop("keep", HERE)), json=json, speaks=verb.speaks) as door:
        result = run(verb, door, given)
    if json:
        render.print_json(result)
        return 0
    status: int | None = named(verb.show)(result, given)
    return status or 0


def _commands() -> TyperGroup:
    made = commands.group("sandkeep", _HELP, VERBS, _act)
    # What is not in the vocabulary yet.
    older = typer.main.get_group(app)
    for name, command in older.commands.items():
        made.commands.setdefault(name, command)
    return made


def main() -> NoReturn:
    """The entry point: run a verb, and turn what goes wrong into one line and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    json = "--json" in sys.argv[: sys.argv.index("--") if "--" in sys.argv else None]
    try:
        status = _commands().main(sys.argv[1:] or ["--help"], "sandkeep", standalone_mode=False)
    except SandkeepError as error:
        _fail(error.code, str(error), error.exit_status, json)
    except typer.TyperException as error:
        _fail("bad-usage", error.format_message(), 2, json)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail("os-error", f"the operating system refused: {error.strerror or error}{where}", 1, json)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(code: str, message: str, status: int, json: bool) -> NoReturn:
    line = render.plain(" ".join(message.split()))
    print(f"sandkeep: {line} [{code}]", file=sys.stderr)
    if json:
        # A path in it may be none that JSON can hold.
        message = message.encode("utf-8", "backslashreplace").decode()
        render.print_json({"error": {"code": code, "message": message}})
    sys.exit(status)


def _terminate(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
