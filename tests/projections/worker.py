"""A process of its own for the tests of the projections: `worker.py VERB FOLDER ARGUMENT`.

It opens the log and the projections in the folder, prints "ready", and waits for a line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from sandkeep.events import Event, LmdbLog
from sandkeep.events import catalogue as ev
from sandkeep.projections import (
    ProjectionStore,
    StateView,
)
from sandkeep.projections import store as store_module
from sandkeep.projections.registry import find
from sandkeep.projections.transactional import transactional


def main() -> None:
    verb, folder, argument = sys.argv[1:]
    store = ProjectionStore(Path(folder) / "projections", transactional(), "boot")
    with contextlib.closing(LmdbLog[StateView](Path(folder) / "log", follower=store)) as log, contextlib.closing(store):
        store.open(log)
        print("ready", flush=True)
        sys.stdin.readline()
        match verb:
            case "decide":
                for number in range(int(argument)):
                    decide(log, f"w{number}")
            case "die-between-commits":
                for number in range(int(argument)):
                    decide(log, f"w{number}")
                # Listeners are called behind the log's own commit, and before the projections are committed.
                log.listen(lambda: os.kill(os.getpid(), signal.SIGKILL))
                decide(log, "last")
            case "die-rebuilding":
                vars(store_module)["BATCH"] = 10

                def die(position: int) -> None:
                    if position >= int(argument):
                        os.kill(os.getpid(), signal.SIGKILL)

                store.rebuild(die)
            case "rebuild":
                for _ in range(int(argument)):
                    rebuilt = store.rebuild()
                    print(rebuilt.same, rebuilt.after, flush=True)


def decide(log: LmdbLog[StateView], task: str) -> None:
    def decider(state: StateView) -> list[Event]:
        assert find(state, task) is None
        return [ev.TaskCreated(intent=task, title=task, source=None, image="base")]

    print(log.decide(f"task/{task}", decider, actor="worker").first, flush=True)


if __name__ == "__main__":
    main()
