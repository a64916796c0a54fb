"""Services, from a program in one sandbox that knows nothing of proxies to one in another, or in a container."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, agent, image
from sandkeep.sandboxes.errors import NetworkUnavailable, PolicyDenied, TaskNotFound, TaskRefused
from sandkeep.sandboxes.recipe import base_recipe

from .registries import quiet
from .support import Cli, container_of, engine, eventually, shell, status, text

pytestmark = pytest.mark.engine

SERVER = """
import socketserver, sys

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"greetings\\n")
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


server = Server((sys.argv[1], int(sys.argv[2])), Handler)
open("/tmp/serving", "w").close()
server.serve_forever()
"""
TALK = """
import socket, sys

try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as server:
        heard, data = b"", b"x" * int(sys.argv[3])
        greeting = server.makefile("rb").readline()
        for start in range(0, len(data), 1 << 16):
            server.sendall(data[start : start + (1 << 16)])
            while len(heard) < min(start + (1 << 16), len(data)):
                heard += server.recv(1 << 16)
        server.shutdown(socket.SHUT_WR)
        assert heard == data and server.recv(1) == b""
        print(greeting.decode().strip())
except OSError as error:
    print(type(error).__name__)
"""
STAY = """
import socket, time
server = socket.create_connection(("db", 5432), timeout=60)
server.recv(100)
open("/workspace/connected", "w").close()
try:
    print(len(server.recv(1)))
except OSError:
    print(0)
"""


def serve(task: Task, port: int, address: str = "127.0.0.1") -> None:
    """Have a server run in the task's sandbox until that is ended, and wait until it listens."""
    started = 'rm -f /tmp/serving; python3 -c "$0" "$@" & until test -e /tmp/serving; do sleep 0.01; done'
    done = task.execute(["sh", "-c", f"({started}) >/dev/null 2>&1", SERVER, address, str(port)], timeout=60)
    assert done.exit_code == 0


def talk(task: Task, name: str, port: int, size: int = 10) -> str:
    """What a program in the task's sandbox hears first from a server at `name`, or the error that it meets."""
    return text(task.execute(["python3", "-c", TALK, name, str(port), str(size)], timeout=120)).strip()


def of(task: Task, *kinds: type[Event]) -> list[Any]:
    return [record.event for record in task.history() if isinstance(record.event, kinds)]


def denials(task: Task) -> list[tuple[str, int, str]]:
    return [(each.host, each.port, each.reason) for each in of(task, ev.ConnectionDenied)]


@pytest.fixture(scope="module")
def db(shared_keep: Keep) -> Task:
    """A task whose sandbox serves ports 5432 and 80 and offers the first."""
    made = shared_keep.create_task("serves")
    for port in (5432, 80):
        serve(made, port)
    shared_keep.network(made.id).offer([5432])
    return made


@pytest.fixture
def client(shared_keep: Keep, db: Task) -> Iterator[Task]:
    """A task that may reach that as `db`."""
    made = shared_keep.create_task("asks", network="services", services=[f"db=task/{db.id[:8]}:5432"])
    yield made
    made.complete()
    made.clean_up()


def test_a_plain_program_talks_to_a_service_by_its_name(shared_keep: Keep, db: Task, client: Task) -> None:
    size = 3_000_000
    assert talk(client, "db", 5432, size) == "greetings"
    (closed,) = eventually(lambda: of(client, ev.ConnectionClosed))
    (allowed,) = of(client, ev.ConnectionAllowed)
    assert (allowed.host, allowed.port, allowed.address) == ("db", 5432, f"task/{db.id}")
    assert (closed.connection, closed.sent, closed.received) == (allowed.connection, size, size + len("greetings\n"))
    assert closed.reason == "ended"
    traffic = shared_keep.network(client.id).traffic()
    assert (traffic.allowed, traffic.denied, traffic.sent) == (1, 0, size)
    assert shell(client, "echo $no_proxy") == "localhost,127.0.0.1,::1,db\n"
    assert shell(client, "cat /etc/hosts").endswith("127.77.0.1\tdb\n")


def test_many_connections_at_once_are_kept_apart(client: Task) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: talk(client, "db", 5432, 1000 * number + 1), range(8)))
    assert found == ["greetings"] * 8


def test_only_what_is_named_and_offered_is_reached(shared_keep: Keep, db: Task, client: Task) -> None:
    assert talk(client, "db", 80) == "ConnectionRefusedError"  # nobody listens there, so nothing leaves the sandbox
    assert talk(client, "web", 80) == "gaierror"
    services = [f"db=task/{db.id}:80", f"late=task/{db.id}:5432"]
    shared_keep.network(client.id).set("services", services=services)
    assert talk(client, "late", 5432) == "greetings"
    assert talk(client, "db", 80) == "ConnectionResetError"
    assert denials(client) == [("db", 80, "not-offered")]
    assert talk(db, "127.0.0.1", 80) == "greetings"  # it is there


def test_what_is_withdrawn_is_cut(shared_keep: Keep, db: Task, client: Task) -> None:
    offers = shared_keep.network(db.id)
    with ThreadPoolExecutor(1) as pool:
        staying = pool.submit(client.execute, ["python3", "-c", STAY], timeout=120)
        eventually(lambda: (client.workspace / "connected").exists())
        offers.offer([80])
        assert text(staying.result()) == "0\n"
    (closed,) = eventually(lambda: of(client, ev.ConnectionClosed))
    assert closed.reason == "policy-changed"
    assert talk(client, "db", 5432) == "ConnectionResetError"
    offers.offer([5432])
    assert offers.offers() == (5432,)
    assert talk(client, "db", 5432) == "greetings"


def test_a_program_in_the_sandbox_gets_no_further_than_its_policy(client: Task, db: Task) -> None:
    ask = """
import socket, sys
with socket.socket(socket.AF_UNIX) as proxy:
    proxy.connect("/run/sandkeep-egress/proxy.sock")
    proxy.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\\r\\nHost: {sys.argv[1]}\\r\\n\\r\\n".encode())
    print(proxy.recv(1000).split(b"\\r\\n")[0].decode())
"""
    for asked in ("db:80", f"{db.id}:5432", "127.77.0.1:5432", "127.0.0.1:5432", "example.org:443"):
        assert text(client.execute(["python3", "-c", ask, asked])) == "HTTP/1.1 403 Forbidden\n"
    assert text(client.execute(["python3", "-c", ask, "DB.:5432"])) == "HTTP/1.1 200 Connection established\n"
    assert len(denials(client)) == 5


def test_services_go_with_hosts_that_are_allowed(shared_keep: Keep, db: Task, client: Task) -> None:
    services = [f"db=task/{db.id}:5432"]
    shared_keep.network(client.id).set("allow", allow=["example.org"], services=services)
    assert talk(client, "db", 5432) == "greetings"
    refused = client.execute(["git", "ls-remote", "https://evil.test/repository"])
    assert b"403" in (refused.stderr.data or b"")
    assert denials(client) == [("evil.test", 443, "host-not-listed")]


def test_the_targets_have_to_be_there_when_they_are_named(shared_keep: Keep, client: Task) -> None:
    with pytest.raises(TaskNotFound):
        shared_keep.network(client.id).set("services", services=["db=task/000000000000:5432"])
    with pytest.raises(PolicyDenied, match="containers"):
        shared_keep.network(client.id).set("services", services=["db=container/pg:5432"])
    assert talk(client, "db", 5432) == "greetings"


def test_a_port_that_a_program_has_taken_is_told(shared_keep: Keep, db: Task) -> None:
    task = shared_keep.create_task("serves itself")
    serve(task, 5432, "0.0.0.0")
    with pytest.raises(NetworkUnavailable, match="that of a service"):
        shared_keep.network(task.id).set("services", services=[f"db=task/{db.id}:5432"])
    with pytest.raises(NetworkUnavailable, match="that of a service"):
        task.execute(["true"])
    task.stop()
    assert talk(task, "db", 5432) == "greetings"
    task.complete()
    task.clean_up()


# ---- what becomes of the other side


def test_a_service_that_restarts_is_found_again(shared_keep: Keep) -> None:
    server = shared_keep.create_task("restarts")
    services = [f"db=task/{server.id}:5432"]
    task = shared_keep.create_task("asks", network="services", services=services)
    shared_keep.network(server.id).offer([5432])
    assert talk(task, "db", 5432) == "ConnectionResetError"  # it has no sandbox yet
    server.start_sandbox()
    assert talk(task, "db", 5432) == "ConnectionResetError"  # it has no server yet
    serve(server, 5432)
    assert talk(task, "db", 5432) == "greetings"
    first = container_of(server)
    server.stop()
    assert talk(task, "db", 5432) == "ConnectionResetError"
    serve(server, 5432)
    assert container_of(server) != first
    assert talk(task, "db", 5432) == "greetings"
    server.pause()
    assert talk(task, "db", 5432) == "ConnectionResetError"
    server.resume()
    assert talk(task, "db", 5432) == "greetings"
    assert [each[2] for each in denials(task)] == ["not-running", "unreachable", "not-running", "not-running"]
    server.complete()
    assert shared_keep.network(server.id).offers() == ()
    assert talk(task, "db", 5432) == "ConnectionResetError"
    assert denials(task)[-1][2] == "not-offered"
    with pytest.raises(TaskRefused):
        shared_keep.network(server.id).offer([5432])
    for each in (task, server):
        if each is task:
            each.complete()
        each.clean_up()


def test_a_sandbox_that_offers_ports_is_not_frozen_and_goes_on_if_it_was(shared_keep: Keep) -> None:
    server = shared_keep.create_task("idles")
    serve(server, 5432)
    assert server.rest()
    assert status(server) == "paused"
    shared_keep.network(server.id).offer([5432])
    assert status(server) == "running"
    assert not server.rest()
    shared_keep.network(server.id).offer([])
    assert server.rest()
    server.complete()
    server.clean_up()


@pytest.fixture
def outside(shared_keep: Keep) -> Iterator[str]:
    """A container that somebody runs, by its name."""
    with engine() as client:
        found = client.containers.run(
            image.ensure(client, base_recipe(), quiet).tag,
            ["python3", "-c", SERVER, "0.0.0.0", "5432"],
            name=f"test-{secrets.token_hex(4)}",
            detach=True,
        )
        try:
            yield str(found.name)
        finally:
            found.remove(force=True)


def test_a_container_that_the_keep_grants_is_reached(
    shared_keep: Keep, outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = shared_keep.path / "keep.toml"
    before = settings.read_text()
    with engine() as found:
        number = str(found.containers.get(outside).id)
    granted = [f"{each}:5432" for each in (outside, number[:12], number[:6])]
    settings.write_text(f"{before}[network]\ncontainers = {granted}\n")
    try:
        places = {"pg": outside, "same": number[:12], "short": number[:6]}
        services = [f"{name}=container/{place}:5432" for name, place in places.items()]
        task = shared_keep.create_task("asks a container", network="services", services=services)
        assert talk(task, "pg", 5432) == talk(task, "same", 5432) == "greetings"
        assert {each.address for each in of(task, ev.ConnectionAllowed)} == {f"container/{number}"}
        assert talk(task, "short", 5432) == "ConnectionResetError"  # which could be the beginning of another's id
        with engine() as found:
            found.containers.get(outside).restart(timeout=0)
        eventually(lambda: talk(task, "pg", 5432) == "greetings")
        with engine() as found:
            found.containers.get(outside).kill()
        known = len(denials(task))
        assert talk(task, "pg", 5432) == "ConnectionResetError"
        settings.write_text(before)
        assert talk(task, "same", 5432) == "ConnectionResetError"
        assert denials(task)[known:] == [("pg", 5432, "not-running"), ("same", 5432, "not-granted")]
    finally:
        settings.write_text(before)
    task.complete()
    task.clean_up()


# ---- the agent's part


@pytest.mark.parametrize("asked", [(0, 4), (65536, 4), (-1, 6), ("80", 4), (80.5, 4), (None, 4), (80, 5), (80, [])])
def test_nonsense_about_ports_does_not_hurt_the_agent(db: Task, asked: tuple[Any, Any]) -> None:
    connection = agent.greet(db.sandbox.spool, container_of(db))
    assert connection is not None
    with connection, pytest.raises(agent.Broken):
        connection.dial(*asked, 10)
    again = agent.greet(db.sandbox.spool, container_of(db))
    assert again is not None
    with again, again.dial(5432, 4, 10) as made:
        assert made.getpeername() == ("127.0.0.1", 5432)
        made.settimeout(10)
        assert made.recv(100) == b"greetings\n"


@pytest.mark.parametrize("kind", ["file", "datagrams", "nothing", "two"])
def test_what_an_agent_hands_over_is_looked_at(kind: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as file, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        given = {"file": [file.fileno()], "datagrams": [datagrams.fileno()], "nothing": [], "two": [file.fileno()] * 2}
        message = b'{"event": "connected"}'
        socket.send_fds(theirs, [len(message).to_bytes(4, "big") + b"\0" + message], given[kind])
        with pytest.raises(agent.Broken, match="hands over no connection"):
            agent.Connection(ours, "x").dial(80, 4, 10)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_connection_that_nobody_takes_is_given_up(db: Task) -> None:
    full = "import socket, time; s = socket.create_server(('127.0.0.1', 9), backlog=0); open('/tmp/full', 'w');"
    start = 'python3 -c "$0" >/dev/null 2>&1 & until test -e /tmp/full; do sleep 0.01; done'
    shell(db, start.replace("$0", f"{full} time.sleep(600)"))
    made: list[socket.socket] = []
    ended = threading.Event()
    connection = agent.greet(db.sandbox.spool, container_of(db))
    assert connection is not None
    with connection:
        while not ended.is_set() and len(made) < 20:
            try:
                made.append(connection.dial(9, 4, 0.3))
            except TimeoutError:
                ended.set()
    for each in made:
        each.close()
    assert ended.is_set()


# ---- the command line


def test_the_command_lines_verbs(keep: Keep, cli: Cli) -> None:
    keep.close()
    server = cli("create-task", "serves", "--json").json["id"]
    assert cli("offer-ports", server, "5432", "80", "--json").json == {"offers": [5432, 80]}
    assert cli("offer-ports", server, "5432").stdout == b"offers 5432\n"
    assert cli("network-policy", server).stdout.startswith(b"none\noffers 5432\n")
    service = f"db=task/{server}:5432"
    made = cli("create-task", "asks", "--network", "services", "--service", f"db=task/{server[:6]}:5432", "--json")
    shown = cli("network-policy", made.json["id"], "--json").json
    assert (shown["network"], shown["services"], shown["offers"]) == ("services", [service], [])
    again = cli("network-policy", made.json["id"], "--service", f"web=task/{server}:80")
    assert again.stdout.startswith(f"services\n  web=task/{server}:80\n0 allowed".encode())
    both = cli("network-policy", made.json["id"], "--allow", "example.org", "--service", service, "--json").json
    assert (both["network"], both["allow"], both["services"]) == ("allow", ["example.org"], [service])
    cli("network-policy", made.json["id"], "services").refused("bad-input", 2)
    cli("network-policy", made.json["id"], "--service", "db").refused("bad-input", 2)
    cli("network-policy", made.json["id"], "--service", "db=task/00000000:1").refused("task-not-found", 2)
    cli("network-policy", made.json["id"], "--service", "db=container/x:1").refused("policy-denied", 1)
    cli("offer-ports", server, "70000").refused("bad-input", 2)
    cli("offer-ports", server, "http").refused("bad-usage", 2)
    assert cli("offer-ports", server).stdout == b"offers nothing\n"
