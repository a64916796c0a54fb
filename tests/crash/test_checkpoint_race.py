"""Checkpoints while others swap what is in the workspace, as quickly as they can: nothing outside comes into one, and
nothing outside is changed when one is set back."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from sandkeep.events import BlobStore
from sandkeep.sandboxes import restore, snapshot
from sandkeep.sandboxes.errors import CheckpointRefused, RestoreIncomplete, RestoreRefused

from ..packed import files_of
from . import checkpoint_race
from .support import LONG, command

SECONDS = 60.0 if LONG else 1.0
ENOUGH = int(10_000 * SECONDS)
ATTACKERS = 2
EXPECTED = (OSError, RestoreIncomplete, RestoreRefused, CheckpointRefused)


class Scene:
    """A workspace, what is outside, and a store."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.outside = folder / "tasks" / "workspace", folder / "outside"
        checkpoint_race.lay_out(self.workspace)
        checkpoint_race.lay_out_outside(self.outside)
        self.blobs = BlobStore(folder / "blobs")
        self.root = os.open(self.workspace, os.O_RDONLY)
        self.target = snapshot.take(self.root, self.blobs).digest
        self.rounds = 0
        self.before = self.state()

    def state(self) -> dict[str, tuple[object, ...]]:
        """All of what is outside, but for its names elsewhere."""
        found: dict[str, tuple[object, ...]] = {}
        for path in (self.outside, *sorted(self.outside.rglob("*"))):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (
                status.st_ino,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                content,
            )
        return found

    @contextlib.contextmanager
    def attacked(self, attack: str) -> Iterator[None]:
        """Others do this meanwhile."""
        arguments = [attack, self.workspace, self.outside]
        with contextlib.ExitStack() as stack:
            processes = []
            for number in range(ATTACKERS):
                line = command("checkpoint_race", *arguments, number)
                process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                stack.callback(process.wait)
                stack.callback(process.kill)
                processes.append(process)
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            yield
            for process in processes:
                process.communicate()
                assert process.returncode == 0

    @property
    def swaps(self) -> int:
        """How often the attackers have attacked."""
        counters = self.outside.parent.glob("swaps-*")
        return sum(int(path.read_bytes() or b"0") for path in counters)

    def going_on(self) -> Iterator[None]:
        """For a while, again and again; on a machine that is busy for longer, until there were enough attacks."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or not self.rounds or self.swaps <= ENOUGH:
            assert time.monotonic() < end + 100, f"only {self.swaps:,} swaps"
            yield


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    os.close(scene.root)


@pytest.mark.parametrize("attack", ["links", "storm", "folders"])
def test_nothing_outside_comes_into_a_checkpoint(scene: Scene, attack: str) -> None:
    seen = None
    with scene.attacked(attack):
        for _ in scene.going_on():
            with contextlib.suppress(CheckpointRefused):
                taken = snapshot.take_since(scene.root, scene.blobs, seen if scene.rounds % 2 else None)
                seen = taken.seen
                scene.rounds += 1
    secrets = [path.read_bytes() for path in scene.outside.rglob("*") if path.is_file()]
    assert len(secrets) == 2
    assert not [content for content in secrets if blake3(content).hexdigest() in scene.blobs]
    assert scene.state() == scene.before
    print(f"{scene.swaps:,} swaps, {scene.rounds:,} snapshots", file=sys.stderr)
    assert scene.swaps > ENOUGH
    scene.blobs.forget()
    settled = snapshot.take_since(scene.root, scene.blobs, seen).snapshot
    assert settled.digest == snapshot.take(scene.root, scene.blobs).digest


@pytest.mark.parametrize("attack", ["links", "hard_links", "storm", "folders", "permissions"])
def test_nothing_outside_is_changed_when_a_checkpoint_is_set_back(scene: Scene, attack: str) -> None:
    completed = 0
    if attack == "hard_links":
        # What is planted then has the right content, and only owner, mode and time are still to be set.
        for place in range(checkpoint_race.PLACES):
            (scene.workspace / f"{place}" / "file").write_bytes((scene.outside / "file").read_bytes())
        scene.target = snapshot.take(scene.root, scene.blobs).digest
    with scene.attacked(attack):
        for _ in scene.going_on():
            scene.rounds += 1
            with contextlib.suppress(*EXPECTED):
                present = snapshot.take(scene.root, scene.blobs).digest
                restore.apply(scene.root, present, scene.target, scene.blobs)
                completed += 1
            assert scene.state() == scene.before
    print(f"{scene.swaps:,} swaps, {scene.rounds:,} restores, {completed:,} completed", file=sys.stderr)
    assert scene.swaps > ENOUGH
    present = snapshot.take(scene.root, scene.blobs).digest
    restore.apply(scene.root, present, scene.target, scene.blobs)
    assert snapshot.take(scene.root, scene.blobs).digest == scene.target
    assert scene.state() == scene.before


@pytest.mark.parametrize(
    ("attack", "whole"),
    [("replacing", checkpoint_race.is_sealed), ("in_place", checkpoint_race.is_written)],
    ids=["by rename", "in place"],
)
def test_what_is_written_meanwhile_is_recorded_as_it_was_once_or_is_torn(
    scene: Scene, attack: str, whole: Callable[[bytes], bool]
) -> None:
    looked = torn = 0
    with scene.attacked(attack):
        for _ in scene.going_on():
            taken = snapshot.take(scene.root, scene.blobs)
            scene.rounds += 1
            for name, content in files_of(taken.digest, scene.blobs):
                if name.startswith((b"written-", b"over-")):
                    looked += 1
                    torn += name.decode() in taken.torn
                    assert whole(content) or name.decode() in taken.torn
    print(f"{scene.swaps:,} writes, {looked:,} files, {torn:,} of them torn", file=sys.stderr)
    assert looked


def test_permissions_that_change_meanwhile_change_no_content(scene: Scene) -> None:
    with scene.attacked("permissions"):
        for _ in scene.going_on():
            taken = snapshot.take(scene.root, scene.blobs)
            scene.rounds += 1
            assert sorted(files_of(taken.digest, scene.blobs)) == sorted(files_of(scene.target, scene.blobs))
    print(f"{scene.swaps:,} changes of modes, {scene.rounds:,} snapshots", file=sys.stderr)
    assert scene.swaps > ENOUGH
