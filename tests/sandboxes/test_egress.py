"""The whole way out, from a command in a sandbox to a server on this machine, which the keep grants as private."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, sidecar
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import NetworkUnavailable, PolicyDenied, TaskRefused
from sandkeep.sandboxes.guest import forwarder

from ..conftest import close, proxies
from .support import container_of, eventually, shell, text, types

pytestmark = pytest.mark.engine

FETCH = """
import os, sys, urllib.request
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""  # the server is called 127.0.0.1, which is ours alone otherwise
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    sys.stdout.write(answer.read().decode())
"""
INSIST = """
import http.client, sys, time
for number in range(600):
    try:
        exec(sys.argv[2])
        break
    except (OSError, http.client.HTTPException):
        open("/workspace/failed", "a").write("x")
        time.sleep(0.05)
else:
    sys.exit(1)
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Says hello, or goes on for as long as somebody listens."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/endless":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        self.wfile.write(f"hello {self.path}\n".encode())
        while self.path == "/endless" and not over.wait(0.05):
            self.wfile.write(b"x" * 1000)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


over = threading.Event()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a web server on the loopback of this machine."""
    over.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_address[1]
        over.set()
        server.shutdown()
        serving.join()


def grant(keep: Keep, port: int) -> str:
    """Let the keep's owner grant the server; returns how a policy names it."""
    with (keep.path / "keep.toml").open("a") as file:
        file.write(f'[network]\nprivate = ["127.0.0.1:{port}"]\n')
    return f"127.0.0.1:{port}"


def fetch(task: Task, port: int, path: str = "/") -> str:
    """What a program in the sandbox gets from the server."""
    return text(task.execute(["python3", "-c", FETCH, f"http://127.0.0.1:{port}{path}"]))


def of(task: Task, *kinds: type[Event]) -> list[Event]:
    return [record.event for record in task.history() if isinstance(record.event, kinds)]


@pytest.fixture
def open_task(keep: Keep, port: int) -> Task:
    """A task that may reach the server."""
    return keep.create_task("reaches out", network="allow", allow=["example.org"], private=[grant(keep, port)])


def test_a_command_reaches_what_the_policy_lists_and_nothing_else(keep: Keep, open_task: Task, port: int) -> None:
    assert types(open_task.history())[:2] == ["TaskCreated", "NetworkPolicySet"]
    assert fetch(open_task, port, "/a") == "hello /a\n"
    refused = open_task.execute(["python3", "-c", FETCH, f"http://127.0.0.1:{port + 1}/"])
    assert b"HTTP Error 403" in (refused.stderr.data or b"")
    tunnel = open_task.execute(["git", "ls-remote", "https://evil.test/repository"])
    assert b"403" in (tunnel.stderr.data or b"")
    eventually(lambda: of(open_task, ev.ConnectionClosed))
    (allowed,) = of(open_task, ev.ConnectionAllowed)
    assert isinstance(allowed, ev.ConnectionAllowed)
    assert (allowed.host, allowed.port, allowed.address) == ("127.0.0.1", port, "127.0.0.1")
    assert of(open_task, ev.ConnectionDenied) == [
        ev.ConnectionDenied("127.0.0.1", port + 1, "port-not-listed"),
        ev.ConnectionDenied("evil.test", 443, "host-not-listed"),
    ]
    traffic = keep.network(open_task.id).traffic()
    assert (traffic.allowed, traffic.denied) == (1, 2)
    assert traffic.sent > 50
    assert traffic.received > 50
    assert {record.actor for record in keep.events() if record.type.startswith("Connection")} == {"egress-proxy"}


def test_without_a_policy_there_is_no_proxy_and_nothing_that_names_one(keep: Keep, task: Task) -> None:
    assert "proxy" not in shell(task, "env").lower()
    assert shell(task, "ls -A /run/sandkeep-egress").split() == ["forwarder", "hosts", "services"]
    shell(task, "! python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 3128))' 2>/dev/null")
    assert proxies(keep.path) == []


def test_what_a_caller_sets_counts_before_the_proxys_variables(open_task: Task) -> None:
    names = shell(open_task, "env", env={"http_proxy": "http://mine"})
    assert "http_proxy=http://mine\n" in names
    assert f"https_proxy=http://127.0.0.1:{forwarder.PORT}\n" in names
    assert "NO_PROXY=localhost,127.0.0.1,::1\n" in names


def test_a_policy_holds_at_once_in_the_sandbox_that_runs(keep: Keep, task: Task, port: int) -> None:
    container = container_of(task)
    place = grant(keep, port)
    keep.network(task.id).set("allow", private=[place])
    assert fetch(task, port) == "hello /\n"
    with ThreadPoolExecutor(1) as pool:
        line = ["python3", "-c", FETCH, f"http://127.0.0.1:{port}/endless"]
        running = pool.submit(task.execute, line, timeout=120)
        eventually(lambda: len(of(task, ev.ConnectionAllowed)) == 2)
        keep.network(task.id).set("none")
        assert running.result().exit_code != 124
    closed = eventually(
        lambda: [each for each in of(task, ev.ConnectionClosed) if getattr(each, "reason", "") != "ended"]
    )
    assert [getattr(each, "reason", "") for each in closed] in (["policy-changed"], ["stopped"])
    assert "proxy" not in shell(task, "env").lower()
    refused = task.execute(["env", "http_proxy=http://127.0.0.1:3128", *line[:-1], f"http://127.0.0.1:{port}/"])
    assert refused.exit_code == 1
    keep.network(task.id).set("allow", private=[place])
    assert fetch(task, port) == "hello /\n"
    assert container_of(task) == container


def test_a_grant_that_is_taken_back_counts_no_more(keep: Keep, open_task: Task, port: int) -> None:
    assert fetch(open_task, port) == "hello /\n"
    settings = (keep.path / "keep.toml").read_text()
    (keep.path / "keep.toml").write_text(settings.partition("[network]")[0])
    assert open_task.execute(["python3", "-c", FETCH, f"http://127.0.0.1:{port}/"]).exit_code == 1
    with pytest.raises(PolicyDenied):
        keep.network(open_task.id).set("allow", private=[f"127.0.0.1:{port}"])
    (keep.path / "keep.toml").write_text(settings + "open = 3\n")
    assert open_task.execute(["python3", "-c", FETCH, f"http://127.0.0.1:{port}/"]).exit_code == 1
    (keep.path / "keep.toml").write_text(settings)
    assert fetch(open_task, port) == "hello /\n"


def test_a_proxy_that_is_killed_is_started_anew_while_a_command_runs(keep: Keep, open_task: Task, port: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        fetching = FETCH.replace("sys.argv[1]", "sys.argv[1] + ('endless' if number == 0 else '')")
        line = ["python3", "-c", INSIST, f"http://127.0.0.1:{port}/", fetching]
        running = pool.submit(open_task.execute, line, timeout=120)
        eventually(lambda: of(open_task, ev.ConnectionAllowed))
        (first,) = proxies(keep.path)
        os.kill(first, signal.SIGKILL)
        assert text(running.result()) == "hello /\n"
    assert (open_task.workspace / "failed").exists()
    (second,) = proxies(keep.path)
    assert second != first
    os.kill(second, signal.SIGKILL)
    assert fetch(open_task, port) == "hello /\n"
    allowed, closed = of(open_task, ev.ConnectionAllowed), of(open_task, ev.ConnectionClosed)
    assert len(allowed) == 3  # what the killed proxy had let through is on record, although its end is not
    assert len(closed) <= 2


def test_the_steward_starts_a_proxy_that_is_missing(keep: Keep, open_task: Task) -> None:
    shell(open_task, "true")
    (proxy,) = proxies(keep.path)
    os.kill(proxy, signal.SIGKILL)
    eventually(lambda: not proxies(keep.path))
    assert keep.reconcile(again=True) == ["started the egress proxy"]
    assert keep.reconcile(again=True) == []
    eventually(lambda: proxies(keep.path))


def test_there_is_one_proxy_however_many_want_it_and_none_when_nobody_does(keep: Keep, port: int) -> None:
    place = grant(keep, port)
    made = [keep.create_task("one of many", network="allow", private=[place]) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda task: fetch(task, port), made * 2))
    assert found == ["hello /\n"] * 6
    assert len(proxies(keep.path)) == 1
    for task in made:
        task.complete()
    eventually(lambda: not proxies(keep.path))
    assert not list((keep.path / "run" / "egress").glob("*/proxy.sock"))
    for task in made:
        task.clean_up()
    assert not [path for path in (keep.path / "run" / "egress").iterdir() if path.is_dir()]


def test_a_sandbox_sees_its_own_way_out_only_and_cannot_change_it(open_task: Task) -> None:
    names = shell(open_task, "ls -A /run/sandkeep-egress").split()
    assert sorted(names) == ["forwarder", "hosts", "proxy.sock", "services"]
    for line in (
        "rm -f /run/sandkeep-egress/proxy.sock",
        "touch /run/sandkeep-egress/x",
        "echo >/run/sandkeep-egress/forwarder",
        "echo >/run/sandkeep-egress/hosts",
        "echo >>/etc/hosts",
    ):
        assert open_task.execute(["sh", "-c", line]).exit_code != 0


def test_a_timeout_ends_the_forwarder_too_and_the_next_command_has_one(open_task: Task, port: int) -> None:
    assert fetch(open_task, port) == "hello /\n"
    assert open_task.execute(["sleep", "60"], timeout=0.5).timed_out
    assert fetch(open_task, port) == "hello /\n"


END_FORWARDER = """
import os, pathlib, signal
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if b"sandkeep-egress" in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
        os.kill(int(process.name), signal.SIGKILL)
        print("ended")
"""


def test_a_task_that_ends_its_forwarder_gets_another_with_the_next_command(open_task: Task, port: int) -> None:
    program = "exec(open('end').read())"  # whose own command line does not say what it looks for
    (open_task.workspace / "end").write_text(END_FORWARDER)
    assert text(open_task.execute(["python3", "-c", program])) == "ended\n"
    assert fetch(open_task, port) == "hello /\n"


def test_a_sandbox_that_is_lost_gets_its_way_out_with_the_next(keep: Keep, open_task: Task, port: int) -> None:
    open_task.start_sandbox()
    keep.engine.remove(container_of(open_task))
    assert fetch(open_task, port) == "hello /\n"


def test_an_image_without_python_has_no_way_out_and_says_so(open_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "python", lambda self, container: ["no-such-python"])
    with pytest.raises(NetworkUnavailable, match="python3"):
        open_task.execute(["true"])
    assert open_task.state.pending == ()


def test_a_program_that_takes_the_port_is_named(keep: Keep, task: Task, port: int) -> None:
    place = grant(keep, port)
    listen = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 3128)); open('/workspace/up', 'w'); time.sleep(99)"
    )
    shell(task, f'python3 -c "{listen}" & while ! [ -e up ]; do sleep 0.05; done')
    with pytest.raises(NetworkUnavailable, match="3128"):
        keep.network(task.id).set("allow", private=[place])


def test_a_keep_may_lie_deep(tmp_path: Path, port: int) -> None:
    path = tmp_path / ("deep" * 15) / ("deeper" * 10)
    path.parent.mkdir()
    keep = Keep.init(path)
    try:
        task = keep.create_task("deep", network="allow", private=[grant(keep, port)])
        assert fetch(task, port) == "hello /\n"
    finally:
        close(keep)


def test_a_keep_that_is_removed_takes_its_proxy_along(tmp_path: Path, port: int) -> None:
    keep = Keep.init(tmp_path / "keep")
    try:
        task = keep.create_task("short", network="allow", private=[grant(keep, port)])
        assert fetch(task, port) == "hello /\n"
        keep.engine.remove(container_of(task))
    finally:
        keep.close()
    assert len(proxies(keep.path)) == 1
    shutil.rmtree(keep.path)
    eventually(lambda: not proxies(keep.path))


def test_an_ended_task_gets_no_policy(keep: Keep, task: Task) -> None:
    task.complete()
    with pytest.raises(TaskRefused):
        keep.network(task.id).set("allow", allow=["example.org"])


class Relay(socketserver.BaseRequestHandler):
    """Passes a TCP connection on to the engine's socket."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect("/var/run/docker.sock")
            back = threading.Thread(target=self.copy, args=(engine, self.request), daemon=True)
            back.start()
            self.copy(self.request, engine)
            back.join()

    def copy(self, source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_an_engine_that_is_reached_over_a_network_reaches_nothing_of_this_machine(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = grant(keep, 8080)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Relay) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_address[1]}")
            before = keep.head().position
            with pytest.raises(NetworkUnavailable, match="a socket of this machine"):
                keep.create_task("far away", network="allow", private=[place])
            assert keep.head().position == before
            assert sidecar.chosen(keep)
            keep.engine._client.close()
            del keep.engine._client  # so that nothing is asked of it when the keep is closed
        finally:
            server.shutdown()
            serving.join()


def test_the_log_of_the_proxy_does_not_grow_without_bound(keep: Keep, open_task: Task) -> None:
    shell(open_task, "true")
    log = keep.path / "run" / "egress" / "proxy.log"
    with log.open("ab") as file:
        file.truncate(2 << 20)
    shell(open_task, "true")
    eventually(lambda: log.stat().st_size < 1 << 20)
