"""Kill writers of batches at random: `pack_kill FOLDER SEED ROUNDS`.

In each round three processes store batches in one store, as quickly as they can, and sweep it, move what is in it to
the archive and repair it now and then; after a moment all are killed, and another looks at what is there. Before some
rounds the index is lost. They are forked, since starting an interpreter would take longer than what is to be killed;
this process never opens the store itself.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from sandkeep.events import BlobMissing, BlobStore

WRITERS = 3
FILES = 12


def wanted(digest: str) -> bool:
    """Whether a sweep keeps it: three of four."""
    return digest[0] in "0123456789ab"


def write(folder: Path, name: str) -> None:
    """Store batches for ever; a line in `started` before each and in `acknowledged` behind each."""
    chance = random.Random(name)
    store = BlobStore(folder / "blobs")
    started, acknowledged = (
        os.open(folder / each, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for each in ("started", "acknowledged")
    )
    number = 0
    while True:
        contents = [chance.randbytes(chance.choice((10, 3000, 60_000))) for _ in range(FILES)]
        if number % 5 == 4:
            contents.append(chance.randbytes(1_200_000))
        line = " ".join([f"{name}-{number}", *(blake3(content).hexdigest() for content in contents)])
        os.write(started, f"{line}\n".encode())
        while not stored(store, contents):
            pass
        os.write(acknowledged, f"{name}-{number}\n".encode())
        number += 1
        match chance.randrange(8):
            case 0 | 1:
                store.sweep(wanted, 0)
            case 2 | 3:
                store.archive(-1, chance.choice((10_000, 1 << 30)))
            case 4:
                store.discard(store.verify(0.1))
                store.salvage(line.split()[1:4])


def stored(store: BlobStore, contents: list[bytes]) -> bool:
    """Store a batch; whether nothing that it relied on was swept meanwhile, since the sweeps here know no grace."""
    try:
        with store.batch() as batch:
            for content in contents:
                batch.put(content)
            batch.put(b"everybody stores this")
    except BlobMissing:
        return False
    return True


def check(folder: Path) -> None:
    """What was acknowledged is there; a batch is there as a whole or not at all; nothing is damaged."""
    store = BlobStore(folder / "blobs")
    acknowledged = set((folder / "acknowledged").read_text().splitlines())
    for line in (folder / "started").read_text().splitlines():
        name, *digests = line.split()
        there = [digest in store for digest in digests if wanted(digest)]
        assert all(there) or not any(there), f"{name} is there by half"
        assert all(there) or name not in acknowledged, f"{name} is lost"
    damaged = list(store.verify(0.2))
    assert damaged == [], damaged


def forked(work: Callable[[], None]) -> int:
    """Do this in a process of its own."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except Exception:  # noqa: BLE001 - it is told, and the status says so
        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    folder, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    for each in ("started", "acknowledged"):
        (folder / each).touch()
    for number in range(rounds):
        print(f"seed {seed}, round {number}", file=sys.stderr, flush=True)
        if number % 5 == 2:
            shutil.rmtree(folder / "blobs" / "packs" / "index", ignore_errors=True)
        children = [
            forked(lambda name=f"{seed}-{number}-{each}": write(folder, name))  # type: ignore[misc]
            for each in range(WRITERS)
        ]
        time.sleep(chance.uniform(0, 0.15))
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            assert os.waitpid(child, 0)[1] == signal.SIGKILL, "a writer ended by itself"
        assert os.waitpid(forked(lambda: check(folder)), 0)[1] == 0, "what is left is not what it should be"
    print(len((folder / "acknowledged").read_text().splitlines()))


if __name__ == "__main__":
    main()
