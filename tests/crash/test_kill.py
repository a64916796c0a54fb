"""Eight processes append to one keep, and are killed at random; those that are left go on."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sandkeep.events.recovery import Mode, recover

from .support import LONG, WORKER, check, opened

SECONDS = 60.0 if LONG else 10.0
PROCESSES = 8
SEGMENT_BYTES = 50_000


def test_processes_that_are_killed_lose_nothing_they_acknowledged(tmp_path: Path) -> None:
    started = killed = 0

    def start() -> subprocess.Popen[bytes]:
        nonlocal started
        started += 1
        return subprocess.Popen([sys.executable, "-P", WORKER, tmp_path, f"w{started}", str(SEGMENT_BYTES)])

    end = time.monotonic() + SECONDS
    workers = [start() for _ in range(PROCESSES)]
    try:
        while time.monotonic() < end:
            time.sleep(random.uniform(0.0, 0.4))
            victim = random.randrange(PROCESSES)
            assert workers[victim].poll() is None, "a worker ended by itself"
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = start()
            killed += 1
        assert all(each.poll() is None for each in workers)
    finally:
        for each in workers:
            each.kill()
            each.wait()
    assert killed > SECONDS
    assert check(tmp_path) > 100
    with opened(tmp_path) as log:
        before = list(log.read())
    shutil.rmtree(tmp_path / "log")
    assert recover(tmp_path, Mode.STRICT, actor="doctor").ok
    with opened(tmp_path) as log:
        assert list(log.read(until=len(before))) == before
