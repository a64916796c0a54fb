"""The command line's `sandkeep audit`: checkpoints, bundles and what they show. It holds no logic.

`audit verify` exits with 1 when something does not hold, and with 2 when it was given no bundle or no key.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from sandkeep.events.audit import AuditReport
from sandkeep.sandboxes import audit, render
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath

app = typer.Typer(name="audit", help="Show others that the record is whole.", no_args_is_help=True)


class Blobs(enum.StrEnum):
    """What a bundle holds of the content that its records vouch for."""

    INCLUDE = "include"
    DIGESTS = "digests"


@app.command("key")
def key(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Print the key that whoever verifies must have; hand it out once, by another way than the bundles."""
    with Keep.open(keep) as opened:
        found = str(opened.audit_key)
    if json:
        render.print_json({"key": found})
    else:
        print(found)


@app.command("checkpoint")
def checkpoint(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Sign what the log holds now and print the note; whoever keeps it can show later that nothing was rewritten."""
    with Keep.open(keep) as opened:
        note = opened.publish_checkpoint().decode()
    if json:
        render.print_json({"note": note})
    else:
        print(note, end="")


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle to write; it must not exist.")],
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Only the records of this task.")] = None,
    first: Annotated[int | None, typer.Option("--from", metavar="POSITION", min=1, help="Only from here.")] = None,
    last: Annotated[int | None, typer.Option("--until", metavar="POSITION", min=1, help="Only up to here.")] = None,
    blobs: Annotated[Blobs, typer.Option(help="Content that the records vouch for, or only its digests.")] = (
        Blobs.INCLUDE
    ),
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Write records, proofs, notes and content into one file, which 'audit verify' judges anywhere."""
    with Keep.open(keep) as opened, render.progress() as progress:
        done = opened.export_audit(
            file, task=task, first=first, last=last, blobs=blobs is Blobs.INCLUDE, progress=progress
        )
    if json:
        render.print_json(done)
    else:
        print(f"wrote {done.records} records and {done.blobs or 0} blobs, {done.bytes} bytes, to {done.file}")


@app.command("verify")
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What 'audit export' wrote.")],
    key: Annotated[str, typer.Option("--key", metavar="PUB", help="What 'audit key' prints, or a file that holds it.")],
    note: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A note kept from before; may be repeated.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Judge a bundle by its key alone, without a keep. Exit status 1, and a line a problem, if it does not hold."""
    seen = [audit.read_note(each) for each in note or ()]
    report = audit.verify_bundle(bundle, key, seen=seen)
    if json:
        render.print_json(report)
    else:
        _print(report)
    raise typer.Exit(0 if report.ok else 1)


def _print(report: AuditReport) -> None:
    for problem in report.problems:
        print(f"problem: {render.plain(' '.join(problem.message.split()))} [{problem.code}]")
    if report.found > len(report.problems):
        print(f"problem: {report.found - len(report.problems)} more")
    verdict = "all holds" if report.ok else "DOES NOT HOLD"
    what = "all of the log" if report.stream is None else report.stream
    content = "content left out" if report.blobs is None else f"{report.blobs} blobs"
    line = (
        f"{verdict}: {report.records} records of {what}, positions {report.first} to {report.last} of {report.size},"
        f" {report.notes} notes, {content}"
    )
    print(render.plain(line))
