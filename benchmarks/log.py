"""How fast the log appends and replays, beside the `eventsourcing` package on SQLite and beside the bare disk.

Appending. Both sides build the same event, about 200 bytes, from the same fields and append it to the next of 16
streams, naming the revision they expect there; each commit is on the disk before the next begins. The floor is a loop
that appends 256 bytes to a file and calls fdatasync: what the disk allows to anyone who syncs each event.

Replaying. Both sides read back, oldest first, all that they have just written, and turn each record into its event.
Ours verifies checksums, chain and positions on the way; the peer has nothing to verify.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sandkeep.events import LmdbLog
from sandkeep.events.catalogue import CommandRequested

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Peer, alternate, claim, options, report, sync_floor, versions, workspace

BATCH = 100
STREAMS = 16
SQLITE = "eventsourcing on SQLite, WAL, synchronous=FULL"


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


class Ours:
    """A log of our own with its journal, whose commits hold `batch` events each."""

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

    def replay(self) -> float:
        """Events a second over the whole log."""
        count = 0
        event = None
        started = time.perf_counter()
        for record in self._log.read():
            event = record.event
            count += 1
        taken = time.perf_counter() - started
        last = CommandRequested(**self._content[(count - 1) % len(self._content)])
        if count != self._commits * self._batch or event != last:
            raise RuntimeError("the replay did not give what was appended")
        return count / taken

    def close(self) -> None:
        self._log.close()


def main() -> int:
    chosen = options(__doc__)
    singles, batches = (max(1, round(size * chosen.scale)) for size in (2500, 200))
    content = sample(10 * BATCH)
    each = partial(alternate, chosen.runs)
    with (
        workspace() as folder,
        Peer("eventsourcing_sqlite", "bench", str(folder)) as peer,
        closing(Ours(folder, 1, content)) as one,
        closing(Ours(folder, BATCH, content)) as many,
    ):
        measured = versions("lmdb", "msgspec", "blake3")
        measured |= peer.ask("open", BATCH, STREAMS, msgspec.to_builtins(content))

        def beside(action: str, *arguments: int) -> Callable[[], float]:
            return lambda: float(peer.ask(action, *arguments))

        append = each(
            {
                "ours": partial(one.append, singles),
                "peer": beside("append", 1, singles),
                "floor": partial(sync_floor, folder, singles),
            },
            "one event a commit",
        )
        batch = each(
            {"ours": partial(many.append, batches), "peer": beside("append", BATCH, batches)},
            f"batches of {BATCH}",
        )
        replay = each({"ours": many.replay, "peer": beside("replay", BATCH)}, f"replay, frames of {BATCH}")
        replay_one = each({"ours": one.replay, "peer": beside("replay", 1)}, "replay, frames of one")
    unit = "events/s"
    # The first bar is under one because LMDB flushes twice a commit, the data and then the page that points to it,
    # where a write-ahead log flushes once. The bars are regressions' alarms: about two thirds of what was measured.
    rows = [
        ("durable append, one event a commit, one caller", append["ours"], append["peer"], SQLITE, 0.5),
        ("durable append beside the disk's own pace", append["ours"], append["floor"], "fdatasync floor, 256 B", 0.5),
        (f"durable append, batches of {BATCH}", batch["ours"], batch["peer"], SQLITE, 1.5),
        (f"verified, decoded replay, frames of {BATCH}", replay["ours"], replay["peer"], SQLITE, 3.0),
        ("verified, decoded replay, frames of one", replay_one["ours"], replay_one["peer"], SQLITE, 1.5),
    ]
    claims = [claim(text, unit, ours, other, peer_name=name, bar=bar) for text, ours, other, name, bar in rows]
    return report("log", claims, measured, check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
