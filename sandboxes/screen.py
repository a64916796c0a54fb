"""A terminal that shows something that changes, until a key says that it is enough.

What is drawn goes to the terminal's other screen, so that what was there is there again in the end. Only what differs
is drawn, and all of it at once, without clearing the screen first: so nothing flickers.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

Shown = TypeVar("Shown")

_ENOUGH = b"qQ"
_LOOK_SECONDS = 0.25


def show(
    look: Callable[[], Shown], draw: Callable[[Shown, int, int], RenderableType], stale: Callable[[], bool]
) -> None:
    """Draw what `look` finds on our terminal: when it is `stale`, and once a second, and when the terminal gets another
    size. Returns when somebody types q, or when the keyboard is gone; an interrupt goes on to the caller."""
    console = Console(highlight=False)
    with _keyboard() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        found, size, since = look(), console.size, time.monotonic()
        live.update(draw(found, *size), refresh=True)
        while not _enough(keys):
            if stale() or time.monotonic() - since >= 1:
                found, since = look(), time.monotonic()
            elif console.size == size:
                continue
            size = console.size
            live.update(draw(found, *size), refresh=True)


def shows() -> bool:
    """Whether there are a terminal and a keyboard to show something with."""
    return sys.stdout.isatty() and os.isatty(0)


@contextlib.contextmanager
def _keyboard() -> Iterator[tuple[int, int]]:
    """The keyboard, each key at once and none of them shown; and what is readable when the terminal's size changes."""
    before = termios.tcgetattr(0)
    heard, bell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    handler = signal.signal(signal.SIGWINCH, _nothing)
    ringing = signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    try:
        tty.setcbreak(0)
        yield 0, heard
    finally:
        signal.set_wakeup_fd(ringing)
        signal.signal(signal.SIGWINCH, handler)
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(heard)
        os.close(bell)


def _enough(keys: tuple[int, int]) -> bool:
    keyboard, heard = keys
    ready, _, _ = select.select(keys, (), (), _LOOK_SECONDS)
    if heard in ready:
        os.read(heard, 64)
    if keyboard not in ready:
        return False
    typed = os.read(keyboard, 64)
    return not typed or any(key in _ENOUGH for key in typed)


def _nothing(number: int, frame: FrameType | None) -> None:
    """A signal without a handler would not ring."""
