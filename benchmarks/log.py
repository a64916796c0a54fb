"""How fast the log appends, replays and opens, beside the disk, `eventsourcing` on SQLite and OpenHands' EventLog.

Appending. All sides build the same event, about 200 bytes, from the same fields. One caller appends it to the next of
16 streams, naming the revision it expects there; 64 asyncio callers have a stream each, and each waits for its append
before it makes the next. When an append returns it is on the disk. A peer without an asyncio interface is given the
better of two ways to serve many callers: the threads of their loop, or one after the other. The floor is a loop that
appends 256 bytes to a file and calls fdatasync: what the disk allows to anyone who syncs each event.

Replaying. Each side reads its own log, oldest first, and turns each record into its event. Ours has a million, and
verifies checksums, chain and positions on the way; the peers have what they wrote before, and nothing to verify.

Opening. A fresh process opens a keep of a million events in a thousand tasks, whose projections are at the head, as
they are for all but the first after a reboot, finds one task and lists all. The page cache is warm; the interpreter's
start and the imports, printed beside, are not counted.

Memory. The peak of all memory that the kernel counts for a fresh process that replays a million events, mapped pages
of the log included, less the peak of an empty Python; and beside it what is the process's own (anonymous).

Beside OpenHands 20 times is claimed of 64 callers and 30 times of frames of 100. For one caller and for frames of one
the ratio is printed without a bar: the disk itself is about seven times as fast as one caller there, so that no log
that syncs each event could be 20 times as fast, and a frame has its fixed cost however little it holds.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import (
    ROOT,
    Claim,
    absolute,
    alternate,
    claim,
    console,
    options,
    report,
    sync_floor,
    versions,
    workspace,
)
from benchmarks._logs import CALLERS, STREAMS, Long, Single, Together, sample
from benchmarks._peer import NoPython, Peer

BATCH = 100
EVENTS = "events/s"
SQLITE = "eventsourcing on SQLite, WAL, synchronous=FULL"
OPENHANDS = "OpenHands EventLog"

Values = dict[str, list[float]]


def probe(*arguments: object) -> Any:
    """What `_probe.py` prints in a process of its own."""
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / "_probe.py"), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"benchmark: the probe {arguments[0]} ended with status {done.returncode}; its message stands above")
    return json.loads(done.stdout or "null")


def build(text: str, *arguments: object) -> Any:
    """As `probe`, for what takes half a minute."""
    if not console.is_terminal:
        console.print(f"building {text}", highlight=False)
    with console.status(f"building {text}"):
        return probe(*arguments)


def asking(peer: Peer, action: str, *arguments: object) -> Callable[[], float]:
    """A side of the comparison: the peer's answer as a number."""
    return lambda: float(peer.ask(action, *arguments))


def better(values: Values, *names: str) -> list[float]:
    """Those of the named sides' values with the higher median."""
    return max((values[name] for name in names), key=statistics.median)


class Bench:
    """One run of all of it, in `folder`; `scale` is the factor on every size."""

    def __init__(self, folder: Path, runs: int, scale: float) -> None:
        self._folder = folder
        self._scale = scale
        self._each = partial(alternate, runs)
        self._content = sample(10 * BATCH)
        self._singles, self._batches = self._scaled(2500), self._scaled(200)
        self._by_each = self._scaled(250)
        self._total = self._scaled(10_000) * BATCH
        self.floor: list[float] = []

    def _scaled(self, size: int) -> int:
        return max(1, round(size * self._scale))

    def appends(self, sqlite: Peer, openhands: Peer | None) -> list[Claim]:
        """Durable appends: one caller, 64 callers, batches."""
        few = self._scaled(500)
        with (
            contextlib.closing(Single(self._folder, 1, self._content)) as one,
            contextlib.closing(Single(self._folder, BATCH, self._content)) as many,
            contextlib.closing(Together(self._folder, self._content)) as together,
        ):
            sides: dict[str, Callable[[], float]] = {
                "ours": partial(one.append, self._singles),
                "sqlite": asking(sqlite, "append", 1, self._singles),
                "floor": partial(sync_floor, self._folder, self._singles),
            }
            callers: dict[str, Callable[[], float]] = {
                "ours": partial(together.append, self._by_each),
                "sqlite, threads": asking(sqlite, "together", 0, CALLERS, self._scaled(32)),
                "sqlite, in turn": asking(sqlite, "append", 1, self._singles),
            }
            if openhands is not None:
                sides["openhands"] = asking(openhands, "append", "natural", few)
                callers["openhands, threads"] = asking(openhands, "together", "bare", CALLERS, self._scaled(8))
                callers["openhands, in turn"] = asking(openhands, "append", "bare", few)
            append = self._each(sides, "one caller, one event a commit")
            group = self._each(callers, f"{CALLERS} asyncio callers")
            batch = self._each(
                {"ours": partial(many.append, self._batches), "sqlite": asking(sqlite, "append", BATCH, self._batches)},
                f"batches of {BATCH}",
            )
        self.floor = append["floor"]
        text, groups = "durable append, one event a commit, one caller", f"durable append, {CALLERS} asyncio callers"
        batches = f"durable append, batches of {BATCH}"
        # The second bar is under one because LMDB flushes twice a commit, the data and then the page that points to it,
        # where a write-ahead log flushes once.
        claims = [
            claim(text, EVENTS, append["ours"], append["sqlite"], peer_name=SQLITE, bar=0.5),
            claim(text, EVENTS, append["ours"], append["floor"], peer_name="fdatasync floor, 256 B", bar=0.5),
            absolute(groups, EVENTS, group["ours"], 25_000),
            claim(groups, EVENTS, group["ours"], better(group, "sqlite, threads", "sqlite, in turn"),
                  peer_name=f"{SQLITE}; the better of threads and one by one", bar=8.0),
            absolute(batches, EVENTS, batch["ours"], 100_000),
            claim(batches, EVENTS, batch["ours"], batch["sqlite"], peer_name=SQLITE, bar=1.5),
        ]  # fmt: skip
        if openhands is not None:
            peer = better(group, "openhands, threads", "openhands, in turn")
            claims += [
                claim(groups, EVENTS, group["ours"], peer,
                      peer_name=f"{OPENHANDS}; the better of threads and one by one", bar=20.0),
                claim(text, EVENTS, append["ours"], append["openhands"], peer_name=OPENHANDS, bar=0.0),
            ]  # fmt: skip
        return claims

    def replays(self, sqlite: Peer, openhands: Peer | None) -> list[Claim]:
        """Verified, decoded replay of a million events, by frames of 100 and of one, and the memory it takes."""
        claims = []
        for size, bar, ratio in ((BATCH, 600_000, 3.0), (1, 300_000, 1.5)):
            folder = self._folder / f"long-{size}"
            name = f"frames of {size}"
            build(f"a log of {self._total:,} events, {name}", "frames", folder, size, self._total)
            with contextlib.closing(Long(folder, self._total, self._content)) as long:
                sides = {"ours": long.replay, "sqlite": asking(sqlite, "replay", size)}
                if openhands is not None:
                    sides |= {kind: asking(openhands, "replay", kind) for kind in ("natural", "bare")}
                replay = self._each(sides, f"replay of {self._total:,} events, {name}")
            text = f"verified, decoded replay of {self._total:,} events, {name}"
            ours = replay["ours"]
            claims.append(absolute(text, EVENTS, ours, bar))
            claims.append(claim(text, EVENTS, ours, replay["sqlite"], peer_name=SQLITE, bar=ratio))
            if openhands is not None:
                held, bare = f"{OPENHANDS}, as it holds commands", f"{OPENHANDS}, a bare event of our fields"
                wanted = 30.0 if size == BATCH else 0.0
                claims.append(claim(text, EVENTS, ours, replay["natural"], peer_name=held, bar=wanted))
                claims.append(claim(text, EVENTS, ours, replay["bare"], peer_name=bare, bar=0.0))
            claims += self._memory(folder, name)
        return claims

    def _memory(self, folder: Path, name: str) -> list[Claim]:
        own: list[float] = []

        def replayed() -> float:
            (peak, anonymous), (bare, bare_anonymous) = probe("replay", folder), probe("empty")
            own.append((anonymous - bare_anonymous) / 1024)
            return float(peak - bare) / 1024

        peak = self._each({"ours": replayed}, f"memory of a replay, {name}")["ours"]
        text = f"memory of a replay of {self._total:,} events over an empty process, {name}"
        return [
            absolute(text, "MiB", peak, 100, better="lower"),
            absolute(f"{text}, without mapped pages", "MiB", own, 100, better="lower"),
        ]

    def opening(self) -> list[Claim]:
        """A keep of a million events, from its opening to the first answers."""
        folder = self._folder / "keep"
        task = build(f"a keep of {self._total:,} events", "keep", folder, self._total)
        imports: list[float] = []

        def opened() -> float:
            taken, imported = probe("open", folder, task)
            imports.append(imported)
            return float(taken)

        taken = self._each({"ours": opened}, "opening a keep")["ours"]
        imported = f"imports {statistics.median(imports):,.0f} ms beside"
        return [absolute(f"open a keep of {self._total:,} events, to the first answers; {imported}", "ms", taken, 100,
                         better="lower")]  # fmt: skip


def main() -> int:
    chosen = options(__doc__)
    measured = versions("lmdb", "msgspec", "blake3")
    missing = []
    with workspace() as folder, contextlib.ExitStack() as peers:
        bench = Bench(folder, chosen.runs, chosen.scale)
        content = msgspec.to_builtins(sample(10 * BATCH))
        sqlite = peers.enter_context(Peer("eventsourcing_sqlite", "bench", str(folder)))
        measured |= sqlite.ask("open", BATCH, STREAMS, content)
        openhands = None
        try:
            openhands = peers.enter_context(Peer("openhands_eventlog", "bench-openhands", str(folder), least=(3, 12)))
            measured |= openhands.ask("open", "", content)
        except NoPython as error:
            missing.append(f"{OPENHANDS}: {error}")
        claims = [*bench.appends(sqlite, openhands), *bench.replays(sqlite, openhands), *bench.opening()]
    return report("log", claims, measured, bench.floor, check=chosen.check, missing=missing)


if __name__ == "__main__":
    sys.exit(main())
