"""The command line's verbs for images. They hold no logic."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from sandkeep.projections import ImageCounts
from sandkeep.sandboxes import quantity, render
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.options import HERE, AsJson, KeepPath
from sandkeep.sandboxes.stock import Image

app = typer.Typer()


_Name = Annotated[str, typer.Argument(metavar="NAME", help="What the image is called: base, developer, or your own.")]


@app.command("images")
def list_images(keep: KeepPath = HERE, json: AsJson = False) -> None:
    """Show our images that the engine has, and how often a task found the one it asked for."""
    with Keep.open(keep) as opened:
        found, counts = opened.images.present(), opened.images.counts()
    if json:
        document = {"images": [_document(each) for each in found], "names": [_counts(each) for each in counts]}
        render.print_json(document)
    else:
        _print(found, "no images of ours yet; the first task makes one, or 'sandkeep build-image base'")
        rows = [
            (each.name, str(each.uses), _share(each.hit_rate), str(each.builds), str(each.failures), str(each.removed))
            for each in counts
        ]
        if rows:
            render.print_rows(("NAME", "TASKS", "HIT RATE", "MADE", "FAILED", "REMOVED"), rows)


@app.command("build-image")
def build_image(
    name: _Name,
    dockerfile: Annotated[Path | None, typer.Option(metavar="DIR", help="Build the Dockerfile in this folder.")] = None,
    source: Annotated[str | None, typer.Option("--from", metavar="IMAGE", help="Take a registry's image.")] = None,
    package: Annotated[
        list[str] | None, typer.Option(metavar="PACKAGE", help="The base and this Debian package; may be repeated.")
    ] = None,
    no_network: Annotated[bool, typer.Option("--no-network", help="What the Dockerfile runs has no network.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Even if there is one that is not too old.")] = False,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Make an image that tasks can be created with, from a recipe of ours or from what you name."""
    with Keep.open(keep) as opened, render.measured(f"making {name}") as (progress, measured):
        made = opened.images.build(
            name,
            folder=dockerfile,
            reference=source,
            packages=package or (),
            network=not no_network,
            rebuild=rebuild,
            progress=progress,
            measured=measured,
        )
    _say(made, json)


@app.command("prune-images")
def prune_images(
    budget: Annotated[str, typer.Option(metavar="SIZE", help="What images may take on disk, like 500M or 2G.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Remove the images of this keep that were not used for longest, until the rest fits; none that a task needs."""
    size = quantity.size(budget)
    with Keep.open(keep) as opened, render.progress() as progress:
        done = opened.images.prune(size, dry_run=dry_run, progress=progress)
    if json:
        removed = [_document(each) for each in done.removed]
        render.print_json(
            {"removed": removed, "before": done.before, "after": done.after, "budget": size, "dry_run": dry_run}
        )
        return
    for each in done.removed:
        print(render.plain(f"{'would remove' if dry_run else 'removed'} {each.tag}"))
    after, before = quantity.show_size(done.after), quantity.show_size(done.before)
    print(f"{after} of images {'would be' if dry_run else 'are'} left of {before}")
    if done.after > size:
        print("what is left is in use")


@app.command("export-image")
def export_image(
    name: _Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write; it must not exist.")],
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Write an image into a file, for an engine that has no network."""
    with Keep.open(keep) as opened, render.measured(f"exporting {name}") as (progress, measured):
        found = opened.images.export(name, file, progress=progress, measured=measured)
    if json:
        render.print_json(_document(found) | {"file": str(file.absolute())})
    else:
        print(f"{found.tag}  {found.id}")


@app.command("import-image")
def import_image(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What 'export-image' wrote.")],
    expected: Annotated[str | None, typer.Option("--id", metavar="ID", help="The id that it must have.")] = None,
    keep: KeepPath = HERE,
    json: AsJson = False,
) -> None:
    """Load an image that was exported, perhaps on another machine. To import one is to trust whoever wrote it."""
    with Keep.open(keep) as opened, render.measured("importing") as (progress, measured):
        found = opened.images.load(file, expected=expected, progress=progress, measured=measured)
    _say(found, json)


def _say(image: Image, json: bool) -> None:
    if json:
        render.print_json(_document(image))
    else:
        print(f"{image.tag}  {quantity.show_size(image.size)}")


def _document(image: Image) -> render.Document:
    hidden = ("made_ns", "used_ns", "layers")
    document: render.Document = {
        name: value for name, value in msgspec.structs.asdict(image).items() if name not in hidden
    }
    made, used = image.made_ns, image.used_ns
    return document | {
        "made": None if made is None else render.moment(made),
        "used": None if used is None else render.moment(used),
    }


def _counts(counts: ImageCounts) -> render.Document:
    return {**msgspec.structs.asdict(counts), "hit_rate": counts.hit_rate}


def _print(images: Iterable[Image], empty: str) -> None:
    rows = []
    for each in images:
        name = f"{each.name} *" if each.current else each.name
        age = _age(each.made_ns) + (", too old" if each.stale else "")
        used = "" if each.used_ns is None else f"{_age(each.used_ns)} ago"
        rows.append((name, each.version, each.id[7:19], quantity.show_size(each.size), age, used, str(each.uses)))
    render.print_rows(("IMAGE", "VERSION", "ID", "SIZE", "AGE", "LAST USED", "TASKS"), rows, empty)


def _age(time_ns: int | None) -> str:
    if time_ns is None:
        return ""
    seconds = max(0, time.time_ns() - time_ns) // 10**9
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _share(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.0%}"
