"""What the command line shows of resources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from sandkeep.events.catalogue import CacheChoice
from sandkeep.projections import Use
from sandkeep.sandboxes.cgroup import Sample
from sandkeep.sandboxes.disk import Share
from sandkeep.sandboxes.monitor import LEVELS, Watched
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.render import Document, print_rows

_COLOURS = {LEVELS[0]: "yellow", LEVELS[1]: "red"}


def top_document(found: Sequence[Watched], promised: int, budget: int) -> Document:
    """What all live sandboxes use, for machines."""
    return {
        "budget": budget,
        "promised": promised,
        "sandboxes": [_sandbox(each.use, each.sample) for each in found],
    }


def use_document(use: Use) -> Document:
    """What all sandboxes of a task have used, for machines."""
    now = use.measured
    return {
        "memory_peak": use.memory_bytes,
        "pids_peak": use.pids,
        "cpu_s": round((use.cpu_ns + (now.cpu_ns if now is not None else 0)) / 1e9, 3),
        "throttled_s": round((use.throttled_ns + (now.throttled_ns if now is not None else 0)) / 1e9, 3),
        "oom_kills": use.oom_kills + (now.oom_kills if now is not None else 0),
    }


def print_use(use: Use) -> None:
    """What all sandboxes of a task have used."""
    found = use_document(use)
    memory = show_size(use.memory_bytes)
    used = f"at most {memory} of memory and {use.pids} processes; {found['cpu_s']} s of processors"
    print(f"used  {used}, {found['throttled_s']} s throttled; {found['oom_kills']} killed for want of memory")


def print_shares(disk: Share | None, caches: Iterable[CacheChoice]) -> None:
    """What a task may take of the disk, and which caches it has."""
    if disk is not None:
        taken = "not measured yet" if disk.bytes is None else show_size(disk.bytes)
        print(f"disk  {taken} of {show_size(disk.limit)}: {disk.means}" if disk.limit else f"disk  {taken}, no limit")
    for each in caches:
        print(f"cache  {each.name}: {'read-write' if each.writable else 'read-only'}")


def print_top(found: Iterable[Watched], promised: int, budget: int) -> None:
    """A table of what the live sandboxes use."""
    rows = []
    for each in found:
        use, now = each.use, each.sample
        peak = max(use.measured.memory_bytes if use.measured is not None else 0, now.memory_bytes if now else 0)
        rows.append(
            (
                use.task,
                _part(now.memory_bytes, now.memory_limit) if now is not None else "unknown",
                show_size(peak),
                show_size(use.promised),
                f"{now.cpu_ns / 1e9:.1f} s" if now is not None else "",
                f"{now.throttled_ns / 1e9:.1f} s" if now is not None else "",
                str(now.pids) if now is not None else "",
                str(now.oom_kills) if now is not None else "",
                Text("waits for memory", "red") if use.extension is not None else "",
            )
        )
    columns = ("TASK", "MEMORY", "PEAK", "PROMISED", "CPU", "THROTTLED", "PIDS", "KILLED", "")
    print_rows(columns, rows, "no sandbox lives")
    print(f"promised {show_size(promised)} of {show_size(budget)}")


def _sandbox(use: Use, now: Sample | None) -> Document:
    document: Document = {"task": use.task, "container": use.container, "promised": use.promised}
    extension = use.extension
    document["extension"] = None if extension is None else {"id": extension.id, "wanted": extension.wanted_bytes}
    if now is None:
        return document | {"memory": None}
    peak = max(now.memory_bytes, use.measured.memory_bytes if use.measured is not None else 0)
    return document | {
        "memory": now.memory_bytes,
        "memory_limit": now.memory_limit,
        "memory_peak": peak,
        "cpu_s": round(now.cpu_ns / 1e9, 3),
        "throttled_s": round(now.throttled_ns / 1e9, 3),
        "pids": now.pids,
        "pids_limit": now.pids_limit,
        "oom_kills": now.oom_kills,
        "guarded": now.guarded,
    }


def _part(used: int, limit: int) -> Text:
    if not limit:
        return Text(show_size(used))
    percent = used * 100 // limit
    colour = next((_COLOURS[level] for level in reversed(LEVELS) if percent >= level), "")
    return Text(f"{show_size(used)} ({percent} %)", colour)
