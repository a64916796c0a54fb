"""The door of one tool call: what goes on is told to the client as progress, as often as it takes that.

What is told waits in a small store until it is taken; a client that does not read loses what is between, and holds
nobody up. The result has all of it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, final

from sandkeep.sandboxes import settings
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.errors import PolicyDenied

if TYPE_CHECKING:
    from sandkeep.sandboxes.keep import Keep

_MOST = 4000


@final
class McpDoor(Door):
    """One call of a tool on an open keep. It runs on a thread of its own; `taken` may be called by another."""

    def __init__(self, keep: Keep, key: str | None, *, lasting: bool = False) -> None:
        super().__init__(key=key, opened=keep)
        self.cancelled = self.stop = threading.Event()
        self.lasting = lasting
        self.begun = False
        self.notes: list[str] = []
        self._told = ""
        self._changed = threading.Lock()

    def source(self, path: str) -> str:
        """What lies beside the keep, or where keep.toml lets it: the server can read more than its agents may."""
        found = Path(path).resolve()
        granted = (self.path.resolve().parent, *map(Path, settings.load(self.path).sessions.sources))
        if not any(found.is_relative_to(each.resolve()) for each in granted):
            raise PolicyDenied(
                f"{found} lies outside of {granted[0]}; to let agents clone it, name its folder in keep.toml:"
                f" [sessions] sources = [...]"
            )
        return str(found)

    def progress(self, said: str) -> None:
        """Told as a line."""
        self._tell(f"{said}\n")

    def measured(self, done: int, total: int, *, size: bool = True) -> None:
        """Told as a line."""
        self._tell(f"{done} of {total}\n")

    def output(self, stream: str, data: bytes) -> None:
        """Told as it is; which stream it is of, the result says."""
        self._tell(data.decode("utf-8", "replace"))

    def note(self, said: str) -> None:
        """Goes into the result."""
        self.notes.append(said)

    def taken(self) -> str:
        """What was told since the last time, the end of it if it is long."""
        with self._changed:
            told, self._told = self._told, ""
        return told.rstrip("\n")

    def _tell(self, text: str) -> None:
        with self._changed:
            self._told = (self._told + text)[-_MOST:]
