"""The way out by squid, on an engine that could do without: the keep's settings ask for it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker.errors
import pytest

from sandkeep.events import Event
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, agent, egress, image, isolation, sidecar, squid
from sandkeep.sandboxes.container import KEEP
from sandkeep.sandboxes.errors import NetworkUnavailable
from sandkeep.sandboxes.recipe import base_recipe

from ..conftest import close
from .registries import quiet
from .support import container_of, containers, engine, eventually, shell, text

pytestmark = pytest.mark.engine

SERVER = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")
        while self.path == "/endless":
            self.wfile.write(b"x")
            time.sleep(0.05)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
FETCH = """
import os, sys, urllib.error, urllib.request
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""
for place in sys.argv[1:]:
    try:
        with urllib.request.urlopen(place, timeout=60) as answer:
            print(answer.read().decode())
    except urllib.error.HTTPError as error:
        print(error.code)
    except OSError as error:
        print("403" if "403" in str(error) else error)
"""


PRIVATE = ("127.0.0.1", "169.254.169.254", "10.0.0.1", "198.18.0.1", "192.168.0.1")


def fetch(task: Task, *places: str) -> list[str]:
    """What a program in the sandbox gets from each."""
    return text(task.execute(["python3", "-c", FETCH, *places], timeout=120)).split()


def of(task: Task, *kinds: type[Event]) -> list[Any]:
    return [record.event for record in task.history() if isinstance(record.event, kinds)]


def networks(keep: Keep) -> list[str]:
    """The keep's networks in the engine."""
    with engine() as client:
        return [each["Id"] for each in client.api.networks(filters={"label": f"{KEEP}={keep.id}"})]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keep]:
    """A keep whose sandboxes have sidecars."""
    made = Keep.init(tmp_path_factory.mktemp("beside") / "keep", actor="tester")
    with (made.path / "keep.toml").open("a") as settings:
        settings.write("[network]\nsidecar = true\nopen = true\nprivate = ['127.0.0.1:80']\n")
    yield made
    close(made)
    for each in networks(made):
        with engine() as client:
            client.api.remove_network(each)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A web server in a container; its address and port."""
    with engine() as client:
        found = client.containers.run(
            image.ensure(client, base_recipe(), quiet).tag,
            ["python3", "-c", SERVER],
            name=f"test-{secrets.token_hex(4)}",
            detach=True,
        )
        try:
            found.reload()
            yield f"{found.attrs['NetworkSettings']['Networks']['bridge']['IPAddress']}:8000"
        finally:
            found.remove(force=True)


@pytest.fixture(scope="module", autouse=True)
def reachable() -> Iterator[None]:
    """As if the addresses of the engine's networks were public ones, since nothing else is there in a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(squid, "NEVER", tuple(each for each in squid.NEVER if each != "172.16.0.0/12"))
        yield


@pytest.fixture(scope="module")
def task(beside: Keep, server: str) -> Iterator[Task]:
    """A task that may reach the server, other tests' of this module too; ended at last, and nothing is left of it."""
    allow = [server, "*.example.net:8443", *(f"{each}:8000" for each in PRIVATE)]
    made = beside.create_task("reaches out", network="allow", allow=allow)
    yield made
    made.complete()
    made.clean_up()
    assert not list((beside.path / "run" / "egress").glob("*sidecar*"))
    assert networks(beside) == []
    assert containers(beside.id) == []


def test_a_command_reaches_what_is_listed_and_every_attempt_is_on_record(beside: Keep, task: Task, server: str) -> None:
    address = server.partition(":")[0]
    assert fetch(task, f"http://{server}/") == ["hello"]
    refused = (f"http://{address}:8001/", "http://evil.test/", "https://evil.test/", f"http://evil{server}/")
    assert fetch(task, *refused) == ["403"] * 4
    assert fetch(task, "http://example.net:8443/", "http://10.0.0.1:8000/") == ["403"] * 2
    eventually(lambda: len(of(task, ev.ConnectionDenied)) == 6)
    (allowed,), (closed,) = of(task, ev.ConnectionAllowed), of(task, ev.ConnectionClosed)
    assert (allowed.host, allowed.port, allowed.address) == (address, 8000, address)
    assert (closed.connection, closed.reason) == (allowed.connection, "ended")
    assert closed.sent > 50
    assert closed.received > len("hello")
    assert [(each.host, each.port, each.reason) for each in of(task, ev.ConnectionDenied)] == [
        (address, 8001, "port-not-listed"),
        ("evil.test", 80, "host-not-listed"),
        ("evil.test", 443, "host-not-listed"),
        ("", 0, "bad-request"),  # what ends in a number is no name
        ("example.net", 8443, "host-not-listed"),
        ("10.0.0.1", 8000, "not-public"),
    ]
    assert {each.actor for each in task.history() if each.type.startswith("Connection")} == {"egress-proxy"}
    assert beside.network(task.id).traffic().denied == 6


def test_private_addresses_are_refused_whatever_lists_them(task: Task) -> None:
    places = [*PRIVATE, "2130706433", "0x7f.1", "[::1]", "[::ffff:10.0.0.1]", "localhost"]
    assert fetch(task, *(f"http://{each}:8000/" for each in places)) == ["403"] * len(places)
    names = [each for each in places if ":" not in each]  # which this client does not put into brackets
    assert fetch(task, *(f"https://{each}:8000/" for each in names)) == ["403"] * len(names)


def test_more_than_a_log_should_hold_is_counted(beside: Keep, task: Task) -> None:
    before = beside.network(task.id).traffic().denied
    number = sidecar.MOST_EVENTS + 10
    assert fetch(task, *["http://flood.test/"] * number) == ["403"] * number
    eventually(lambda: beside.network(task.id).traffic().denied >= before + number)
    assert beside.network(task.id).traffic().denied - before - number < 30  # what others had asked for before
    assert len(of(task, ev.ConnectionDenied)) <= sidecar.MOST_EVENTS
    assert {host for each in of(task, ev.ConnectionsSummarised) for host in each.hosts} >= {"flood.test:80"}


def test_a_sandbox_beside_a_sidecar_is_closed(beside: Keep, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    # Packets that nobody answers are waited for; in a sandbox without a network there are none.
    hasty = isolation._PROBE.replace("WAIT_SECONDS = 1.0", "WAIT_SECONDS = 0.25")
    assert hasty != isolation._PROBE
    monkeypatch.setattr(isolation, "_PROBE", hasty)
    found = isolation.check(beside, task)
    assert [(each.way, each.what, each.seen) for each in found.attempts if each.open] == []
    assert any("eth0" in each.seen for each in found.attempts)


def test_a_sidecar_is_as_closed_as_it_can_be(beside: Keep, task: Task) -> None:
    shell(task, "true")
    known = sidecar.find(egress.folder(beside, task.id))
    assert known is not None
    assert "sidecar" not in shell(task, "ls -A /run/sandkeep-egress")  # or what is in there could hold our lock
    with engine() as client:
        found = client.containers.get(known.container)
        assert found.attrs["Config"]["User"] == "65534:65534"
        settings = found.attrs["HostConfig"]
        assert (settings["CapDrop"], settings["ReadonlyRootfs"]) == (["ALL"], True)
        assert settings["SecurityOpt"] == ["no-new-privileges"]
        assert (settings["PidsLimit"], settings["Memory"]) == (32, 128 << 20)
        assert found.exec_run(["/bin/busybox", "cat", "/proc/sys/net/ipv4/ip_forward"]).output == b"0\n"
        own = client.api.inspect_network(known.network)
        assert own["Internal"]
        assert own["IPAM"]["Config"][0]["Subnet"].endswith("/28")
        assert set(own["Containers"]) == {known.container, container_of(task)}


def test_a_change_holds_at_once_and_what_was_under_way_is_told(beside: Keep, task: Task, server: str) -> None:
    shell(task, "true")
    address, reach = server.partition(":")[0], beside.network(task.id)
    container, known = container_of(task), sidecar.find(egress.folder(beside, task.id))
    assert known is not None
    before = len(of(task, ev.ConnectionClosed)) + sum(each.allowed for each in of(task, ev.ConnectionsSummarised))
    with ThreadPoolExecutor(1) as pool:
        line = ["python3", "-c", FETCH, f"http://{server}/endless"]
        running = pool.submit(task.execute, line, timeout=120)
        with engine() as client:
            squids = client.containers.get(known.container)
            eventually(lambda: address.encode() in squids.exec_run(["/bin/busybox", "netstat", "-tn"]).output)
        reach.set("none")
        running.result()
    after = len(of(task, ev.ConnectionClosed)) + sum(each.allowed for each in of(task, ev.ConnectionsSummarised))
    assert after == before + 1
    assert "proxy" not in shell(task, "env").lower()
    assert "eth0" not in shell(task, "cat /proc/net/dev")
    assert (networks(beside), containers(beside.id)) == ([], [container])
    reach.set("allow", allow=["example.org"])
    assert fetch(task, f"http://{server}/") == ["403"]
    assert container_of(task) == container


def test_what_is_left_of_a_sandbox_that_was_lost_is_ended(beside: Keep, task: Task) -> None:
    assert fetch(task, "http://lost.test/") == ["403"]
    known = sidecar.find(egress.folder(beside, task.id))
    assert known is not None
    assert beside.reconcile(again=True) == []
    assert len(containers(beside.id)) == 2
    beside.engine.remove(container_of(task))
    said = beside.reconcile(again=True)
    assert len([line for line in said if "orphaned" in line]) == 2
    assert (networks(beside), containers(beside.id)) == ([], [])
    told = [each.host for each in of(task, ev.ConnectionDenied)]
    told += [host.partition(":")[0] for each in of(task, ev.ConnectionsSummarised) for host in each.hosts]
    assert "lost.test" in told
    assert fetch(task, "http://evil.test/") == ["403"]
    again = sidecar.find(egress.folder(beside, task.id))
    assert again is not None
    assert again.container != known.container
    beside.engine.remove(again.container)
    assert fetch(task, "http://evil.test/") == ["403"]


def test_what_a_crash_leaves_half_made_is_ended(beside: Keep, task: Task) -> None:
    shell(task, "true")
    known = sidecar.find(egress.folder(beside, task.id))
    assert known is not None
    image_id = beside.images.resolve("squid")[1]
    half = sidecar._start(beside, task.id, image_id, known.policy, known.sandbox)  # and then nobody writes it down
    with beside.working(task.id):
        assert beside.reconcile(again=True) == []  # somebody is at work
    said = beside.reconcile(again=True)
    assert [line.split()[-1] for line in said] == [half.container[:12], half.network[:12]]
    assert networks(beside) == [known.network]
    assert sorted(containers(beside.id)) == sorted((known.container, container_of(task)))
    assert fetch(task, "http://evil.test/") == ["403"]


def test_what_needs_a_socket_of_this_machine_is_refused(beside: Keep, task: Task) -> None:
    reach, before = beside.network(task.id), beside.network(task.id).policy()
    for asked in ({"services": [f"db=task/{task.id}:1"]}, {"allow": ["a.example"], "private": ["127.0.0.1:80"]}):
        with pytest.raises(NetworkUnavailable, match="socket"):
            reach.set("allow" if "allow" in asked else "services", **asked)
    assert reach.policy() == before


def test_a_network_that_overlaps_is_not_taken(beside: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([7, 7, 8])
    monkeypatch.setattr(secrets, "randbelow", lambda most: next(numbers))
    with engine() as client:
        labels = {KEEP: "nobody"}
        first, address = sidecar._network(client, f"test-{beside.id}", labels)
        try:
            second, other = sidecar._network(client, f"test-{beside.id}", labels)
            client.api.remove_network(second)
        finally:
            client.api.remove_network(first)
        with pytest.raises(docker.errors.NotFound):
            client.api.inspect_network(second)
    assert (address, other) == ("198.18.0.114", "198.18.0.130")


def test_an_agent_that_is_reached_through_the_engine_is_given_a_sidecar(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = keep.create_task("far away", network="allow", allow=["example.org"])
    assert shell(task, "echo $http_proxy") == "http://127.0.0.1:3128\n"
    keep.engine.relays = True  # as when an agent was too busy to answer in time
    assert shell(task, "echo $http_proxy") == "http://127.0.0.1:3128\n"
    monkeypatch.setattr(agent, "connect", lambda folder, sandbox: None)
    assert shell(task, "echo $http_proxy").startswith("http://198.1")
    task.complete()
    task.clean_up()
    assert (networks(keep), containers(keep.id)) == ([], [])
