"""The logs that there are today."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import final

from sandkeep.events import Follower, LmdbLog, Record
from sandkeep.events.recovery import Mode, recover
from sandkeep.events.verify import verify, verify_journal

from ..support import flip, worker
from .subject import Backend, Capability, Log, Worker


@final
class Lmdb:
    """`LmdbLog`, with a journal or without."""

    def __init__(self, *, journaled: bool) -> None:
        self.journaled = journaled
        self.capabilities = frozenset(Capability) - (frozenset() if journaled else {Capability.SECOND_COPY})

    def open(self, folder: Path, follower: Follower[list[Record]], clock: Callable[[], int]) -> Log:
        journal = folder / "journal" if self.journaled else None
        return LmdbLog(folder / "log", follower=follower, journal=journal, clock=clock, segment_bytes=5000)

    def check(self, folder: Path) -> None:
        report = verify(folder / "log", deep=True)
        assert report.ok, report.damage
        if self.journaled:
            assert verify_journal(folder / "journal", report, deep=True) == ()

    def elsewhere(self, folder: Path, verb: str, argument: object) -> contextlib.AbstractContextManager[Worker]:
        if self.journaled:
            return worker(f"journal-{verb}", folder, argument)
        return worker(verb, folder / "log", argument)

    def damage(self, folder: Path, needle: bytes) -> None:
        flip(folder / "log" / "data.mdb", needle)

    def lose(self, folder: Path) -> None:
        shutil.rmtree(folder / "log")
        assert recover(folder, Mode.STRICT, actor="doctor").ok


BACKENDS: dict[str, Backend] = {"lmdb": Lmdb(journaled=False), "lmdb and journal": Lmdb(journaled=True)}
"""Every kind of log that a user can have, by its name in the tests."""
