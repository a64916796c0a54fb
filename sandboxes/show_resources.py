"""What the command line shows people of networks and resources."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from sandkeep.sandboxes import documents_keep
from sandkeep.sandboxes.isolation import Isolation
from sandkeep.sandboxes.monitor import LEVELS
from sandkeep.sandboxes.quantity import show_size
from sandkeep.sandboxes.render import plain, print_rows

_COLOURS = {LEVELS[0]: "yellow", LEVELS[1]: "red"}
_SIZES = ("memory", "swap", "tmp", "disk", "output")


def network(found: documents_keep.Network, asked: Mapping[str, object]) -> None:
    """What a sandbox may reach, a line each, and how much it has."""
    print(found.network)
    for each in (*found.allow, *(f"{each}  private" for each in found.private), *found.services):
        print(f"  {each}")
    if found.offers:
        print(f"offers {', '.join(map(str, found.offers))}")
    counts = f"{found.allowed} allowed, {found.denied} denied"
    print(f"{counts}, {found.sent_bytes} sent bytes, {found.received_bytes} received bytes")


def offers(found: documents_keep.Offers, asked: Mapping[str, object]) -> None:
    """The ports that a sandbox offers."""
    print(f"offers {', '.join(map(str, found.offers))}" if found.offers else "offers nothing")


def isolation(found: Isolation, asked: Mapping[str, object]) -> None:
    """A table of the ways out that were tried."""
    rows = [(each.way, each.what, "OPEN" if each.open else "closed", each.seen) for each in found.attempts]
    print_rows(("way", "tried", "is", "seen"), [tuple(map(plain, row)) for row in rows])
    ways = [each for each in found.attempts if each.open]
    print("every way out is closed" if found.closed else f"{len(ways)} WAYS OUT ARE OPEN")


def limits(found: documents_keep.TaskLimits, asked: Mapping[str, object]) -> None:
    """What a sandbox may use now."""
    shown = (f"{name} {show_size(value) if name in _SIZES else f'{value:g}'}" for name, value in found.limits.items())
    print(f"{found.task}  {', '.join(shown)}")


def answered(found: documents_keep.Answered, asked: Mapping[str, object]) -> None:
    """The answer to a sandbox that asked for more."""
    print(f"{found.task}  {found.answer}, memory {show_size(found.memory)}")


def top(found: documents_keep.Top, asked: Mapping[str, object]) -> None:
    """A table of what the live sandboxes use."""
    columns = ("TASK", "MEMORY", "PEAK", "PROMISED", "CPU", "THROTTLED", "PIDS", "KILLED", "")
    print_rows(columns, map(_row, found.sandboxes), "no sandbox lives")
    print(f"promised {show_size(found.promised)} of {show_size(found.budget)}")


def _row(found: documents_keep.Watched) -> tuple[str | Text, ...]:
    known = found.memory is not None
    return (
        found.task,
        _part(found.memory, found.memory_limit or 0) if found.memory is not None else "unknown",
        show_size(found.memory_peak or 0),
        show_size(found.promised),
        f"{found.cpu_s:.1f} s" if known else "",
        f"{found.throttled_s:.1f} s" if known else "",
        str(found.pids) if known else "",
        str(found.oom_kills) if known else "",
        Text("waits for memory", "red") if found.extension is not None else "",
    )


def _part(used: int, limit: int) -> Text:
    if not limit:
        return Text(show_size(used))
    percent = used * 100 // limit
    colour = next((_COLOURS[level] for level in reversed(LEVELS) if percent >= level), "")
    return Text(f"{show_size(used)} ({percent} %)", colour)
