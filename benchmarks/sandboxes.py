"""What a command in a sandbox costs, and what it is promised: latency, many at once, output, and the end of a tree.

All in one sandbox of a keep of its own, on this machine's engine. `true` is run by the agent alone, as `Task.execute`
has it asked (connecting included); by `Task.execute`, which also stores what was asked for and what came of it, each
synced, and has the memory folder brought up to date; by the `docker exec` command; by the SDK's `exec_run`; and by
SWE-ReX, whose server runs in a container of the same image, as a process and in its shell session. A run's values are
the 50th and the 95th percentile of its commands.

Output: one command writes a gigabyte in numbered blocks, which goes to a blob; every byte is compared. The library's
memory is the growth of this process's peak since before the first of these runs.

The tree is a shell that ignores signals, forks a new session with two children every 50 ms, and leaves double forks;
what is timed is from the end of its time until nothing of it is left.
"""

from __future__ import annotations

import contextlib
import resource
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import docker
from docker.models.containers import Container

from sandkeep.sandboxes import Keep, Task, agent, spool

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import absolute, alternate, claim, options, report, sync_floor, versions, workspace
from benchmarks._peer import NoPython, Peer, environment

SWEREX = "bench-swerex"

TREE = """trap '' TERM INT HUP; (setsid sh -c "(sleep 1000 &) & sleep 1000" &)
while :; do setsid sh -c 'sleep 1000 & sleep 1000' & sleep 0.05; done"""
TIMEOUT_SECONDS = 1.0
GIGABYTE = 1 << 30
WRITER = """import os, sys
block = bytes(range(256)) * 4096
for number in range(int(sys.argv[1])):
    os.write(1, b'%015d\\n' % number + block[16:])"""


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def timed(work: Callable[[], object], count: int) -> list[float]:
    """How many microseconds each of `count` calls took."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        work()
        taken.append((time.perf_counter() - begun) * 1e6)
    return taken


def by_agent(task: Task) -> None:
    """Run `true` without putting it on record."""
    container = task.state.container
    assert container is not None
    name = secrets.token_hex(8)
    connection = agent.greet(task.sandbox.spool, container)
    assert connection is not None
    with connection, spool.Spool(task.sandbox.spool, name) as files:
        connection.run(name, agent.Spec(("true",), "/workspace", {}, 60, 1 << 30))
        ended = agent.wait(connection, files, name, 60, None, lambda: None)
        files.remove()
    assert ended is not None
    assert ended.exit == 0


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def flood(keep: Keep, task: Task, blocks: int, before: float) -> tuple[float, float]:
    """Megabytes a second of a large output, and how many MiB the library's memory has grown since it was `before`."""
    begun = time.perf_counter()
    result = task.execute(["python3", "-c", WRITER, str(blocks)])
    taken = time.perf_counter() - begun
    grown = max(peak() - before, 1.0)
    block = bytes(range(256)) * 4096
    assert result.stdout.blob is not None
    chunks = keep.blobs.chunks(result.stdout.blob)
    held = bytearray()
    for number in range(blocks):
        while len(held) < len(block):
            held += next(iter(chunks))
        assert held[: len(block)] == b"%015d\n" % number + block[16:], f"block {number} is not as it was written"
        del held[: len(block)]
    assert not held
    return blocks * len(block) / taken / 1e6, grown


def overtime(task: Task) -> float:
    """By how many milliseconds the hostile tree outlives its time."""
    result = task.execute(["sh", "-c", TREE], timeout=TIMEOUT_SECONDS)
    assert result.timed_out
    return (result.duration_s - TIMEOUT_SECONDS) * 1e3


@contextlib.contextmanager
def swerex(client: docker.DockerClient, image: str) -> Iterator[Peer]:
    """SWE-ReX, its server in a container of the image, whose Python must be the one of its environment.

    Raises `NoPython` if it is another."""
    folder = environment(SWEREX, sys.version_info[:2]).parents[1]
    (packages,) = folder.glob("lib/python*/site-packages")
    inside = packages.relative_to(folder)
    token = secrets.token_hex(8)
    server = ["-m", "swerex.server", "--host", "0.0.0.0", "--port", "8000", "--auth-token", token]
    container = client.containers.run(
        image,
        ["python3", *server],
        detach=True,
        init=True,
        volumes={str(folder): {"bind": "/peer", "mode": "ro"}},
        environment={"PYTHONPATH": f"/peer/{inside}"},
    )
    try:
        checked = container.exec_run(["python3", "-c", "import pydantic_core"])
        if checked.exit_code:
            raise NoPython(f"the image's Python is not {inside.parent.name}, for which its packages are")
        container.reload()
        with Peer("swerex_runtime", SWEREX, address(container), token) as peer:
            yield peer
    finally:
        container.remove(force=True)


def beside(peer: Peer, way: str, count: int) -> float:
    """How many microseconds SWE-ReX takes in one of its ways, at the median."""
    taken: list[float] = peer.ask(way, count)
    return statistics.median(taken)


def address(container: Container) -> str:
    """Where a container is on the engine's own network."""
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


def at_once(pool: ThreadPoolExecutor, work: Callable[[], object]) -> float:
    """How many milliseconds sixteen commands take that are begun together."""
    begun = time.perf_counter()
    for each in [pool.submit(work) for _ in range(16)]:
        each.result()
    return (time.perf_counter() - begun) * 1e3


def main() -> int:
    chosen = options(__doc__)
    count = max(int(100 * chosen.scale), 20)
    measured = versions("docker")
    missing = []
    with (
        workspace() as folder,
        Keep.init(folder / "keep") as keep,
        contextlib.closing(docker.from_env()) as client,
        contextlib.ExitStack() as peers,
    ):
        measured["engine"] = str(client.version()["Version"])
        task = keep.create_task("measured")
        try:
            task.execute(["true"])  # the first one starts the sandbox
            container = client.containers.get(str(task.state.container))
            command = ["docker", "exec", str(container.id), "true"]
            works: dict[str, tuple[Callable[[], object], int]] = {
                "the agent": (lambda: by_agent(task), count),
                "Task.execute": (lambda: task.execute(["true"]), count),
                "docker exec": (lambda: subprocess.run(command, check=True), max(count // 10, 5)),
                "the SDK": (lambda: container.exec_run("true"), max(count // 10, 5)),
            }
            rivals: list[str] = []
            try:
                rex = peers.enter_context(swerex(client, str(container.attrs["Image"])))
                measured |= rex.ask("open")
                rivals = ["SWE-ReX", "SWE-ReX's session"]
            except NoPython as error:
                missing.append(f"SWE-ReX: {error}")
            asked = {"SWE-ReX": ("process", count), "SWE-ReX's session": ("session", max(count // 10, 5))}
            late: dict[str, list[float]] = {name: [] for name in works}

            def side(name: str) -> Callable[[], float]:
                def run() -> float:
                    taken = timed(*works[name])
                    late[name].append(percentile(taken, 0.95))
                    return statistics.median(taken)

                return run

            sides = {name: side(name) for name in works}
            sides |= {name: partial(beside, rex, *asked[name]) for name in rivals}
            middle = alternate(chosen.runs, sides, "true")
            with ThreadPoolExecutor(16) as pool:
                many = alternate(
                    chosen.runs,
                    {
                        "the agent": lambda: at_once(pool, lambda: by_agent(task)),
                        "Task.execute": lambda: at_once(pool, lambda: task.execute(["true"])),
                    },
                    "16 at once",
                )
            memory: list[float] = []
            before = peak()

            def writing() -> float:
                speed, grown = flood(keep, task, max(int((GIGABYTE >> 20) * chosen.scale), 16), before)
                memory.append(grown)
                return speed

            speed = alternate(chosen.runs, {"output": writing}, "output")["output"]
            floor = [sync_floor(folder, 200) for _ in range(chosen.runs)]
            ends = alternate(chosen.runs, {"tree": lambda: overtime(task)}, "a hostile tree")["tree"]
        finally:
            task.complete()
            task.clean_up()
    claims = [
        absolute("true by the agent, p50", "µs", middle["the agent"], 2000, better="lower"),
        absolute("true by the agent, p95", "µs", late["the agent"], 5000, better="lower"),
        absolute("true by Task.execute, p50", "µs", middle["Task.execute"], 2000, better="lower"),
        absolute("true by Task.execute, p95", "µs", late["Task.execute"], 5000, better="lower"),
        *(
            claim(f"{ours}, p50", "µs", middle[ours], middle[peer], peer_name=peer, bar=1 / 30, better="lower")
            for ours in ("the agent", "Task.execute")
            for peer in ("docker exec", "the SDK")
        ),
        *(
            claim(f"{ours}, p50", "µs", middle[ours], middle[peer], peer_name=peer, bar=1.0, better="lower")
            for ours in ("the agent", "Task.execute")
            for peer in rivals
        ),
        absolute("16 at once by the agent", "ms", many["the agent"], 40, better="lower"),
        absolute("16 at once by Task.execute", "ms", many["Task.execute"], 40, better="lower"),
        absolute("output, every byte compared", "MB/s", speed, 100),
        absolute("memory that took", "MiB", memory, 50, better="lower"),
        absolute("a hostile tree outlives its time by", "ms", ends, 100, better="lower"),
    ]
    return report("sandboxes", claims, measured, floor, check=chosen.check, missing=missing)


if __name__ == "__main__":
    sys.exit(main())
