"""Where damaged files go: `quarantine/<time>/` in the keep. Nothing is ever taken out of it, or deleted.

A file is moved by renaming it, so it must lie on the same file system.
"""

from __future__ import annotations

import datetime
import os
import secrets
from pathlib import Path
from typing import final

from sandkeep.events.durable import sync_folder


@final
class Quarantine:
    """One folder for what one repair sets aside, made when the first thing goes into it."""

    def __init__(self, root: Path) -> None:
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.folder = root / f"{moment}-{secrets.token_hex(2)}"

    def take(self, path: Path) -> None:
        """Move the file or folder `path` here."""
        path.rename(self._place(path))
        self._settle()

    def link(self, path: Path) -> None:
        """Keep the file `path` here under a second name, because the first is about to be given to another."""
        os.link(path, self._place(path))
        self._settle()

    def keep(self, name: str, content: bytes) -> None:
        """Write `content`, which is about to be cut from elsewhere, to a new file here, durably."""
        with open(self._place(Path(name)), "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._settle()

    def _place(self, path: Path) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self.folder / path.name
        while target.exists():
            target = self.folder / f"{path.name}.{secrets.token_hex(2)}"
        return target

    def _settle(self) -> None:
        sync_folder(self.folder)
        sync_folder(self.folder.parent)
