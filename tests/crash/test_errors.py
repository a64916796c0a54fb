"""Disks that refuse: what was acknowledged is there, and the keep can be used again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sandkeep.events import catalogue as ev

from .support import LONG, WORKER, check, opened

ROUNDS = 60 if LONG else 6


@pytest.mark.parametrize("small", ["log", "journal"])
def test_a_file_that_cannot_grow_refuses_the_append_and_loses_nothing(tmp_path: Path, small: str) -> None:
    """EFBIG stands for a full disk: it comes from the same calls, and in the middle of a write."""
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
