"""Batches of blobs when their writers are killed, and when the power fails: a batch is there as a whole, or not at all,
and what was acknowledged is there."""

from __future__ import annotations

import os
from pathlib import Path

from .support import LONG, finish

ROUNDS = 250 if LONG else 30
STATES = 12 if LONG else 3
SHARDS = 1 if LONG else 6
ENOUGH = 5000 if LONG else 150


def test_killed_writers_leave_whole_batches_and_lose_none(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    (acknowledged,) = finish(tmp_path, ("pack_kill", tmp_path, seed, ROUNDS))
    assert int(acknowledged) > ROUNDS


def test_no_power_failure_loses_a_batch_that_was_committed(scratch: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    commands: list[tuple[object, ...]] = []
    for sector in (512, 4096):
        (scratch / f"{sector}").mkdir()
        commands.append(("pack_states", scratch / f"{sector}", seed, sector, STATES, seed % SHARDS, SHARDS))
    assert sum(map(int, finish(scratch, *commands))) >= ENOUGH
