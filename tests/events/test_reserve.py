"""Full disks, which are real ones of a few MiB: a batch is stored whole or not at all, and the reserve completes it."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from sandkeep.events import BlobStore, BlobsUnavailable, SandkeepError, reserve
from sandkeep.events.reserve import Reserve

from ..packed import stored

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "RESERVE_BYTES", 3 * MIB)
    monkeypatch.setattr(reserve, "LAST_BYTES", 100_000)


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, leaving: int) -> None:
    """Leave so much free; an earlier filling is undone."""
    path = disk / "filling"
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:
        file.write(bytes(max(0, free(disk) - leaving)))


def batch(size: int, seed: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(20_000) for _ in range(size // 20_000)]


def put(blobs: BlobStore, contents: list[bytes]) -> list[str]:
    with blobs.batch() as made:
        return [made.put(content) for content in contents]


def hexes(contents: list[bytes]) -> set[str]:
    return {blake3(content).hexdigest() for content in contents}


def test_a_full_disk_at_any_step_leaves_batches_whole_or_absent(disk: Path) -> None:
    blobs = BlobStore(disk / "blobs")
    whole = batch(200_000, 1)
    put(blobs, whole)
    there, refused, stored_again = hexes(whole), 0, 0
    for number, leaving in enumerate(range(0, 700_000, 20_480)):
        contents = batch(500_000, 100 + number)
        fill(disk, leaving)
        try:
            put(blobs, contents)
            there |= hexes(contents)
            stored_again += 1
        except BlobsUnavailable:
            refused += 1
        fill(disk, 2 * MIB)
        found = set(stored(disk / "blobs"))
        assert there <= found
        assert found - there in (set(), hexes(contents))
        there = found
        assert list(BlobStore(disk / "blobs").verify()) == []
        if number % 6 == 5:  # else the disk were full of what was stored
            blobs.sweep(lambda digest: digest in hexes(whole), -1)
            there = hexes(whole)
    assert min(refused, stored_again) >= 3
    assert hexes(put_contents(blobs, disk)) <= set(stored(disk / "blobs"))


def put_contents(blobs: BlobStore, disk: Path) -> list[bytes]:
    """Store a batch while there is room again."""
    fill(disk, 3 * MIB)
    contents = batch(500_000, 7)
    put(blobs, contents)
    return contents


@pytest.mark.parametrize("leaving", [0, 4096, 100_000, 480_000])
def test_a_batch_that_meets_a_full_disk_is_completed_with_the_reserve(disk: Path, leaving: int) -> None:
    blobs = BlobStore(disk / "blobs")
    assert not blobs.make_reserve()  # there is nothing yet that it could be for
    put(blobs, batch(100_000, 1))
    assert blobs.make_reserve()
    assert not blobs.make_reserve()
    assert (disk / "blobs" / "reserve").stat().st_blocks * 512 == 3 * MIB
    fill(disk, leaving)
    contents = batch(500_000, 2)
    assert set(put(blobs, contents)) <= set(stored(disk / "blobs"))
    assert not (disk / "blobs" / "reserve").exists()
    assert free(disk) > MIB
    assert not blobs.make_reserve()
    (disk / "filling").unlink()
    assert blobs.make_reserve()


def test_the_reserve_is_given_up_for_the_event_that_follows(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobStore(disk / "blobs")
    put(blobs, batch(100_000, 1))
    assert blobs.make_reserve()
    fill(disk, 600_000)
    put(blobs, batch(100_000, 2))
    assert (disk / "blobs" / "reserve").exists()
    monkeypatch.setattr(reserve, "LAST_BYTES", MIB)
    put(blobs, batch(100_000, 3))
    assert not (disk / "blobs" / "reserve").exists()


def test_a_batch_that_is_too_large_for_the_reserve_too_leaves_nothing(disk: Path) -> None:
    blobs = BlobStore(disk / "blobs")
    kept = put(blobs, batch(100_000, 1))
    blobs.make_reserve()
    fill(disk, 100_000)
    with pytest.raises(BlobsUnavailable, match="the disk is full, so nothing of this was stored"):
        put(blobs, batch(5 * MIB, 2))
    assert stored(disk / "blobs") == sorted(kept)
    assert free(disk) > 3 * MIB


def test_no_reserve_is_made_by_halves(disk: Path) -> None:
    path = disk / "reserve"
    fill(disk, 11 * MIB)
    assert not Reserve(path).make()
    assert list(disk.iterdir()) == [disk / "filling"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BlobsUnavailable("cannot be made")], ids=repr)
def test_for_another_failure_nothing_is_given_up(disk: Path, error: Exception) -> None:
    put(BlobStore(disk / "blobs"), batch(100_000, 1))
    kept = Reserve(disk / "blobs" / "reserve")
    assert kept.make()

    def fail() -> None:
        raise error

    with pytest.raises((OSError, SandkeepError)):
        kept.through(fail)
    assert kept.give_up()
    assert not kept.give_up()
