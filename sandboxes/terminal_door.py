"""The command line's door: what goes on is told on standard error, and what a command writes is shown as it comes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import final

from sandkeep.sandboxes import stdout
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.text import escaped


@final
class TerminalDoor(Door):
    """One verb that somebody has typed. With `json` nothing but its document goes to standard output; of one that
    `speaks`, progress takes nothing from what it shows itself."""

    def __init__(self, path: Path, *, json: bool, speaks: bool) -> None:
        super().__init__(path)
        self._json = json
        self._speaks = speaks
        self._shown = contextlib.ExitStack()
        self._said = ""
        self._say: Callable[[str], None] | None = None
        self._measure: Callable[[int, int], None] | None = None

    def progress(self, said: str) -> None:
        """On a terminal, beside a spinner; elsewhere a line for each new thing, once it has taken a second."""
        if self._say is None:
            from sandkeep.sandboxes import render  # which a question that is answered at once needs not

            self._say = render.say_slowly() if self._speaks else self._shown.enter_context(render.progress())
        self._said = said
        self._say(said)

    def measured(self, done: int, total: int, *, size: bool = True) -> None:
        """On a terminal, a bar of it beside the rest."""
        if self._measure is None:
            from sandkeep.sandboxes import render

            self.quieten()
            shown = render.measured(self._said, size=size)
            self._say, self._measure = self._shown.enter_context(shown)
        self._measure(done, total)

    def output(self, stream: str, data: bytes) -> None:
        """On the stream of ours that has the same name."""
        self.quieten()
        if not self._json:
            stdout.write((sys.stdout if stream == "stdout" else sys.stderr).buffer, data)

    def note(self, said: str) -> None:
        """A line on standard error."""
        self.quieten()
        print(f"sandkeep: {escaped(said)}", file=sys.stderr)

    def quieten(self) -> None:
        """Take away what shows progress, before something else is shown."""
        self._shown.close()
        self._say = self._measure = None

    def close(self) -> None:
        """Close the keep, and show no more progress."""
        self.quieten()
        super().close()
