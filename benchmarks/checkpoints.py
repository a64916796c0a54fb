"""What a checkpoint of 10,000 files costs, and setting a workspace back to one.

The workspace is made: text of 700 bytes on average, in folders of twenty files, and one file of 20 MB that is edited
like a database, by 18 bytes in the middle. Recorded is what `task.checkpoint` records, without the event; set back is
what `task.restore_checkpoint` sets back, without looking at the result again. Beside it stands `find -printf`, which
only looks at every file. What other tools take for the same is not measured here yet.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sandkeep.events import BlobStore
from sandkeep.sandboxes import restore, snapshot
from sandkeep.sandboxes.snapshot import Snapshot

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import absolute, alternate, claim, options, report, sync_floor, versions, workspace

FILES = 10_000
DATABASE_BYTES = 20 << 20


def make(folder: Path, files: int) -> None:
    """Make the workspace."""
    chosen = random.Random(1)
    words = [bytes(chosen.choices(b"abcdefghijklmnopqrstuvwxyz", k=chosen.randrange(2, 9))) for _ in range(3000)]
    for number in range(files):
        inner = folder / f"{number // 200}" / f"{number // 20 % 10}"
        inner.mkdir(parents=True, exist_ok=True)
        text = b" ".join(chosen.choices(words, k=int(min(60_000, chosen.expovariate(1 / 120)))))
        (inner / f"{number}.txt").write_bytes(text + b"%d" % number)
    (folder / "database").write_bytes(chosen.randbytes(DATABASE_BYTES))


class Side:
    """A workspace and its store."""

    def __init__(self, folder: Path, files: int) -> None:
        self.folder = folder
        self.tree = folder / "workspace"
        self.tree.mkdir()
        make(self.tree, files)
        self.paths = sorted(self.tree.glob("*/*/*.txt"))
        self.chosen = random.Random(2)
        self.root = os.open(self.tree, os.O_RDONLY)
        self.blobs = BlobStore(folder / "blobs")
        self.last = self.take()

    def take(self) -> Snapshot:
        """Record the workspace."""
        return snapshot.take(self.root, self.blobs)

    def first(self) -> float:
        """Record it into an empty store; milliseconds."""
        shutil.rmtree(self.folder / "blobs")
        self.blobs = BlobStore(self.folder / "blobs")
        return timed(self.take)

    def unchanged(self) -> float:
        """Record it again; milliseconds."""
        self.last = self.take()
        return timed(self.take)

    def changed(self, *paths: Path) -> float:
        """Record it after 18 bytes in the middle of these files, or of ten others, were changed; milliseconds."""
        for path in paths or self.chosen.sample(self.paths, 10):
            with open(path, "r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(b"%018d" % self.chosen.randrange(10**18))
        return timed(self.take)

    def back(self) -> float:
        """Set it back to before ten changes; milliseconds."""
        before = self.take().digest
        self.changed()
        present = self.take().digest
        return timed(lambda: restore.apply(self.root, present, before, self.blobs))

    def find(self) -> float:
        """Look at every file; milliseconds."""
        command = ["find", os.fspath(self.tree), "-printf", r"%s %T@ %C@\n"]
        return timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))


def timed(act: Callable[[], object]) -> float:
    """How long it takes; milliseconds. What others wrote before is synced first."""
    os.sync()
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1e3


def main() -> int:
    chosen = options(__doc__)
    files = max(100, round(FILES * chosen.scale))
    with workspace() as folder:
        measured = versions("blake3", "pyfastcdc", "lmdb")
        side = Side(folder, files)
        database = side.tree / "database"
        taken = alternate(
            chosen.runs,
            {
                "first": side.first,
                "unchanged": side.unchanged,
                "10 changed": side.changed,
                "database": lambda: side.changed(database),
                "back": side.back,
                "find": side.find,
            },
            f"checkpoints of {files:,} files",
        )
        floor = [sync_floor(folder, 100) for _ in range(3)]
    claims = [
        absolute(f"first checkpoint of {files:,} files", "ms", taken["first"], 4e3 * chosen.scale, better="lower"),
        claim("nothing changed", "ms", taken["unchanged"], taken["find"], peer_name="find -printf", bar=0.0),
        absolute("10 files changed", "ms", taken["10 changed"], 2e3 * chosen.scale, better="lower"),
        absolute("20 MB file edited", "ms", taken["database"], 2e3 * chosen.scale, better="lower"),
        absolute("set back to before 10 changes", "ms", taken["back"], 1e3, better="lower"),
    ]
    return report("checkpoints", claims, measured, floor, check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
