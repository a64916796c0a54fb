"""Batches, and what a power failure leaves of them: `pack_states FOLDER SEED SECTOR MOST SHARD SHARDS`.

A store in FOLDER is written to, swept, archived, salvaged and made anew in part while its calls are recorded. Then the
states that the disk can be in after each call that this SHARD looks at are made, MOST of them at the most, and each is
opened and judged.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from sandkeep.events import BlobStore, batch

from .disk import Acknowledged, Call, Disk, Started
from .recorder import Recorder
from .states import make

Batches = dict[str, list[bytes]]
"""What each batch consists of, by its name."""


def wanted(digest: str) -> bool:
    """Whether a sweep keeps it: half of all."""
    return digest[0] in "01234567"


def record(folder: Path) -> tuple[list[Call], Batches]:
    """Store some batches, the names of which are acknowledged, sweep, and lose the index."""
    chance = random.Random(7)
    batches: Batches = {}
    recorder = Recorder(folder)
    with recorder.running():
        for number in range(12):
            name = f"batch {number}"
            contents = [chance.randbytes(size) for size in (10, 700, 1500, 9000 if number % 3 == 0 else 20)]
            batches[name] = contents
            recorder.calls.append(Started(name, len(contents)))
            store = BlobStore(folder / "blobs")
            if number == 8:
                _killed(store, contents)
                del store
                shutil.rmtree(folder / "blobs" / "packs" / "index")
                store = BlobStore(folder / "blobs")
            with store.batch() as made:
                for content in contents:
                    made.put(content)
            recorder.calls.append(Acknowledged(name, number))
            if number in (4, 9):
                store.sweep(wanted, -1)
            if number in (5, 10):
                store.archive(-1, 5000)
                store.archive(-1, 1 << 30)
            if number == 7:
                store.salvage([blake3(content).hexdigest() for content in contents])
            if number == 6:
                del store
                shutil.rmtree(folder / "blobs" / "packs" / "index")
    return recorder.calls, batches


def _killed(store: BlobStore, contents: list[bytes]) -> None:
    """Store a batch up to where it is to be synced, as a writer does that is killed then."""

    def kill(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "fdatasync", kill)
        patch.setattr(os, "ftruncate", lambda *_: None)
        with store.batch() as made:
            for content in contents:
                made.put(content)


def judge(folder: Path, batches: Batches, acknowledged: set[str]) -> None:
    """Open what a power failure left. Raises `AssertionError` for what must not be."""
    store = BlobStore(folder / "blobs")
    for name, contents in batches.items():
        kept = [content for content in contents if wanted(blake3(content).hexdigest())]
        there = [blake3(content).hexdigest() in store for content in kept]
        assert all(there) or name not in acknowledged, f"{name} is lost"
        assert [store.get(blake3(content).hexdigest()) for content, has in zip(kept, there, strict=True) if has] == [
            content for content, has in zip(kept, there, strict=True) if has
        ]
    assert list(store.verify()) == []
    with store.batch() as made:
        for contents in batches.values():
            for content in contents:
                made.put(content)
    assert all(blake3(each).hexdigest() in store for contents in batches.values() for each in contents)
    assert list(BlobStore(folder / "blobs").verify()) == []


def main() -> None:
    folder, (seed, sector, most, shard, shards) = Path(sys.argv[1]), map(int, sys.argv[2:7])
    batch.LARGE_BYTES, batch.CHUNK_BYTES, batch.FRAME_BYTES = 4000, (64, 256, 1024), 1000
    (folder / "recorded").mkdir()
    calls, batches = record(folder / "recorded")
    disk, acknowledged, states = Disk(sector), set[str](), 0
    scratch = folder / "scratch"
    for number, call in enumerate(calls):
        disk.apply(call)
        if isinstance(call, Acknowledged):
            acknowledged.add(call.word)
        if number % shards != shard:
            continue
        for each, state in enumerate(disk.states(random.Random(f"{seed} {sector} {number}"), most)):
            print(f"\rseed {seed}, call {number} of {len(calls)}, state {each}", end="", file=sys.stderr, flush=True)
            make(state, scratch)
            judge(scratch, batches, acknowledged)
            gc.collect()  # so that no environment is open when its file goes
            shutil.rmtree(scratch)
            states += 1
    print(states)


if __name__ == "__main__":
    main()
