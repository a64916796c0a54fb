"""Restores, and what a power failure leaves of them: `checkpoint_states FOLDER SEED SECTOR MOST SHARD SHARDS`.

In a keep in FOLDER a workspace is changed, recorded and set back, while the calls are recorded. Then the states that
the disk can be in after each call that this SHARD looks at are made, MOST of them at the most, and each is opened and
judged. Nothing that is changed is synced by who changes it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import shutil
import sys
from pathlib import Path
from typing import final

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.events import journal
from sandkeep.events.durable import sync_file_system
from sandkeep.projections import store
from sandkeep.sandboxes import Keep, Task, builder, cgroup, clock, freezer, memory, restore, seen, snapshot

from ..packed import files_of
from .checkpoint_kill import only_task
from .disk import Acknowledged, Begun, Call, Disk, Started, SyncAll
from .recorder import Recorder
from .states import make

CHANGE, CHECKPOINT, RESTORE = "change", "checkpoint", "restore"
_BOOTS = (journal, store, seen, clock, memory)


def change(workspace: Path, chance: random.Random) -> None:
    """Write, link, remove and lock some of what is there."""
    for _ in range(5):
        folder = workspace / f"{chance.randrange(3)}" / f"{chance.randrange(2)}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{chance.randrange(3)}"
        path.unlink(missing_ok=True)
        match chance.randrange(6):
            case 0:
                path.symlink_to("../somewhere")
            case 1:
                os.mkfifo(path)
            case 2 if (workspace / "large").exists():
                path.hardlink_to(workspace / "large")
            case _:
                path.write_bytes(chance.randbytes(chance.choice((0, 10, 700, 9000))))
                path.chmod(chance.choice((0o600, 0o755)))
    with open(workspace / "large", "wb") as large:
        large.write(chance.randbytes(3000))
    if chance.random() < 0.5:
        shutil.rmtree(workspace / f"{chance.randrange(3)}", ignore_errors=True)


def record(folder: Path) -> list[Call]:
    """Change, record and set back, some times; what was acknowledged is among the calls."""
    chance = random.Random(11)
    with Keep.init(folder / "keep") as keep:
        task = keep.create_task("t")
        change(task.workspace, chance)
        task.checkpoint()
    shutil.rmtree(folder / "keep" / "run" / "doorbells", ignore_errors=True)
    recorder = Recorder(folder)
    with recorder.running(), pytest.MonkeyPatch.context() as patch, Keep.open(folder / "keep") as keep:

        def synced(descriptor: int) -> None:
            sync_file_system(descriptor)
            recorder.calls.append(SyncAll())

        patch.setattr(restore, "sync_file_system", synced)
        patch.setattr(cgroup, "find", lambda *_: cgroup)
        patch.setattr(cgroup, "freeze", lambda _: True)
        patch.setattr(cgroup, "thaw", lambda _: None)
        task = only_task(keep)
        for number in range(6):
            patch.setattr(builder, "FEW", 3 if number % 2 else 100)
            recorder.calls.append(Started(CHANGE, 0))
            change(task.workspace, chance)
            recorder.look(task.workspace)
            recorder.calls.append(Started(CHECKPOINT, 0))
            with freezer.held(keep, task.id, "0" * 64):  # as around every snapshot of a sandbox that runs
                taken = task.checkpoint().id
            recorder.calls += [Acknowledged(taken, 0), Started(CHANGE, 0)]
            change(task.workspace, chance)
            recorder.look(task.workspace)
            target = taken if number < 3 else chance.choice(task.checkpoints()).id
            recorder.calls.append(Started(RESTORE, 0))
            task.restore_checkpoint(target)
            recorder.calls.append(Acknowledged(RESTORE, 0))
    return recorder.calls


@final
class Promises:
    """What was begun, and what was acknowledged."""

    def __init__(self) -> None:
        self.restores = self.restored = 0
        self.taken: set[str] = set()
        self.still = False
        """Whether nothing was done to the workspace since the last restore began."""

    def apply(self, call: Call) -> None:
        match call:
            case Started("change"):
                self.still = False
            case Started("restore"):
                self.restores += 1
                self.still = True
            case Acknowledged("restore"):
                self.restored += 1
            case Acknowledged(checkpoint):
                self.taken.add(checkpoint)
            case _:
                pass

    def judge(self, keep: Keep, chance: random.Random) -> None:
        """Look at a keep after a power failure. Raises `AssertionError` for what must not be."""
        task = only_task(keep)
        there = {each.id: each for each in task.checkpoints()}
        assert self.taken <= there.keys(), "a checkpoint is lost"
        for each in there.values():
            found = [content for _, content in files_of(each.digest, keep.blobs)]
            assert (len(found), sum(map(len, found))) == (each.files, each.bytes), "a checkpoint is not whole"
        done = [event for record in keep.events() if isinstance(event := record.event, ev.CheckpointRestored)]
        assert self.restored <= len(done) <= self.restores
        if self.still and len(done) == self.restores:
            assert there[done[-1].checkpoint].digest == done[-1].digest
            assert _present(task, keep) == done[-1].digest, "what was said to be restored is not"
        keep.reconcile(again=True)
        assert not task.state.pending
        assert freezer.abandoned(keep) == []
        ended = [record.event for record in keep.events() if isinstance(record.event, ev.RestoreFailed)]
        asked = [record.event for record in keep.events() if isinstance(record.event, ev.RestoreRequested)]
        assert len(asked) == len(done) + len(ended), "a restore has no outcome"
        assert task.checkpoint().digest == _present(task, keep), "a snapshot missed what differs"
        target = chance.choice(list(there.values()))
        assert task.restore_checkpoint(target.id).digest == target.digest
        assert _present(task, keep) == target.digest, "a second restore is not what it says"
        assert not (task.folder / restore.STAGE).exists()


def _present(task: Task, keep: Keep) -> str:
    """The digest of the workspace, with everything read."""
    root = os.open(task.workspace, os.O_RDONLY)
    try:
        return snapshot.take(root, keep.blobs).digest
    finally:
        os.close(root)


def agree(keep: Path) -> None:
    """Let what was seen of the workspace have the inodes and times that things have now: the worst that a power failure
    can leave is content that was lost under a time that was kept."""
    for path in (keep / "run" / "seen").glob("[!.]*"):
        found = seen._load(path)
        if found is None:
            continue
        workspace = keep / "tasks" / path.name / "workspace"
        root = workspace.lstat()
        found.device, found.inode = root.st_dev, root.st_ino
        waiting = [(workspace, found.folder)]
        while waiting:
            place, folder = waiting.pop()
            with contextlib.suppress(OSError):
                folder.changed_ns = place.lstat().st_ctime_ns
            for number, name in enumerate(folder.names):
                with contextlib.suppress(OSError):
                    folder.times[number] = (place / os.fsdecode(name)).lstat().st_ctime_ns
            waiting += [(place / os.fsdecode(name), each) for name, each in folder.folders.items()]
        seen._save(path, found)


def main() -> None:
    folder, (seed, sector, most, shard, shards) = Path(sys.argv[1]), map(int, sys.argv[2:7])
    logging.disable()  # that a line is cut or a segment damaged is told each time
    (folder / "recorded").mkdir()
    calls = record(folder / "recorded")
    disk, promises, states, begun = Disk(sector), Promises(), 0, False
    scratch = folder / "scratch"
    for number, call in enumerate(calls):
        disk.apply(call)
        promises.apply(call)
        begun = begun or isinstance(call, Begun)
        if not begun or number % shards != shard:
            continue
        chance = random.Random(f"{seed} {sector} {number}")
        for each, state in enumerate(disk.states(chance, most)):
            print(f"\rseed {seed}, call {number} of {len(calls)}, state {each}", end="", file=sys.stderr, flush=True)
            make({path: node for path, node in state.items() if "/projections" not in path}, scratch)
            agree(scratch / "keep")
            with pytest.MonkeyPatch.context() as patch:
                for module in _BOOTS:
                    patch.setattr(module, "this_boot", lambda: "the next")
                with Keep.open(scratch / "keep") as keep:
                    promises.judge(keep, chance)
            gc.collect()  # so that no environment is open when its file goes
            shutil.rmtree(scratch)
            states += 1
    print(states)


if __name__ == "__main__":
    main()
