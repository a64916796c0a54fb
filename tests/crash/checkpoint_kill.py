"""Kill what takes checkpoints, sets them back and collects garbage, at random: `checkpoint_kill FOLDER SEED ROUNDS`.

In each round a process does all of that in one keep, as quickly as it can; after a moment it is killed, and another
looks at what is there. They are forked, since starting an interpreter would take longer than what is to be killed; this
process never opens the keep itself.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from sandkeep.sandboxes import Keep, Task, restore

from ..packed import files_of
from .pack_kill import forked

FILES = 60
SECONDS = 0.1


def prepare(folder: Path) -> None:
    """Make the keep, its task and a workspace."""
    with Keep.init(folder / "keep") as keep:
        task = keep.create_task("t")
        chance = random.Random(1)
        for _ in range(4):
            change(task.workspace, chance)
        (folder / "acknowledged").write_text(f"{task.checkpoint().id}\n")


def change(workspace: Path, chance: random.Random) -> None:
    """Write, remove and lock some of the files, and one that is large."""
    for _ in range(FILES // 4):
        number = chance.randrange(FILES)
        file = workspace / f"{number % 5}" / f"{number % 3}" / f"{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        if chance.random() < 0.7:
            file.write_bytes(chance.randbytes(chance.choice((0, 10, 3000, 60_000))))
            file.chmod(chance.choice((0o600, 0o644, 0o755)))
    with open(workspace / "large", "wb") as large:
        large.write(random.Random(1).randbytes(1_200_000))
        large.seek(chance.randrange(1_000_000))
        large.write(b"edited")


def only_task(keep: Keep) -> Task:
    """The task of the keep."""
    (found,) = keep.tasks()
    return keep.task(found.id)


def work(folder: Path, seed: str, told: int) -> None:
    """Take checkpoints, set them back and collect garbage, for ever; before each of it a byte is written to `told`."""
    chance = random.Random(seed)
    acknowledged = os.open(folder / "acknowledged", os.O_WRONLY | os.O_APPEND)
    with Keep.open(folder / "keep") as keep:
        task = only_task(keep)
        while True:
            change(task.workspace, chance)
            os.write(told, b".")
            os.write(acknowledged, f"{task.checkpoint().id}\n".encode())
            target = chance.choice(task.checkpoints()[-5:]).id
            os.write(told, b".")
            task.restore_checkpoint(target)
            os.write(told, b".")
            keep.collect_garbage(0)


def check(folder: Path, seed: str, every: bool) -> None:
    """What was acknowledged is there, what is there is whole, and any of it can be set back; of old ones some only,
    unless `every`."""
    chance = random.Random(seed)
    with Keep.open(folder / "keep") as keep:
        task = only_task(keep)
        there = task.checkpoints()
        lost = set((folder / "acknowledged").read_text().split()) - {each.id for each in there}
        assert not lost, f"lost: {lost}"
        for each in there if every else chance.sample(there, min(4, len(there))) + there[-2:]:
            found = [content for _, content in files_of(each.digest, keep.blobs)]
            assert (len(found), sum(map(len, found))) == (each.files, each.bytes), each
        target = chance.choice(there)
        restored = task.restore_checkpoint(target.id)
        assert restored.digest == target.digest
        assert not (task.folder / restore.STAGE).exists()
        if every:
            report = keep.verify()
            assert report.ok, report


def main() -> None:
    folder, seed, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    chance = random.Random(seed)
    assert os.waitpid(forked(partial(prepare, folder)), 0)[1] == 0
    for number in range(rounds):
        print(f"seed {seed}, round {number}", file=sys.stderr, flush=True)
        reader, writer = os.pipe()
        child = forked(partial(work, folder, f"{seed}-{number}", writer))
        os.close(writer)
        for _ in range(chance.randint(1, 4)):
            os.read(reader, 1)
        time.sleep(chance.uniform(0, SECONDS))
        os.kill(child, signal.SIGKILL)
        os.close(reader)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "who worked ended by itself"
        looking = forked(partial(check, folder, f"{seed}-{number}", number == rounds - 1))
        assert os.waitpid(looking, 0)[1] == 0, "what is left is not what it should be"
    print(len((folder / "acknowledged").read_text().split()))


if __name__ == "__main__":
    main()
