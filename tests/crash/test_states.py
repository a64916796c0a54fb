"""Power failures: whatever the disk lost, kept or tore, what was acknowledged is there, and nothing is there by half.

The workloads are run once and recorded; then the states that the disk can be in after each call are made, opened and
judged, by processes of their own, since LMDB could end them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .support import LONG, finish
from .workloads import WORKLOADS

SECTORS = (512, 4096)
STATES = 24 if LONG else 3
ENOUGH = 20_000 if LONG else 2_000


def test_no_power_failure_loses_what_was_acknowledged(scratch: Path, subtests: pytest.Subtests) -> None:
    # A new seed each time: what fails is printed with it.
    seed = int.from_bytes(os.urandom(4), "big")
    states = 0
    for name in WORKLOADS:
        with subtests.test(name):
            keep, calls = scratch / f"{name}-keep", scratch / f"{name}-calls"
            keep.mkdir()
            finish(scratch, ("workloads", name, keep, calls))
            # A recovery takes a hundred times as long as an opening.
            most, shards = (STATES, 1) if name != "recovered" else (STATES // 6, 1 if LONG else 6)
            counts = finish(
                scratch,
                *(
                    ("states", name, calls, scratch / f"{sector}", seed, sector, most, seed % shards, shards)
                    for sector in SECTORS
                ),
            )
            states += sum(map(int, counts))
    assert states >= ENOUGH


def test_no_power_failure_takes_a_keep_that_was_made(scratch: Path) -> None:
    finish(scratch, ("made", scratch / "made"))
