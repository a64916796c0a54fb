"""Processes that do something with a keep and stop at a failpoint, to be killed there. They are forked from one that
has imported everything, which is most of what such a process takes: `worker.py SOCKET`.

A request is a JSON list of the environment and the words `WHEN:PLACE.NAME[#NTH] ACTION KEEP ARGUMENT...`, with a
descriptor for the output; the answer is the number of the process. That prints "at " and the first word when it has
come there, and then waits for ever. WHEN is "before" or "after".
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sandkeep.sandboxes import (
    Keep,
    Task,
    agent,
    command,
    image,
    images,
    memory,
    merging,
    monitor,
    outcome,
    own_workspace,
    page_file,
    place,
    pool,
    pressure,
    resources,
    restore,
    slot,
    snapshot,
    workspace,
)
from sandkeep.sandboxes.conflict_work import Work
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.locks import LockManager
from sandkeep.sandboxes.sandbox import Sandbox

PLACES: dict[str, object] = {
    "agent": agent.Connection,
    "command": command,
    "engine": Engine,
    "image": image,
    "images": images.ImageStore,
    "keep": Keep,
    "locks": LockManager,
    "look": Work,
    "memory": memory,
    "merging": merging,
    "own": own_workspace,
    "page": page_file.Page,
    "pressure": pressure,
    "resources": resources,
    "place": place,
    "restore": restore,
    "slot": slot,
    "snapshot": snapshot,
    "outcome": outcome,
    "sandbox": Sandbox,
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
    if action == "detach":
        keep.locking.release(arguments[0], int(arguments[1]))
        return
    if action == "execute-own":
        keep.task(arguments[0], int(arguments[1])).execute(arguments[2:], timeout=60)
        return
    if action == "build-image":
        keep.images.build(arguments[0], folder=Path(arguments[1]))
        return
    if action == "prune-images":
        keep.images.prune(0)
        return
    if action == "fill":
        pool.fill(keep)
        return
    if action == "tick":
        while True:
            monitor.tick(keep)
    task = keep.task(arguments[0])
    if action == "execute":
        task.execute(arguments[1:], timeout=60)
    elif action == "start":
        task.start(arguments[1:])
    elif action == "limit":
        keep.resources(task.id).set({"memory": arguments[1]})
    elif action == "fork":
        keep.fork_task(task.id, arguments[1])
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
            "rest": task.rest,
            "stop": task.stop,
        }
        verbs[action]()


def become(environment: dict[str, str], words: list[str], output: int) -> NoReturn:
    """Do what was asked for, up to the failpoint."""
    try:
        os.dup2(output, 1)
        os.environ.clear()
        os.environ.update(environment)
        step, action, path, *arguments = words
        with Keep.open(path) as keep:
            stop_at(step)
            act(keep, action, arguments)
        raise AssertionError(f"{step} was not reached")
    except BaseException:  # noqa: BLE001 - it is told, and this process ends
        traceback.print_exc()
    finally:
        os._exit(1)


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        while True:
            message, found, _, _ = socket.recv_fds(asked, 1 << 20, 1)
            if not message:
                return
            with contextlib.suppress(ChildProcessError):  # whoever waited for those that have ended has seen it
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            process = os.fork()
            if process == 0:
                asked.close()
                environment, words = json.loads(message)
                become(environment, words, found[0])
            os.close(found[0])
            asked.send(str(process).encode())


if __name__ == "__main__":
    main()
