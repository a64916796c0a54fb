"""The way down into a tree of folders, by descriptors alone, however deep it is and whoever moves it meanwhile.

At most `KEPT` of the folders on the way are open. One that was closed is opened again through the `..` of the folder
below it, as fts(3) does, and must be the same one: if it was moved, the way is lost. No link is followed, and no mount.
"""

from __future__ import annotations

import os
from typing import final

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a folder is opened."""

KEPT = 100
"""How many folders on the way are open at most, besides the first."""


class WayLost(Exception):
    """A folder on the way was moved while it was not open."""


class OtherMount(Exception):
    """A folder that was to be entered lies on another file system."""


@final
class Descent:
    """The way from the folder that is open as `root`, which stays open and is the caller's. For a `with` block."""

    def __init__(self, root: int) -> None:
        found = os.fstat(root)
        self.device = found.st_dev
        self._open = [root]
        self._inodes = [found.st_ino]
        self._closed = 1
        self.folder = root
        """The descriptor of the folder that was entered last."""

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._open[self._closed :]:
            os.close(descriptor)

    @property
    def depth(self) -> int:
        """How many folders there are on the way."""
        return len(self._open) - 1

    def enter(self, name: bytes) -> os.stat_result:
        """Go into a folder, and return its status. Raises `OSError` if `name` is none, and `OtherMount`."""
        descriptor = os.open(name, FOLDER, dir_fd=self.folder)
        found = os.fstat(descriptor)
        if found.st_dev != self.device:
            os.close(descriptor)
            raise OtherMount
        self._open.append(descriptor)
        self._inodes.append(found.st_ino)
        self.folder = descriptor
        if len(self._open) - self._closed > KEPT:
            os.close(self._open[self._closed])
            self._closed += 1
        return found

    def leave(self) -> None:
        """Go back to the folder above. Raises `WayLost`."""
        below = self._open.pop()
        self._inodes.pop()
        above = len(self._open) - 1
        try:
            if 0 < above < self._closed:
                self._reopen(below, above)
            self.folder = self._open[above]
        finally:
            os.close(below)

    def _reopen(self, below: int, above: int) -> None:
        self._closed = above + 1
        descriptor = os.open("..", FOLDER, dir_fd=below)
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino) != (self.device, self._inodes[above]):
            os.close(descriptor)
            raise WayLost
        self._open[above] = descriptor
        self._closed = above
