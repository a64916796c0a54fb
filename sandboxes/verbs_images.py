"""What the verbs for images do: calls of the library, and documents of what it gave. They hold no logic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sandkeep.sandboxes import documents_keep, quantity
from sandkeep.sandboxes.door import Door


def images(door: Door) -> documents_keep.Images:
    """Our images that the engine has; see `ImageStore.present`."""
    found, counts = door.keep.images.present(), door.keep.images.counts()
    return documents_keep.Images(
        [documents_keep.image(each) for each in found], [documents_keep.image_counts(each) for each in counts]
    )


def build_image(
    door: Door,
    *,
    name: str,
    dockerfile: str | None = None,
    source: str | None = None,
    package: Sequence[str] = (),
    no_network: bool = False,
    rebuild: bool = False,
) -> documents_keep.Image:
    """Make an image; see `ImageStore.build`."""
    door.progress(f"making {name}")
    made = door.keep.images.build(
        name,
        folder=None if dockerfile is None else Path(dockerfile),
        reference=source,
        packages=package,
        network=not no_network,
        rebuild=rebuild,
        progress=door.progress,
        measured=door.measured,
    )
    return documents_keep.image(made)


def prune_images(door: Door, *, budget: str, dry_run: bool = False) -> documents_keep.PrunedImages:
    """Remove images until the rest fits; see `ImageStore.prune`."""
    size = quantity.size(budget)
    done = door.keep.images.prune(size, dry_run=dry_run, progress=door.progress)
    removed = [documents_keep.image(each) for each in done.removed]
    return documents_keep.PrunedImages(removed, done.before, done.after, size, dry_run)


def export_image(door: Door, *, name: str, file: str) -> documents_keep.ExportedImage:
    """Write an image into a file; see `ImageStore.export`."""
    door.progress(f"exporting {name}")
    found = door.keep.images.export(name, Path(file), progress=door.progress, measured=door.measured)
    return documents_keep.ExportedImage(**documents_keep.image_fields(found), file=str(Path(file).absolute()))


def import_image(door: Door, *, file: str, expected: str | None = None) -> documents_keep.Image:
    """Load an image that was exported; see `ImageStore.load`."""
    door.progress("importing")
    found = door.keep.images.load(Path(file), expected=expected, progress=door.progress, measured=door.measured)
    return documents_keep.image(found)
