"""Our own keyboard, given to us key by key, and as it was before in the end."""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def in_mode(change: Callable[[int], object]) -> Iterator[None]:
    """Change the mode of the terminal that standard input is, by `tty.setraw` or `tty.setcbreak`, if it is one."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        change(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
