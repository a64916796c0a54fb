"""Logs of our own, as `benchmarks/log.py` writes and reads them, and the same events for its peers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from sandkeep.events import LmdbLog
from sandkeep.events.catalogue import CommandRequested

STREAMS = 16
"""The streams that one caller appends to in turn."""

CALLERS = 64
"""The asyncio callers, each with a stream of its own."""


def sample(count: int) -> list[dict[str, Any]]:
    """The fields of `count` different events."""
    return [
        {
            "intent": f"{i * 0x9E3779B97F4A7C15:032x}",
            "argv": ("python3", "-m", "pytest", "-q", f"tests/events/test_codec.py::test_round_trip[{i}]"),
            "cwd": "/workspace",
            "env": ("HOME", "LANG", "PATH", "PYTHONPATH"),
            "timeout_ns": 120_000_000_000 + i,
        }
        for i in range(count)
    ]


class Single:
    """A log with its journal and one caller, whose commits hold `batch` events each."""

    def __init__(self, folder: Path, batch: int, content: list[dict[str, Any]]) -> None:
        self._log: LmdbLog[None] = LmdbLog(folder / f"log-{batch}", journal=folder / f"journal-{batch}")
        self._batch = batch
        self._content = content
        self._revisions = [0] * STREAMS
        self._commits = 0

    def append(self, commits: int) -> float:
        """Events a second over so many commits."""
        started = time.perf_counter()
        for commit in range(self._commits, self._commits + commits):
            number = commit % STREAMS
            at = commit * self._batch % len(self._content)
            events = [CommandRequested(**fields) for fields in self._content[at : at + self._batch]]
            receipt = self._log.append(f"task/{number}", events, actor="bench", expected=self._revisions[number])
            self._revisions[number] = receipt.revision
        taken = time.perf_counter() - started
        self._commits += commits
        return commits * self._batch / taken

    def close(self) -> None:
        self._log.close()


class Together:
    """A log with its journal and 64 asyncio callers, each of whom waits for its append before it makes the next."""

    def __init__(self, folder: Path, content: list[dict[str, Any]]) -> None:
        self._log: LmdbLog[None] = LmdbLog(folder / "log-callers", journal=folder / "journal-callers")
        self._content = content
        self._revisions = [0] * CALLERS

    def append(self, each: int) -> float:
        """Events a second, all callers together, over so many events by each."""
        return asyncio.run(self._all(each))

    async def _all(self, each: int) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(self._one(number, each) for number in range(CALLERS)))
        return CALLERS * each / (time.perf_counter() - started)

    async def _one(self, number: int, each: int) -> None:
        revision = self._revisions[number]
        for i in range(revision, revision + each):
            event = CommandRequested(**self._content[i % len(self._content)])
            receipt = await self._log.append_async(f"task/{number}", [event], actor="bench", expected=revision)
            revision = receipt.revision
        self._revisions[number] = revision

    def close(self) -> None:
        """Raises `RuntimeError` if the log does not hold what was appended."""
        position = self._log.head().position
        self._log.close()
        if position != sum(self._revisions):
            raise RuntimeError("the log does not hold what its callers appended")


class Long:
    """A log that was built before, of `total` events."""

    def __init__(self, folder: Path, total: int, content: list[dict[str, Any]]) -> None:
        self._log: LmdbLog[None] = LmdbLog(folder)
        self._total = total
        self._content = content

    def replay(self) -> float:
        """Events a second over the whole log, each verified and decoded."""
        count = 0
        event = None
        started = time.perf_counter()
        for record in self._log.read():
            event = record.event
            count += 1
        taken = time.perf_counter() - started
        if count != self._total or event != CommandRequested(**self._content[(count - 1) % len(self._content)]):
            raise RuntimeError("the replay did not give what was appended")
        return count / taken

    def close(self) -> None:
        self._log.close()
