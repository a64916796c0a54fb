"""A process that waits until its task is promised memory, says so, and keeps that: `waiter.py KEEP TASK MIB`."""

from __future__ import annotations

import sys

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, admission
from sandkeep.sandboxes.limits import Budget

MIB = 1 << 20


def promise(keep: Keep, task: str, limits: ev.Limits, most: int, wait: float) -> None:
    """Promise a task's sandbox what it may use, as starting it does, which does not follow."""
    keep.decide(task, lambda known: [] if known else [ev.TaskCreated(f"t{task}", "t", None, "image")])
    with admission.Turn(keep, task) as turn:
        while not turn.begin(ev.SandboxRequested(f"s{task}", "image", limits), Budget(most, wait)):
            turn.wait(lambda words: None)


def main() -> None:
    path, task, mib = sys.argv[1:]
    with Keep.open(path) as keep:
        promise(keep, task, ev.Limits(int(mib) * MIB, 1, 16, MIB), 100 * MIB, 60)
        print("promised", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
