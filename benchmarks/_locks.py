"""What locks cost: alone, and with fifty processes contending for ten tasks.

Alone. One caller acquires an exclusive lock and releases it: two durable commits, each with its decision, beside a loop
of 256-byte appends that are each followed by an `fdatasync`.

Contended. Each process asks for the lock of one task, releases it once it has it, and goes on to the next task. Every
wait is timed by the process that waits. The look that a waiter takes once a second without being woken is turned off,
so a wake-up that is lost shows as a wait until the waiter's own heartbeat, after twenty seconds. The bars are absolute.

Run with arguments, `_locks.py KEEP NAME SECONDS`, this is one of the processes.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandkeep.events import catalogue as ev
from sandkeep.projections import registry
from sandkeep.sandboxes import Keep, locks
from sandkeep.sandboxes.errors import Deadlock

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Claim, absolute, alternate, claim, console, sync_floor

PROCESSES = 50
TASKS = [f"{number:012x}" for number in range(1, 11)]
SECONDS = 60.0
PAIRS = 400
HEARTBEAT_SECONDS = 20.0


def make(path: Path) -> None:
    """A keep with tasks that only the log knows."""
    with Keep.init(path) as keep:
        for task in TASKS:
            created = [ev.TaskCreated("i", "contended", None, "image"), ev.WorkspacePrepared("i", None)]
            keep.log.append(registry.STREAM + task, created, actor="bench")


def pairs(keep: Keep, count: int) -> float:
    """Pairs of an acquire and a release a second."""
    task = keep.task(TASKS[0])
    started = time.perf_counter()
    for _ in range(count):
        task.lock().release()
    return count / (time.perf_counter() - started)


def contend(path: Path, seconds: float) -> list[dict[str, Any]]:
    """What each of the contending processes tells: its `waits` in seconds."""
    command = [sys.executable, "-P", __file__, str(path)]
    running = [
        subprocess.Popen(
            [*command, f"agent-{number}", str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(PROCESSES)
    ]
    for process in running:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            sys.exit("benchmark: a contending process did not begin; its message stands above")
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [json.loads(process.communicate(timeout=seconds + 300)[0]) for process in running]
    if any(process.returncode for process in running):
        sys.exit("benchmark: a contending process failed; its message stands above")
    return told


def claims(folder: Path, runs: int, scale: float) -> tuple[list[Claim], list[float]]:
    """All claims on locks, with data in the new folder `folder`, and the disk's pace in fdatasyncs a second."""
    folder.mkdir()
    make(folder / "keep")
    with Keep.open(folder / "keep") as keep:
        sides = {
            "pairs": lambda: pairs(keep, max(20, int(PAIRS * scale))),
            "fdatasync": lambda: sync_floor(folder, max(20, int(2 * PAIRS * scale))),
        }
        values = alternate(runs, sides, "acquire and release, uncontended")
    told = contend(folder / "keep", SECONDS * scale)
    if any(each["deadlocks"] for each in told):
        sys.exit("benchmark: a deadlock was told where none can be")
    claims = [
        claim(
            "acquire + release of a free lock, durable",
            "pairs/s",
            values["pairs"],
            values["fdatasync"],
            peer_name="256-byte appends with fdatasync",
            bar=0.25,
        ),
        *_contended(told),
    ]
    return claims, values["fdatasync"]


def _contended(told: Sequence[dict[str, Any]]) -> list[Claim]:
    counts = [len(each["waits"]) for each in told]
    waits = sorted(wait for each in told for wait in each["waits"])
    middle = statistics.mean(counts)
    p99 = waits[int(len(waits) * 0.99)]
    console.print(
        f"{PROCESSES} processes, {len(TASKS)} tasks: {len(waits)} locks taken, {min(counts)} to {max(counts)} by each;"
        f" waited p50 {waits[len(waits) // 2]:.3f} s, p99 {p99:.3f} s, longest {waits[-1]:.3f} s",
        highlight=False,
    )
    who = f"{PROCESSES} processes, {len(TASKS)} tasks"
    unfair = max(max(counts) - middle, middle - min(counts)) / middle * 100
    return [
        absolute(f"{who}: furthest from the mean number of locks", "%", [unfair], 20, better="lower"),
        absolute(
            f"{who}: longest wait, none until a heartbeat",
            "ms",
            [waits[-1] * 1e3],
            HEARTBEAT_SECONDS * 1e3,
            better="lower",
        ),
        absolute(
            f"{who}: failed acquisitions + 1", "", [1 + sum(each["deadlocks"] for each in told)], 1, better="lower"
        ),
    ]


def _process() -> None:
    path, name, seconds = sys.argv[1:]
    locks._LOOK_SECONDS = 3600.0
    waits, deadlocks = [], 0
    with Keep.open(path, actor=name) as keep:
        tasks = [keep.task(task) for task in TASKS]
        print("ready", flush=True)
        sys.stdin.readline()
        end = time.monotonic() + float(seconds)
        for turn in itertools.count(int(name.rpartition("-")[2])):
            if time.monotonic() >= end:
                break
            asked = time.monotonic()
            try:
                held = tasks[turn % len(tasks)].lock()
            except Deadlock:
                deadlocks += 1
                continue
            waits.append(time.monotonic() - asked)
            held.release()
    print(json.dumps({"waits": waits, "deadlocks": deadlocks}))


if __name__ == "__main__":
    _process()
