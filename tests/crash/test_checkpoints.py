"""Checkpoints when whoever takes them, sets them back or collects garbage is killed: those that were taken are there
and whole, and can be set back."""

from __future__ import annotations

import os
from pathlib import Path

from .support import LONG, finish

ROUNDS = 500 if LONG else 12


def test_killed_processes_leave_every_checkpoint_whole(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    (acknowledged,) = finish(tmp_path, ("checkpoint_kill", tmp_path, seed, ROUNDS))
    assert int(acknowledged) > ROUNDS / 4
