"""What the verb for watching does. It holds no logic."""

from __future__ import annotations

from sandkeep.sandboxes import screen, show_watch, watch
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.watch import Picture


def watch_keep(door: Door, *, once: bool = False) -> Picture | None:
    """Show what is going on until somebody types q; or, `once` or without a terminal, give a picture of it. See
    `watch.look`."""
    keep = door.keep
    last = watch.look(keep)
    if once or not screen.shows():
        return last

    def again() -> Picture:
        nonlocal last
        last = watch.look(keep, last)
        return last

    screen.show(again, show_watch.frame, lambda: keep.head().position != last.position)
    return None
