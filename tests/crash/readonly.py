"""A keep in a folder that this process may not write: `readonly FOLDER`.

Permissions do not hold root back, so root becomes nobody, after all has been imported and with relative paths, since
the way here may be closed to nobody.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sandkeep.events import LmdbLog, LogUnavailable
from sandkeep.events.recovery import Mode, recover

from .states import Promises
from .workloads import Work

_NOBODY = 65534


def _protect(folder: Path, forbidden: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o555 if forbidden else 0o755) if path.is_dir() else (0o444 if forbidden else 0o644))


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _become(user: int) -> None:
    if os.getuid() == 0:
        os.setegid(user)
        os.seteuid(user)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir()
    os.chdir(folder)
    work = Work(Path("keep"))
    work.folder.mkdir()
    with work.opened(1) as log:
        work.append(log, "a")
        # The files are open, so only what needs a new one fails: the segment for what follows.
        _protect(Path(), True)
        _become(_NOBODY)
        with pytest.raises(LogUnavailable, match="could not be written"):
            work.append(log, "b")
    before = _content(Path())
    for path in (work.folder, Path("other")):
        with pytest.raises(LogUnavailable), closing(LmdbLog[None](path / "log", journal=path / "journal")):
            pass
        with pytest.raises(LogUnavailable), closing(LmdbLog[None](path / "log")):
            pass
        with pytest.raises(LogUnavailable):
            recover(path, Mode.STRICT, actor="me")
    assert _content(Path()) == before
    _become(0)
    _protect(Path(), False)
    promises = Promises()
    for call in work.calls:
        promises.apply(call)
    promises.judge(work.folder, recovering=False)
