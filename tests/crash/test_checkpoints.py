"""Checkpoints when whoever takes them, sets them back or collects garbage is killed, and when the power fails: those
that were taken are there and whole, and can be set back; what was said to be set back is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .support import LONG, finish

ROUNDS = 500 if LONG else 12
STATES = 4 if LONG else 3
SHARDS = 1 if LONG else 150
ENOUGH = 10_000 if LONG else 20


def test_killed_processes_leave_every_checkpoint_whole(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    (acknowledged,) = finish(tmp_path, ("checkpoint_kill", tmp_path, seed, ROUNDS))
    assert int(acknowledged) > ROUNDS / 4


def test_no_power_failure_takes_a_checkpoint_or_what_was_set_back(scratch: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    commands: list[tuple[object, ...]] = []
    for sector in (512, 4096) if LONG else (4096,):
        (scratch / f"{sector}").mkdir()
        commands.append(("checkpoint_states", scratch / f"{sector}", seed, sector, STATES, seed % SHARDS, SHARDS))
    states = sum(map(int, finish(scratch, *commands)))
    print(f"{states:,} states", file=sys.stderr)
    assert states >= ENOUGH
