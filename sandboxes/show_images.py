"""What the command line shows people of images and caches."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping

from sandkeep.sandboxes import documents_keep
from sandkeep.sandboxes.cache_store import Pruned
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.render import plain, print_rows


def images(found: documents_keep.Images, asked: Mapping[str, object]) -> None:
    """A table of images, and one of how often they were there when a task asked for them."""
    rows = []
    for each in found.images:
        name = f"{each.name} *" if each.current else each.name
        old = age(each.made) + (", too old" if each.stale else "")
        used = "" if each.used is None else f"{age(each.used)} ago"
        rows.append((name, each.version, each.id[7:19], show_size(each.size), old, used, str(each.uses)))
    empty = "no images of ours yet; the first task makes one, or 'sandkeep build-image base'"
    print_rows(("IMAGE", "VERSION", "ID", "SIZE", "AGE", "LAST USED", "TASKS"), rows, empty)
    counts = [
        (each.name, str(each.uses), _share(each.hit_rate), str(each.builds), str(each.failures), str(each.removed))
        for each in found.names
    ]
    if counts:
        print_rows(("NAME", "TASKS", "HIT RATE", "MADE", "FAILED", "REMOVED"), counts)


def made(image: documents_keep.Image, asked: Mapping[str, object]) -> None:
    """An image that there is now."""
    print(f"{image.tag}  {show_size(image.size)}")


def exported(image: documents_keep.ExportedImage, asked: Mapping[str, object]) -> None:
    """An image that was written into a file."""
    print(f"{image.tag}  {image.id}")


def pruned(done: documents_keep.PrunedImages, asked: Mapping[str, object]) -> None:
    """The images that were removed, a line each, and what is left."""
    for each in done.removed:
        print(plain(f"{'would remove' if done.dry_run else 'removed'} {each.tag}"))
    verb = "would be" if done.dry_run else "are"
    print(f"{show_size(done.after)} of images {verb} left of {show_size(done.before)}")
    if done.after > done.budget:
        print("what is left is in use")


def caches(found: list[documents_keep.Cache], asked: Mapping[str, object]) -> None:
    """A table of caches."""
    rows = []
    for each in found:
        declared = each.mode is not None
        whose = "" if not declared else "all" if each.all_tasks else "asked"
        most = "" if each.limit is None else show_size(each.limit)
        taken, mode = show_size(each.bytes), each.mode or "undeclared"
        rows.append((each.name, mode, whose, taken, most, str(len(each.tasks)), each.used or ""))
    empty = "no caches; declare them under [caches] in keep.toml"
    print_rows(("CACHE", "MODE", "TASKS", "SIZE", "LIMIT", "IN USE BY", "LAST USED"), rows, empty)


def emptied(done: list[Pruned], asked: Mapping[str, object]) -> None:
    """What was removed from caches, a line each."""
    for each in done:
        removed = f"removed {each.removed.files} files, {show_size(each.removed.bytes)}"
        print(plain(f"{each.name}  {removed}; {show_size(each.left.bytes)} left"))


def age(moment: str | None) -> str:
    """How long ago something was, in one unit."""
    if moment is None:
        return ""
    seconds = max(0, int(time.time() - datetime.datetime.fromisoformat(moment).timestamp()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _share(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.0%}"
