"""Checkpoints on a disk that is full: completed with what was set aside, or refused, and never half there."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import BlobsUnavailable, SandkeepError, reserve
from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task, care

from ..conftest import close

MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keep]:
    """A keep on a disk of its own."""
    monkeypatch.setattr(reserve, "RESERVE_BYTES", 6 * MIB)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
    try:
        with Keep.init(disk / "keep", actor="tester") as made:
            yield made
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(keep: Keep, leaving: int) -> Path:
    path = keep.path.parent / "filling"
    path.unlink(missing_ok=True)
    found = os.statvfs(keep.path)
    with open(path, "xb") as file:
        file.write(bytes(max(0, found.f_bavail * found.f_frsize - leaving)))
    return path


def write(task: Task, seed: int, count: int = 60) -> None:
    chance = random.Random(seed)
    for number in range(count):
        (task.workspace / f"{number}").write_bytes(chance.randbytes(50_000))


def test_a_checkpoint_on_a_full_disk_is_completed_with_the_reserve(small: Keep) -> None:
    task = small.create_task("a test")
    write(task, 1)
    first = task.checkpoint("first")
    assert care.set_aside(small) == ["set 6MiB aside for a full disk"]
    write(task, 2)
    filling = fill(small, 0)
    second = task.checkpoint("second")
    assert not (small.path / "blobs" / "reserve").exists()
    filling.unlink()
    assert [each.id for each in task.checkpoints()] == [first.id, second.id]
    assert small.verify().ok
    assert care.set_aside(small)


def test_a_checkpoint_that_a_full_disk_refuses_leaves_nothing_half_made(small: Keep) -> None:
    task = small.create_task("a test")
    write(task, 1)
    first = task.checkpoint("first")
    write(task, 2)
    refused = 0
    for tries, leaving in enumerate(range(0, 3_300_000, 450_000), 1):
        filling = fill(small, leaving)
        try:
            task.checkpoint(f"{leaving}")
        except SandkeepError:
            refused += 1
        filling.unlink()
        assert len(task.checkpoints()) == 1 + tries - refused
        assert list(small.blobs.verify()) == []
    assert refused >= 5
    assert small.verify().ok
    task.checkpoint("last")
    task.restore_checkpoint(first.id)
    assert (task.workspace / "3").stat().st_size == 50_000


@pytest.mark.engine
def test_a_full_disk_under_a_paused_sandbox_leaves_it_paused_and_its_checkpoints_whole(small: Keep) -> None:
    task = small.create_task("a test")
    try:
        write(task, 1)
        task.start_sandbox()
        first = task.checkpoint("first")
        assert care.set_aside(small)
        task.pause()
        container = str(task.state.container)
        write(task, 2)
        filling = fill(small, 0)
        second = task.checkpoint("with the reserve")
        assert not (small.path / "blobs" / "reserve").exists()
        filling = fill(small, 0)
        write_over(task, 3)
        with pytest.raises(BlobsUnavailable, match=r"the disk is full.*remove something.*then try again"):
            task.checkpoint("without")
        assert small.engine.status(container) == "paused"
        assert task.state.state is TaskState.PAUSED
        assert [each.id for each in task.checkpoints()] == [first.id, second.id]
        assert list(small.blobs.verify()) == []
        filling.unlink()
        third = task.checkpoint("with room")
        assert small.engine.status(container) == "paused"
        task.resume()
        task.restore_checkpoint(first.id)
        assert task.execute(["sh", "-c", "cat * | wc -c"]).stdout.data == b"3000000\n"
        assert [each.id for each in task.checkpoints()][:3] == [first.id, second.id, third.id]
        assert small.verify().ok
    finally:
        close(small)


def write_over(task: Task, seed: int) -> None:
    """Other content in the files there are, for which no room is needed."""
    chance = random.Random(seed)
    for path in task.workspace.iterdir():
        with open(path, "r+b") as file:
            file.write(chance.randbytes(50_000))
