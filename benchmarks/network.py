"""What the way out of a sandbox costs, beside a container on the engine's own network.

One server on this machine gives 10 kB to both. Ours is a sandbox whose policy grants that server: forwarder, unix
socket, proxy, and a durable event before the first connections pass. The peer is a container of the same image on the
engine's bridge, which reaches the host directly, is judged by nobody and recorded nowhere.

Three rows: a program that is started for one GET, as tools are that agents run; a GET of a running program from a
server that takes 4 ms to answer, as one does that is not on this very machine; and one from a server that takes no
time, where all that is left is our own cost, which is measured against a bar in microseconds.
"""

from __future__ import annotations

import http.server
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import docker

from sandkeep.sandboxes import Keep, Task

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import absolute, alternate, claim, options, report, sync_floor, versions, workspace

BODY = b"x" * 10_000
ANSWER_SECONDS = 0.004

# Prints the median of so many times, in microseconds.
PROGRAM = """
import os, statistics, subprocess, sys, time, urllib.request
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""  # a loopback address is not asked of a proxy otherwise
how, count, url, proxy = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

def get():
    handler = urllib.request.ProxyHandler({"http": proxy} if proxy else {})
    urllib.request.build_opener(handler).open(url).read()

def start():
    subprocess.run([sys.executable, "-c", SOURCE, "once", "1", url, proxy], check=True, stdout=subprocess.DEVNULL)

taken = []
for _ in range(count):
    begun = time.perf_counter()
    start() if how == "start" else get()
    taken.append((time.perf_counter() - begun) * 1e6)
print(statistics.median(taken))
"""
PROGRAM = f"SOURCE = {PROGRAM!r}\n" + PROGRAM


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives 10 kB; from `/slow` not at once."""

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(ANSWER_SECONDS)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def server() -> Iterator[int]:
    """The server's port, on all addresses of this machine."""
    with http.server.ThreadingHTTPServer(("", 0), Handler) as serving:
        serving.daemon_threads = True
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield serving.server_address[1]
        finally:
            serving.shutdown()
            thread.join()


@contextmanager
def beside(image: str) -> Iterator[Callable[[list[str]], float]]:
    """Runs the program in a container on the engine's bridge."""
    with closing(docker.DockerClient.from_env()) as client:
        made = client.containers.create(image, ["tail", "-f", "/dev/null"], network_mode="bridge", user="1000:1000")
        try:
            made.start()

            def run(line: list[str]) -> float:
                status, said = made.exec_run(line)
                if status or not isinstance(said, bytes):
                    sys.exit(f"benchmark: the container on the bridge failed: {said!r}")
                return float(said)

            yield run
        finally:
            made.remove(force=True)


def inside(task: Task, line: list[str]) -> float:
    """Runs the program in the sandbox."""
    result = task.execute(line)
    if result.exit_code:
        sys.exit(f"benchmark: the sandbox failed: {(result.stderr.data or b'').decode()}")
    return float(result.stdout.data or b"")


def gateway() -> str:
    """The address of this machine on the engine's bridge."""
    with closing(docker.DockerClient.from_env()) as client:
        return str(client.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"])


def main() -> int:
    chosen = options(__doc__)
    measured = versions("docker", "lmdb", "msgspec")
    starts, gets = max(3, round(10 * chosen.scale)), max(10, round(100 * chosen.scale))
    with workspace() as folder, server() as port, Keep.init(folder / "keep") as keep:
        with (folder / "keep" / "keep.toml").open("a") as settings:
            settings.write(f'[network]\nprivate = ["127.0.0.1:{port}"]\n')
        task = keep.create_task("reaches out", network="allow", private=[f"127.0.0.1:{port}"])
        try:
            with beside(keep.images.resolve()[1]) as peer:
                near, far = f"http://127.0.0.1:{port}", f"http://{gateway()}:{port}"

                def sides(how: str, count: int, path: str) -> dict[str, Callable[[], float]]:
                    line = ["python3", "-c", PROGRAM, how, str(count)]
                    ours = partial(inside, task, [*line, near + path, "http://127.0.0.1:3128"])
                    return {"ours": ours, "peer": partial(peer, [*line, far + path, ""])}

                floor = partial(sync_floor, folder, max(20, round(300 * chosen.scale)))
                started = alternate(
                    chosen.runs, sides("start", starts, "/") | {"floor": floor}, "a program for each GET"
                )
                slow = alternate(chosen.runs, sides("get", gets, "/slow"), "GETs from a server that takes 4 ms")
                bare = alternate(chosen.runs, sides("get", gets, "/"), "GETs from a server that takes no time")
        finally:
            task.complete()
            task.clean_up()
    name = "container on the engine's bridge"
    direct = f"{sorted(bare['peer'])[len(bare['peer']) // 2]:,.0f} µs"
    claims = [
        claim(
            "a program that gets 10 kB", "µs", started["ours"], started["peer"], peer_name=name, bar=2.0, better="lower"
        ),
        claim("GET, server takes 4 ms", "µs", slow["ours"], slow["peer"], peer_name=name, bar=2.0, better="lower"),
        absolute("GET, server takes no time", "µs", bare["ours"], 8000, better="lower"),
    ]
    return report("network", claims, {**measured, "the last, direct": direct}, started["floor"], check=chosen.check)


if __name__ == "__main__":
    sys.exit(main())
