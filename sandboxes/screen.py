"""A terminal that shows something that changes, until a key says that it is enough.

What is drawn goes to the terminal's other screen, so that what was there is there again in the end. Only what differs
is drawn, and all of it at once, without clearing the screen first: so nothing flickers.
"""

from __future__ import annotations

import os
import select
import sys
import time
import tty
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

from sandkeep.sandboxes import keyboard

Shown = TypeVar("Shown")

_ENOUGH = b"qQ"
_LOOK_SECONDS = 0.25


def show(
    look: Callable[[], Shown], draw: Callable[[Shown, int, int], RenderableType], stale: Callable[[], bool]
) -> None:
    """Draw what `look` finds on our terminal: when it is `stale`, and once a second, and when the terminal gets another
    size. Returns when somebody types q, or when the keyboard is gone; an interrupt goes on to the caller."""
    console = Console(highlight=False)
    with keyboard.in_mode(tty.setcbreak), Live(console=console, screen=True, auto_refresh=False) as live:
        found, size, since = look(), console.size, time.monotonic()
        live.update(draw(found, *size), refresh=True)
        while not _enough():
            if stale() or console.size != size or time.monotonic() - since >= 1:
                found, size, since = look(), console.size, time.monotonic()
                live.update(draw(found, *size), refresh=True)


def shows() -> bool:
    """Whether there are a terminal and a keyboard to show something with."""
    return sys.stdout.isatty() and os.isatty(0)


def _enough() -> bool:
    """Wait for a key for a moment; whether it was the one that ends this, or the keyboard is gone."""
    if not select.select((0,), (), (), _LOOK_SECONDS)[0]:
        return False
    typed = os.read(0, 64)
    return not typed or any(key in _ENOUGH for key in typed)
