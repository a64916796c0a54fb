"""Disks that refuse: what was acknowledged is there, and the keep can be used again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sandkeep.events import catalogue as ev

from .support import LONG, WORKER, check, finish, opened
from .workloads import WORKLOADS

ROUNDS = 60 if LONG else 6
WAYS = ["before ENOSPC", "before EIO", "after EIO", "short ENOSPC", "lasting EROFS"]
# Of every so many calls one fails, and another one each time. A recovery takes a hundred times as long as an opening.
SHARDS = {name: (6 if name == "recovered" else 1) if LONG else (40 if name == "recovered" else 3) for name in WORKLOADS}


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_fails_refuses_the_append_and_loses_nothing(
    scratch: Path, subtests: pytest.Subtests, way: str
) -> None:
    kind, error = way.split()
    names = [name for name in WORKLOADS if not name.startswith("failed")]
    for pair in (names[at : at + 2] for at in range(0, len(names), 2)):
        with subtests.test(" and ".join(pair)):
            counts = finish(
                scratch,
                *(
                    ("faults", name, scratch / name, kind, error, random.randrange(SHARDS[name]), SHARDS[name])
                    for name in pair
                ),
            )
            for count in counts:
                failed, refused = map(int, count.split())
                assert 0 < refused <= failed


def test_a_folder_that_cannot_be_written_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    finish(tmp_path, ("readonly", tmp_path / "keep"))


@pytest.mark.parametrize("small", ["log", "journal"])
def test_a_file_that_cannot_grow_refuses_the_append_and_loses_nothing(tmp_path: Path, small: str) -> None:
    """As the kernel does it: EFBIG comes from the same calls as a full disk's error, and in the middle of a write."""
    chance = random.Random(os.urandom(4))
    for number in range(ROUNDS):
        size = max([path.stat().st_size for path in tmp_path.glob("*/*") if path.is_file()], default=100_000)
        limit = size + chance.randrange(40_000)
        segment_bytes = 10_000 if small == "log" else 1 << 30
        command = [sys.executable, "-P", str(WORKER), str(tmp_path), f"w{number}", str(segment_bytes), str(limit)]
        assert subprocess.run(command, check=False, timeout=60).returncode == 3
        if small == "journal":
            check(tmp_path)
    assert check(tmp_path) > ROUNDS
    with opened(tmp_path) as log:
        log.append("task/after", [ev.TaskCompleted(summary="after")], actor="me")
