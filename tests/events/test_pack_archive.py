"""The archive: what has lain for a while is compressed harder, a part at a time, and nothing is lost on the way."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from sandkeep.events import BlobStore, pack_archive, pack_frame, pack_sweep
from sandkeep.events.packs import Packs, locked, opened

from ..packed import damage, stored

DAY = 86400.0


def text(seed: int) -> bytes:
    chance = random.Random(seed)
    return b"".join(b"def %s(%d): pass\n" % (chance.randbytes(2).hex().encode(), seed) for _ in range(2000))


def filled(store: BlobStore, count: int = 40) -> dict[str, bytes]:
    """Store some text and some large noise, a while ago."""
    contents = [*(text(seed) for seed in range(count)), random.Random(1).randbytes(2 << 20)]
    with store.batch() as batch:
        found = {batch.put(content, tree=number % 7 == 6): content for number, content in enumerate(contents)}
    age(store)
    return found


def age(store: BlobStore) -> None:
    for path in files(store):
        os.utime(path, (time.time() - DAY,) * 2)


def files(store: BlobStore) -> list[Path]:
    return sorted(Path(store._packs.root).glob("*.pack"))


def size(store: BlobStore) -> int:
    return sum(path.stat().st_size for path in files(store))


def archived(store: BlobStore) -> Iterator[bool]:
    for path in files(store):
        with opened(path) as file:
            yield pack_frame.is_archive(file, bytes.fromhex(path.stem))


def is_whole(store: BlobStore, contents: dict[str, bytes]) -> bool:
    fresh = BlobStore(store._packs.root.parent)
    return all(fresh.get(digest) == content for digest, content in contents.items()) and list(fresh.verify()) == []


def test_what_is_archived_is_smaller_and_the_same(store: BlobStore, root: Path) -> None:
    contents = filled(store)
    before, there = size(store), stored(root)
    written, removed = store.archive(DAY / 2, 1 << 40)
    assert (removed, written) == (1, size(store))
    assert size(store) < before
    assert (stored(root), list(archived(store))) == (there, [True])
    assert is_whole(store, contents)
    assert store.archive(-1, 1 << 40) == (0, 0)
    shutil.rmtree(root / "packs" / "index")
    assert is_whole(store, contents)


def test_a_part_is_moved_at_a_time(store: BlobStore, root: Path) -> None:
    contents = filled(store)
    parts = 0
    while store.archive(-1, 500_000) != (0, 0):
        parts += 1
        assert is_whole(store, contents)
    assert parts > 3
    assert list(archived(store)) == [True]


def test_noise_grows_by_nothing(store: BlobStore) -> None:
    with store.batch() as batch:
        for seed in range(30):
            batch.put(random.Random(seed).randbytes(100_000))
    before = size(store)
    store.archive(-1, 1 << 40)
    assert size(store) <= before


def test_what_is_new_and_what_is_old_lie_apart(store: BlobStore, root: Path) -> None:
    filled(store)
    store.archive(-1, 1 << 40)
    with store.batch() as batch:
        new = batch.put(b"new")
    assert sorted(archived(store)) == [False, True]
    with store.batch() as batch:
        batch.put(b"newer")
    assert len(files(store)) == 2
    age(store)
    assert store.archive(DAY / 2, 1 << 40)[1] == 1
    assert list(archived(store)) == [True]
    assert store.get(new) == b"new"


@pytest.mark.parametrize("why", ["young", "appended to", "no room", "damaged", "none"])
def test_what_is_left_alone(store: BlobStore, root: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "none":
        assert store.archive(0, 1) == (0, 0)
        return
    contents = filled(store)
    (path,) = files(store)
    if why == "no room":
        monkeypatch.setattr(pack_archive, "ROOM", 1 << 40)
    if why == "damaged":
        damage(root, next(iter(contents)))
        store.forget()
    with opened(path) as file:
        if why == "appended to":
            assert locked(file, path)
        assert store.archive(2 * DAY if why == "young" else 0, 1 << 40) == (0, 0)
    assert (files(store), list(archived(store))) == ([path], [False])


def test_compaction_keeps_the_archive_as_small(store: BlobStore, root: Path) -> None:
    contents = filled(store)
    store.archive(-1, 1 << 40)
    kept = sorted(contents)[:8]
    store.sweep(set(kept).__contains__, -1)
    assert list(archived(store)) == [True]
    assert is_whole(store, {digest: contents[digest] for digest in kept})


def test_a_pack_that_has_more_in_it_than_was_moved_stays(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the index is made anew while it is emptied: what a sweep had removed is back, and may be relied on."""
    with store.batch() as batch:
        kept, back = batch.put(b"kept"), batch.put(b"back again")
    with store.batch() as batch:
        batch.put(text(1))
    monkeypatch.setattr(pack_sweep, "_compact", lambda *_: 0)
    store.sweep({kept}.__contains__, -1)
    assert stored(root) == [kept]
    monkeypatch.undo()
    read = Packs.read

    def made_anew(self: Packs, digest: bytes, entry: Any) -> bytes:
        found = read(self, digest, entry)
        monkeypatch.undo()
        shutil.rmtree(root / "packs" / "index")
        with BlobStore(root).batch() as other:
            assert other.put(b"back again") == back
        return found

    monkeypatch.setattr(Packs, "read", made_anew)
    (old,) = files(store)
    assert store.archive(-1, 1 << 40)[1] == 0
    assert old.exists()
    assert store.get(back) == b"back again"
    assert blake3(store.get(kept)).hexdigest() == kept
    assert store.archive(-1, 1 << 40)[1] == 1
    assert (store.get(kept), store.get(back)) == (b"kept", b"back again")
