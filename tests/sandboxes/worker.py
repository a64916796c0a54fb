"""A process of its own that does something with a keep and stops at a failpoint, to be killed there:
`worker.py WHEN:PLACE.NAME[#NTH] ACTION KEEP ARGUMENT...`.

It prints "at " and its first argument when it has come there, and then waits for ever. WHEN is "before" or "after".
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sandkeep.sandboxes import (
    Keep,
    Task,
    memory,
    monitor,
    page_file,
    pressure,
    resources,
    restore,
    snapshot,
    spool,
    workspace,
)
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.locks import LockManager

PLACES: dict[str, object] = {
    "engine": Engine,
    "keep": Keep,
    "locks": LockManager,
    "memory": memory,
    "page": page_file.Page,
    "pressure": pressure,
    "resources": resources,
    "restore": restore,
    "snapshot": snapshot,
    "spool": spool.Spool,
    "task": Task,
    "workspace": workspace,
}


def stop_at(step: str) -> None:
    """Put the failpoint in place."""
    when, _, rest = step.partition(":")
    target, _, number = rest.partition("#")
    place, _, name = target.partition(".")
    original: Callable[..., object] = getattr(PLACES[place], name)
    calls = 0

    def stopping(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        here = calls == int(number or 1)
        if here and when == "before":
            wait(step)
        value = original(*arguments, **options)
        if here and when == "after":
            wait(step)
        return value

    setattr(PLACES[place], name, stopping)


def wait(step: str) -> None:
    """Say where we are, and stay there."""
    print(f"at {step}", flush=True)
    while True:
        signal.pause()


def act(keep: Keep, action: str, arguments: list[str]) -> None:
    """Do what is to be cut short."""
    if action == "create":
        keep.create_task("cut short", source=Path(arguments[0]) if arguments else None)
        return
    if action == "tick":
        while True:
            monitor.tick(keep)
    task = keep.task(arguments[0])
    if action == "execute":
        task.execute(arguments[1:], timeout=60)
    elif action == "limit":
        keep.resources(task.id).set({"memory": arguments[1]})
    elif action == "restore":
        task.restore_checkpoint(arguments[1])
    else:
        verbs: dict[str, Callable[[], object]] = {
            "checkpoint": task.checkpoint,
            "clean_up": task.clean_up,
            "complete": task.complete,
            "decide": lambda: task.record_decision("cut short"),
            "pause": task.pause,
            "resume": task.resume,
        }
        verbs[action]()


def main() -> None:
    step, action, path, *arguments = sys.argv[1:]
    with Keep.open(path) as keep:
        stop_at(step)
        act(keep, action, arguments)
    raise AssertionError(f"{step} was not reached")


if __name__ == "__main__":
    main()
