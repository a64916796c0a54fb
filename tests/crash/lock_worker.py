"""An agent of its own: `lock_worker.py KEEP NAME TASKS LEASE`.

Until there is a file `KEEP/../end` it takes the lock of one of the TASKS (separated by commas) after the other, writes
a few words under its token, and releases it. It writes a line of JSON to `KEEP/../history/NAME` before and after each
of these, with the boot clock's time, and the position that an acknowledged write was given.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from pathlib import Path

from sandkeep.events import Event, StaleFence
from sandkeep.events import catalogue as ev
from sandkeep.projections import registry
from sandkeep.sandboxes import Held, Keep
from sandkeep.sandboxes.errors import LockHeld


class History:
    """What this agent did, in order; a line is in the file before the next thing is done."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(self, what: str, **more: object) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        os.write(self._file, json.dumps({"what": what, "at": now, **more}).encode() + b"\n")


def write(keep: Keep, held: Held, word: str) -> int:
    def say(task: registry.Task | None) -> list[Event]:
        return [ev.TaskCompleted(word)]

    return keep.locking.act(held.task.id, say, held.token).first


def main() -> None:
    path, name, tasks, lease = sys.argv[1:]
    history = History(Path(path).parent / "history" / name)
    end = Path(path).parent / "end"
    words = itertools.count()
    with Keep.open(path, actor=name) as keep:
        history.tell("ready")
        while not end.exists():
            task = random.choice(tasks.split(","))
            mode = random.choice(("exclusive", "exclusive", "collaborative"))
            history.tell("ask", task=task)
            try:
                held = keep.task(task).lock(mode, timeout=30, lease=float(lease))
            except LockHeld:
                history.tell("gave up", task=task)
                continue
            history.tell("held", task=task, token=held.token, mode=mode)
            try:
                with held:
                    for _ in range(random.randint(1, 3)):
                        word = f"{name}-{next(words)}"
                        position = write(keep, held, word)
                        history.tell("wrote", task=task, token=held.token, word=word, position=position)
                        time.sleep(random.uniform(0, 0.02))
                history.tell("released", task=task, token=held.token)
            except StaleFence:
                history.tell("lost", task=task, token=held.token)
        history.tell("end")


if __name__ == "__main__":
    main()
