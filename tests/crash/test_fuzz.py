"""Damage at random, in any file of a log or its journal: detected or harmless, and recovered without loss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sandkeep.events import catalogue as ev

from .support import LONG, opened

JUDGE = Path(__file__).with_name("judge.py")
ROUNDS = 400 if LONG else 12
PROCESSES = 2


def test_any_damage_to_one_copy_is_found_and_mended(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    with opened(keep, 20_000) as log:
        for number in range(60):
            events = [ev.TaskCompleted(summary=f"{number}" + "." * (number * 911 % 6000))]
            log.append(f"task/{number % 4}", events, actor="me", key=f"{number}")
    # A new seed each time: what fails is printed with it.
    seed = int.from_bytes(os.urandom(4), "big")
    judges = [
        subprocess.Popen(
            [sys.executable, "-P", JUDGE, keep, tmp_path / f"{number}", str(seed + number * ROUNDS), str(ROUNDS)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(PROCESSES)
    ]  # fmt: skip
    for process in judges:
        output, errors = process.communicate()
        assert (process.returncode, output.splitlines()[-1:]) == (0, ["done"]), output + errors
        assert output.count("recovered") > 0
