"""What a checkpoint of 10,000 files costs, and setting a workspace back to one.

The workspace is made: text of 700 bytes on average, in folders of twenty files, and one file of 20 MB that is edited
like a database, by 18 bytes in the middle. Recorded is what `task.checkpoint` records, without the event; set back is
what `task.restore_checkpoint` sets back, without looking at the result again. Beside it stand git, with a repository
and an index of its own that is compressed at level 1, as editors' undo uses it, and `find -printf`, which only looks at
every file. git syncs nothing here, and keeps neither empty folders nor times nor owners. Its process start counts.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sandkeep.events import BlobStore
from sandkeep.sandboxes import restore, snapshot
from sandkeep.sandboxes.snapshot_walk import Snapshot

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import alternate, claim, options, report, sync_floor, versions, workspace

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

    def change(self, *paths: Path) -> None:
        """Change 18 bytes in the middle of these files, or of ten others."""
        for path in paths or self.chosen.sample(self.paths, 10):
            with open(path, "r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(b"%018d" % self.chosen.randrange(10**18))

    def changed(self, *paths: Path) -> float:
        """Record it after such a change; milliseconds."""
        self.change(*paths)
        return timed(self.take)

    def back(self) -> float:
        """Set it back to before ten changes; milliseconds."""
        before = self.take().digest
        self.change()
        present = self.take().digest
        return timed(lambda: restore.apply(self.root, present, before, self.blobs))

    def git(self, *arguments: str) -> str:
        """Let git do it."""
        settings = ("core.compression=1", "gc.auto=0", "core.untrackedCache=true", "index.version=4")
        command = ["git", *(part for each in settings for part in ("-c", each))]
        command += [f"--git-dir={self.folder / 'git'}", f"--work-tree={self.tree}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=self.tree).stdout.strip()

    def git_take(self) -> str:
        """Record the workspace with git."""
        self.git("add", "-A", "-f", ".")
        return self.git("write-tree")

    def git_first(self) -> float:
        """As `first`."""
        shutil.rmtree(self.folder / "git", ignore_errors=True)
        self.git("init", "--quiet")
        return timed(self.git_take)

    def git_unchanged(self) -> float:
        """As `unchanged`."""
        self.git_take()
        return timed(self.git_take)

    def git_changed(self, *paths: Path) -> float:
        """As `changed`."""
        self.git_take()
        self.change(*paths)
        return timed(self.git_take)

    def git_back(self) -> float:
        """As `back`; git has its own undo record, so only what sets back is timed."""
        before = self.git_take()
        self.change()
        self.git_take()
        return timed(lambda: (self.git("read-tree", "--reset", "-u", before), self.git("clean", "-ffdxq")))

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
        sides: dict[str, Callable[[], float]] = {
            "first": side.first,
            "git first": side.git_first,
            "unchanged": side.unchanged,
            "git unchanged": side.git_unchanged,
            "find": side.find,
            "changed": side.changed,
            "git changed": side.git_changed,
            "database": lambda: side.changed(database),
            "git database": lambda: side.git_changed(database),
            "back": side.back,
            "git back": side.git_back,
        }
        taken = alternate(chosen.runs, sides, f"checkpoints of {files:,} files")
        floor = [sync_floor(folder, 100) for _ in range(3)]
    beside = partial(claim, unit="ms", bar=0.0)
    claims = [
        beside(f"first checkpoint of {files:,} files", ours=taken["first"], peer=taken["git first"], peer_name="git"),
        beside("nothing changed", ours=taken["unchanged"], peer=taken["git unchanged"], peer_name="git"),
        beside("nothing changed, again", ours=taken["unchanged"], peer=taken["find"], peer_name="find -printf"),
        beside("10 files changed", ours=taken["changed"], peer=taken["git changed"], peer_name="git"),
        beside("20 MB file edited", ours=taken["database"], peer=taken["git database"], peer_name="git"),
        beside("set back to before 10 changes", ours=taken["back"], peer=taken["git back"], peer_name="git"),
    ]
    return report("checkpoints", claims, measured, floor, check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
