"""How soon a task is there, its sandbox, and fifty of them; and what the steward costs while nothing happens.

Beside each stands the bar, in milliseconds, or in microseconds of processor time a second. Cold: the first command
starts the sandbox. From the pool: the sandbox was started ahead. To the first output is from before `create_task` until
the first byte has come. The fifty are started by eight threads, once, because it takes long; the steward, a process of
its own, is watched while all of them run, over a whole period of its slowest duty that asks the engine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from sandkeep.sandboxes import Keep, Task, pool, slot
from sandkeep.sandboxes.incumbent import incumbent

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import absolute, alternate, options, report, sync_floor, versions, workspace

MANY = 50
THREADS = 8
SMALL = {"memory": "128MiB", "pids": 128}
CREATED = 20
WATCHED_SECONDS = 35.0
TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Keep]:
    """A keep of its own, whose containers are removed at the end."""
    keep = Keep.init(folder / "keep")
    try:
        yield keep
    finally:
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda found: keep.engine.remove(found.container), keep.engine.containers(keep.id)))
        keep.close()


def create(keep: Keep) -> float:
    """Milliseconds to create a task with an empty workspace."""
    begun = time.perf_counter()
    for _ in range(CREATED):
        keep.create_task("a task")
    return (time.perf_counter() - begun) / CREATED * 1e3


def first_output(keep: Keep, slots: int) -> float:
    """Milliseconds from before a task is created until its first command has written something."""
    set_pool(keep, slots)
    came: list[float] = []

    def output(name: str, data: bytes) -> None:
        came.append(time.perf_counter())

    begun = time.perf_counter()
    task = keep.create_task("a task")
    task.execute(["echo", "hello"], on_output=output)
    end(task)
    return (came[0] - begun) * 1e3


def set_pool(keep: Keep, slots: int) -> None:
    """Have so many slots."""
    file = keep.path / "keep.toml"
    file.write_text(file.read_text().partition("[sandboxes]")[0] + f"[sandboxes]\npool = {slots}\n")
    while len(slot.names(keep)) != slots:
        pool.fill(keep)


def end(task: Task) -> None:
    """Leave nothing of a task."""
    task.complete()
    task.clean_up()


def start_many(keep: Keep) -> float:
    """Milliseconds until `MANY` new tasks have all run a command."""
    # As many as the default limits would need have no room on a small machine.
    tasks = [keep.create_task(f"task {number}", limits=SMALL) for number in range(MANY)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda task: task.execute(["true"]), tasks))
    return (time.perf_counter() - begun) * 1e3


def idle(keep: Keep) -> float:
    """Microseconds of processor time that the steward takes in a second, with all sandboxes alive."""
    command = [str(Path(sys.executable).parent / "sandkeep"), "steward", "--keep", str(keep.path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while (found := incumbent(keep.path)) is None or found.pid != process.pid:
                time.sleep(0.05)
            time.sleep(2)  # it has done everything once
            before = used(process.pid)
            time.sleep(WATCHED_SECONDS)
            return (used(process.pid) - before) / WATCHED_SECONDS * 1e6
        finally:
            process.send_signal(signal.SIGTERM)


def used(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> int:
    chosen = options(__doc__)
    measured = versions("docker", "lmdb")
    with workspace() as folder, opened(folder) as keep:
        sides: dict[str, Callable[[], float]] = {
            "create": partial(create, keep),
            "cold": partial(first_output, keep, 0),
            "pool": partial(first_output, keep, 1),
            "floor": partial(sync_floor, folder, 200),
        }
        keep.create_task("to warm up").start_sandbox()
        each = alternate(chosen.runs, sides, "one sandbox after another")
        set_pool(keep, 0)
        many = alternate(1, {"start": partial(start_many, keep), "idle": partial(idle, keep)}, f"{MANY} sandboxes")
    claims = [
        absolute("create-task, empty workspace", "ms", each["create"], 20, better="lower"),
        absolute("create to first output, cold", "ms", each["cold"], 450, better="lower"),
        absolute("create to first output, from the pool", "ms", each["pool"], 40, better="lower"),
        absolute(f"{MANY} sandboxes started", "ms", many["start"], 20_000, better="lower"),
        absolute(f"idle steward of {MANY} sandboxes", "µs/s", many["idle"], 20_000, better="lower"),
    ]
    return report("lifecycle", claims, measured, each["floor"], check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
