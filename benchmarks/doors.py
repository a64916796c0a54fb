"""How soon the doors answer: the command line's help and its questions, and the MCP server.

The command line is a process of its own each time, timed from its start to its end; it asks a keep of a hundred tasks.
Beside it stand the bars, importing typer alone, and how long the Docker CLI takes to list containers.

The server is timed from its start to its first answer, to what its first tool gives, which has to open the keep, and
from the kill of its worker to the next answer; each time it is another server. Beside it stands importing the official
SDK alone. What a tool call costs is the median of calls over the pipes less that of the same calls of the library in
this process, on the same keep; the client is a plain one, which costs next to nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, final

from sandkeep.sandboxes import Keep, Task, door
from sandkeep.sandboxes.door import Door
from sandkeep.sandboxes.vocabulary import NAMED

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import absolute, alternate, claim, options, report, sync_floor, versions, workspace
from tests.sandboxes.mcp_client import Client

TASKS = 100
STARTS = 3
TITLE = "Fix the parser"
SANDKEEP = Path(sys.executable).parent / "sandkeep"
READS = ("list-tasks", "show-task", "task-history", "task-stats", "find-task", "list-checkpoints", "locks")
CALLED = ("show-task", "list-tasks", "execute")


@contextlib.contextmanager
def asked(folder: Path) -> Iterator[tuple[Keep, Task]]:
    """A keep of `TASKS` tasks, and the one that is asked about; it has a sandbox, which goes at the end."""
    with Keep.init(folder / "keep") as keep:
        task = [keep.create_task(f"{TITLE} {number}", tags=("bench",)) for number in range(TASKS)][-1]
        try:
            task.execute(["touch", "file"])
            task.checkpoint("before")
            yield keep, task
        finally:
            task.complete()


def process(*words: str | Path) -> float:
    """Milliseconds that a process takes from its start to its end, in the middle of `STARTS`."""
    taken = []
    for _ in range(STARTS):
        begun = time.perf_counter()
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
        taken.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(taken)


def reading(keep: Keep, verb: str, task: Task) -> Callable[[], float]:
    """A question that the command line is asked."""
    about = [TITLE] if verb == "find-task" else [task.id] if _of_a_task(verb) else []
    return partial(process, SANDKEEP, verb, *about, "--keep", keep.path)


def _of_a_task(verb: str) -> bool:
    return any(each.name == "task" and each.positional for each in NAMED[verb].parameters)


@final
class Servers:
    """The servers of one keep, and how soon each gave its first result, and had a worker again, in milliseconds."""

    def __init__(self, keep: Keep, task: Task) -> None:
        self._keep = keep
        self._task = task.id
        self.results: list[float] = []
        self.restarts: list[float] = []

    @contextlib.contextmanager
    def started(self) -> Iterator[Client]:
        """A server that has answered."""
        client = Client(self._keep.path, SANDKEEP, "mcp", "--keep", self._keep.path)
        try:
            client.initialize()
            yield client
        finally:
            client.close()

    def start(self) -> float:
        """Milliseconds from the start of a server to its first answer."""
        begun = time.perf_counter()
        with self.started() as client:
            answered = time.perf_counter()
            client.call("show_task", task=self._task)
            self.results.append((time.perf_counter() - begun) * 1e3)
            begun_again = time.perf_counter()
            client.kill_worker()
            client.call("show_task", task=self._task)
            self.restarts.append((time.perf_counter() - begun_again) * 1e3)
        return (answered - begun) * 1e3


def overhead(keep: Keep, client: Client, verb: str, given: dict[str, Any], calls: int) -> float:
    """Microseconds that a call of a tool takes more than the same call of the library, by their medians."""
    called = NAMED[verb]
    far, near = [], []
    for _ in range(calls):
        begun = time.perf_counter()
        client.call(called.tool, **given)
        between = time.perf_counter()
        with Door(opened=keep) as opened:
            door.run(called, opened, given)
        near.append(time.perf_counter() - between)
        far.append(between - begun)
    return (statistics.median(far) - statistics.median(near)) * 1e6


def main() -> int:
    chosen = options(__doc__)
    measured = versions("typer", "mcp", "lmdb", "msgspec")
    calls = max(10, round(100 * chosen.scale))
    docker = shutil.which("docker")
    with workspace() as folder, asked(folder) as (keep, task):
        sides: dict[str, Callable[[], float]] = {
            "--help": partial(process, SANDKEEP, "--help"),
            **{verb: reading(keep, verb, task) for verb in READS},
            "typer": partial(process, sys.executable, "-P", "-c", "import typer"),
            **({"docker": partial(process, docker, "ps", "--all")} if docker else {}),
            "floor": partial(sync_floor, folder, 200),
        }
        for side in sides.values():
            side()  # so that all is compiled, and in memory
        each = alternate(chosen.runs, sides, "the command line")
        servers = Servers(keep, task)
        sdk = partial(process, sys.executable, "-P", "-c", "import mcp.server")
        sdk()
        serving = alternate(chosen.runs, {"start": servers.start, "sdk": sdk}, "servers")
        given: dict[str, dict[str, Any]] = {
            "show-task": {"task": task.id},
            "list-tasks": {},
            "execute": {"task": task.id, "argv": ["true"]},
        }
        with servers.started() as client:
            sides = {verb: partial(overhead, keep, client, verb, given[verb], calls) for verb in CALLED}
            over = alternate(chosen.runs, sides, "calls of tools")
    claims = [
        absolute("sandkeep --help", "ms", each["--help"], 150, better="lower"),
        claim("the same", "ms", each["--help"], each["typer"], peer_name="importing typer", bar=0.0),
        *(absolute(f"sandkeep {verb}, {TASKS} tasks", "ms", each[verb], 250, better="lower") for verb in READS),
        absolute("sandkeep mcp, start to the first answer", "ms", serving["start"], 1000, better="lower"),
        absolute("worker killed to the next result of a tool", "ms", servers.restarts, 1500, better="lower"),
        *(
            claim(f"sandkeep mcp, start to {what}", "ms", taken, serving["sdk"], peer_name="importing the SDK", bar=0.0)
            for what, taken in (("the first answer", serving["start"]), ("the first result", servers.results))
        ),
        *(
            absolute(f"a call of {NAMED[verb].tool} over the library, p50", "µs", over[verb], 3000, better="lower")
            for verb in CALLED
        ),
    ]
    missing = []
    if docker:
        name = "docker ps --all"
        claims.append(claim("sandkeep list-tasks", "ms", each["list-tasks"], each["docker"], peer_name=name, bar=0.0))
    else:
        missing.append("the Docker CLI is not installed; see https://docs.docker.com/engine/install")
    return report("doors", claims, measured, each["floor"], check=chosen.check, missing=missing)


if __name__ == "__main__":
    sys.exit(main())
