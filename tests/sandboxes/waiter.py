"""A process that waits until its task is promised memory, says so, and keeps that: `waiter.py KEEP TASK MIB`."""

from __future__ import annotations

import sys

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, admission
from sandkeep.sandboxes.limits import Budget

MIB = 1 << 20


def main() -> None:
    path, task, mib = sys.argv[1:]
    with Keep.open(path) as keep:
        keep.decide(task, lambda _: [ev.TaskCreated(f"t{task}", "t", None, "image")])
        limits = ev.Limits(int(mib) * MIB, 1, 16, MIB)
        admission.admit(keep, task, ev.SandboxRequested(f"s{task}", "image", limits), Budget(100 * MIB, 60))
        print("promised", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
