"""What checkpoints cost: taking one of a small, a middling and a large workspace, keeping it, and going back to it.

Ours is what a user calls, on an open keep, in a task without a sandbox: `Task.checkpoint`, which ends with a durable
event, and `Task.restore_checkpoint`, which records what was there first and looks at the result. Beside it stand git,
with an index of its own, as editors' undo uses it, restic, `cp -a`, `tar | zstd`, and `find -printf`, which only looks
at every file. git and `cp` sync nothing; git keeps neither times nor owners, and no repository within the workspace.
That a peer starts as a process counts for it.

All sides work on one folder, in a different order each round: first with an empty store; then with nothing changed;
after each of ten edits of ten files, 18 bytes in the middle of each; after rows of a SQLite file were changed (L); back
from such an edit, in place; and into an emptied folder, beside `cp -a` into a new one. The disk is synced before
anything is timed. What is stored is counted in blocks.

Memory is the peak of a process of its own, which opens a keep and takes two checkpoints, and of those that it starts;
what they share counts once. The pause is how long a sandbox stood still for a checkpoint, in which a command writes all
the time.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import _workspaces
from benchmarks._checkpoint_peers import Git, Restic, archive, copy, look, stored
from benchmarks._harness import Claim, absolute, claim, console, options, report, sync_floor, versions, workspace

SIZES = ("S", "M", "L")
EDITS = 10
EDITED_FILES = 10
PAUSE_SECONDS = {"M": 0.04, "L": 0.3}
MEMORY_MB = 250
WRITER = "while :; do date >busy; sleep 0.01; done"

Values = defaultdict[str, list[float]]


def timed(act: Callable[[], object]) -> float:
    """How long it takes, in milliseconds. What others wrote before is synced first."""
    os.sync()
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1e3


class Ours:
    """A keep with one task, whose workspace is given to it."""

    def __init__(self, folder: Path, tree: Path) -> None:
        self.keep = Keep.init(folder)
        self.task = self.keep.create_task("a benchmark")
        self.tree = self.task.workspace
        self.tree.rmdir()
        tree.rename(self.tree)
        self.last = ""

    def take(self) -> None:
        self.last = self.task.checkpoint().id

    def back(self, checkpoint: str) -> None:
        self.task.restore_checkpoint(checkpoint)

    def stored(self) -> float:
        return stored(self.keep.path / "blobs")


class Bench:
    """One workspace, and everything that is done to it, round by round."""

    def __init__(self, size: str, folder: Path) -> None:
        self.size = size
        self.folder = folder
        self.tree = folder / "tree"
        copy(_workspaces.made(size), self.tree)
        paths = _workspaces.files(self.tree)
        self.names = [path.relative_to(self.tree) for path in paths]
        self.chosen = random.Random(size)
        self.values: Values = Values(list)
        self.number = 0

    def round(self) -> None:
        """Everything once."""
        self.number += 1
        here = self.folder / f"round-{self.number}"
        here.mkdir()
        ours = Ours(here / "keep", self.tree)
        self.tree = ours.tree
        git, restic = Git(here / "git", self.tree), Restic(here / "restic", self.tree)
        takes: dict[str, Callable[[], object]] = {"ours": ours.take, "git": git.take, "restic": restic.take}
        stores: dict[str, Callable[[], float]] = {"ours": ours.stored, "restic": restic.stored}
        try:
            self._each("first", takes | {"tar | zstd": partial(archive, self.tree, here / "archive")})
            self._each("unchanged", takes | {"find": partial(look, self.tree)})
            for _ in range(EDITS):
                self._edit()
                self._each("edited", takes)
            before = {name: count() for name, count in stores.items()}
            for name, kilobytes in before.items():
                self.values[f"stored: {name}"].append(kilobytes)
            if self.size == "L":
                _workspaces.edit_database(self.tree, self.chosen)
                self._each("database", takes)
                for name, count in stores.items():
                    self.values[f"grown: {name}"].append(count() - before[name])
            self._back(ours, git)
            self._full(ours, here)
        finally:
            ours.keep.close()
            self.tree = self.folder / "tree"
            ours.tree.rename(self.tree)
            shutil.rmtree(here)

    def _edit(self) -> None:
        for name in self.chosen.sample(self.names, EDITED_FILES):
            with open(self.tree / name, "r+b") as file:
                file.seek((self.tree / name).stat().st_size // 2)
                file.write(b"%018d" % self.chosen.randrange(10**18))

    def _each(self, what: str, sides: dict[str, Callable[[], object]]) -> None:
        """Time all sides, another one first in each round."""
        names = list(sides)
        turn = self.number % len(names)
        for name in names[turn:] + names[:turn]:
            self.values[f"{what}: {name}"].append(timed(sides[name]))

    def _back(self, ours: Ours, git: Git) -> None:
        """Set back an edit, each side in its turn."""

        def with_ours() -> float:
            ours.take()
            before = ours.last
            self._edit()
            ours.take()
            return timed(partial(ours.back, before))

        def with_git() -> float:
            before = git.take()
            self._edit()
            git.take()
            return timed(partial(git.back, before))

        sides = {"ours": with_ours, "git": with_git}
        for name in sorted(sides, reverse=bool(self.number % 2)):
            self.values[f"back: {name}"].append(sides[name]())

    def _full(self, ours: Ours, here: Path) -> None:
        self.values["full: cp"].append(timed(partial(copy, self.tree, here / "copy")))
        ours.take()
        # Moved, since to make files is several times slower for minutes where many were just removed.
        aside = here / "aside"
        aside.mkdir()
        for entry in list(self.tree.iterdir()):
            entry.rename(aside / entry.name)
        self.values["full: ours"].append(timed(partial(ours.back, ours.last)))
        compared = subprocess.run(["diff", "-rq", "--no-dereference", self.tree, here / "copy"], capture_output=True)
        if compared.returncode:
            sys.exit(f"benchmark: what was restored is not what was there: {compared.stdout.decode(errors='replace')}")

    def paused(self) -> float:
        """Milliseconds for which a sandbox stood still for a checkpoint."""
        with giving(self) as ours:
            ours.take()
            running = ours.task.start(["sh", "-c", WRITER])
            self._edit()
            ours.take()
            running.stop()
            made = [record.event for record in ours.task.history() if isinstance(record.event, ev.CheckpointCreated)]
            ours.task.complete()
            return made[-1].frozen_ns / 1e6

    def memory(self) -> float:
        """Megabytes that a process and those that it starts need at most for a first and a later checkpoint."""
        with giving(self) as ours:
            command = [sys.executable, "-P", __file__, "--taking", str(ours.keep.path), ours.task.id]
            most = 0
            with subprocess.Popen(command) as process:
                while process.poll() is None:
                    most = max(most, proportional(process.pid))
                    time.sleep(0.02)
            if process.returncode:
                sys.exit("benchmark: a checkpoint failed; its message stands above")
            return most * 1024 / 1e6


def proportional(process: int) -> int:
    """What a process and those below it have in memory now, in kibibytes; what they share counts once (PSS)."""
    found = 0
    with suppress(OSError):  # it may have ended
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        found = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        children = Path(f"/proc/{process}/task/{process}/children").read_text()
        found += sum(proportional(int(child)) for child in children.split())
    return found


@contextmanager
def giving(bench: Bench) -> Iterator[Ours]:
    """A keep that has the workspace for a while."""
    ours = Ours(bench.folder / "keep", bench.tree)
    bench.tree = ours.tree
    try:
        yield ours
    finally:
        bench.tree = bench.folder / "tree"
        ours.tree.rename(bench.tree)
        ours.keep.close()
        shutil.rmtree(ours.keep.path)


def taking(path: Path, task: str) -> None:
    """Open a keep and take two checkpoints."""
    with Keep.open(path) as keep:
        found = keep.task(task)
        found.checkpoint()
        (found.workspace / "new").write_text("new")
        found.checkpoint()


def claims(size: str, values: Values) -> list[Claim]:
    """What the issue asks of a workspace of this size."""

    def beside(text: str, what: str, peer: str, bar: float, unit: str = "ms") -> Claim:
        ours, peers = values[f"{what}: ours"], values[f"{what}: {peer}"]
        return claim(f"{size}: {text}", unit, ours, peers, peer_name=peer, bar=bar, better="lower")

    def at_most(text: str, what: str, bar: float, unit: str = "ms") -> Claim:
        return absolute(f"{size}: {text}", unit, values[f"{what}: ours"], bar, better="lower")

    large = size == "L"
    found = [
        *([beside("first", "first", "restic", 0.35), beside("first", "first", "tar | zstd", 1.3)] if large else []),
        *([beside("nothing changed", "unchanged", "find", 1.1)] if large else []),
        beside("10 files edited", "edited", "git", {"S": 1.0, "M": 0.8, "L": 1.0}[size]),
        *([beside("10 files edited", "edited", "restic", 0.12)] if large else []),
        *([beside("109 MB SQLite file edited", "database", "git", 0.3)] if large else []),
        *([beside("what that added to the store", "grown", "restic", 2.0, "kB")] if large else []),
        beside("back from 10 edits, in place", "back", "git", 0.65),
        at_most("back from 10 edits, in place", "back", 1000),
        beside("into an empty folder", "full", "cp", 1.0),
        *([] if large else [at_most("into an empty folder", "full", 1000)]),
        beside("store after 10 small checkpoints", "stored", "restic", {"S": 1.0, "M": 1.05, "L": 1.0}[size], "kB"),
    ]
    if size in PAUSE_SECONDS:
        found.append(at_most("pause of what runs", "paused", PAUSE_SECONDS[size] * 1e3))
    if large:
        found.append(at_most("memory", "memory", MEMORY_MB, "MB"))
    return found


def measure(size: str, folder: Path, runs: int) -> Values:
    """All that is measured of a workspace."""
    bench = Bench(size, folder)
    for number in range(runs):
        console.print(f"checkpoints of {size}, {len(bench.names):,} files: round {number + 1} of {runs}")
        bench.round()
    if size in PAUSE_SECONDS:
        bench.values["paused: ours"] = [bench.paused() for _ in range(runs)]
    if size == "L":
        bench.values["memory: ours"] = [bench.memory() for _ in range(runs)]
    for what in sorted(bench.values):
        values = sorted(bench.values[what])
        console.print(f"  {what}: {values[len(values) // 2]:,.0f} ({values[0]:,.0f} to {values[-1]:,.0f})")
    return bench.values


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--taking"]:
        taking(Path(arguments[1]), arguments[2])
        return 0
    chosen = options(__doc__, parts=SIZES)
    measured = versions("blake3", "pyfastcdc", "lmdb")
    found: list[Claim] = []
    floor: list[float] = []
    with workspace() as folder:
        measured |= {"git": Git.version(), "restic": Restic.version()}
        for size in chosen.only or SIZES:
            (folder / size).mkdir()
            found += claims(size, measure(size, folder / size, chosen.runs))
            floor += [sync_floor(folder, 100) for _ in range(3)]
            shutil.rmtree(folder / size)
    return report("checkpoints", found, measured, floor, check=chosen.check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
