from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from sandkeep.sandboxes import Keep, Task, isolation
from sandkeep.sandboxes.errors import IsolationUnknown
from sandkeep.sandboxes.guest import filter as guest_filter
from sandkeep.sandboxes.guest import probe
from sandkeep.sandboxes.isolation import Attempt

from .support import Cli, containers, engine, text

SUBNET = "10.213.77."
EVERY_WAY = [way for way, _ in probe.WAYS]


def opened(attempts: tuple[Attempt, ...]) -> set[str]:
    return {each.way for each in attempts if each.open}


@pytest.mark.engine
def test_every_way_out_of_a_sandbox_is_tried_and_closed(keep: Keep) -> None:
    found = isolation.check(keep)
    assert list(dict.fromkeys(each.way for each in found.attempts)) == [*EVERY_WAY, "heard on the host"]
    assert len(found.attempts) > 40
    assert opened(found.attempts) == set()
    assert found.closed
    assert containers(keep.id) == []
    assert [task.title for task in keep.tasks()] == []


@pytest.mark.engine
def test_a_network_policy_opens_none_of_them(keep: Keep) -> None:
    task = keep.create_task("reaches out", network="allow", allow=["example.org", "*.example.net"])
    found = isolation.check(keep, task)
    assert opened(found.attempts) == set()
    refused = [each for each in found.attempts if each.way == "egress proxy"]
    assert len(refused) > 3
    assert {each.seen for each in refused} == {"HTTP/1.1 403 Forbidden"}


@pytest.mark.engine
def test_what_a_sandbox_does_not_tell_counts_as_open(
    shared_keep: Keep, shared_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_PROBE", "print('[]')")
    found = isolation.check(shared_keep, shared_task)
    assert not found.closed
    assert opened(found.attempts) == set(EVERY_WAY)
    monkeypatch.setattr(isolation, "_PROBE", "print('all is well')")
    with pytest.raises(IsolationUnknown):
        isolation.check(shared_keep, shared_task)


@pytest.mark.engine
def test_a_cache_that_the_task_was_given_is_no_way_out(keep: Keep) -> None:
    with (keep.path / "keep.toml").open("a") as file:
        file.write("[caches]\npip = {}\n")
    found = isolation.check(keep, keep.create_task("t", caches=["pip"]))
    assert opened(found.attempts) == set()


def probed(keep: Keep, **options: Any) -> tuple[set[str], set[str]]:
    """The ways that are open from a container as root, and what the host hears. It has mounts of its own."""
    image = keep.images.resolve()[1]
    with isolation._Listeners() as listeners, engine() as client:
        asked = json.dumps(listeners.asked() | {"caches": [], "empty": []})
        command = ["python3", "-I", "-S", "-c", Path(probe.__file__).read_text(), asked]
        made = client.containers.create(image, command, user="0:0", **options)
        try:
            made.start()
            assert made.wait(timeout=120)["StatusCode"] == 0
            found = {each["way"] for each in json.loads(made.logs(stderr=False)) if each["open"]}
        finally:
            made.remove(force=True)
    return found, listeners.heard


@pytest.fixture
def bridge(shared_keep: Keep) -> Iterator[str]:
    """A network of the engine's usual kind, and of our own; its id."""
    pool = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet=f"{SUBNET}0/28")])
    with engine() as client:
        made = client.networks.create(f"sandkeep-test-{shared_keep.id}", driver="bridge", ipam=pool)
        try:
            yield str(made.id)
        finally:
            made.remove()


@pytest.mark.engine
def test_a_container_on_a_network_of_the_usual_kind_is_found_open(shared_keep: Keep, bridge: str) -> None:
    found, heard = probed(shared_keep, network=bridge)
    assert {"host address", "interfaces and routes", "raw and packet sockets"} <= found
    assert not {"host loopback", "abstract socket"} & found
    assert any(f"connection from {SUBNET}" in each for each in heard)
    assert any(f"datagram from {SUBNET}" in each for each in heard)


@pytest.mark.engine
def test_a_container_on_the_hosts_network_and_with_its_privileges_is_found_open(shared_keep: Keep) -> None:
    privileges = {"cap_add": ["SYS_ADMIN"], "security_opt": ["seccomp=unconfined", "apparmor=unconfined"]}
    found, heard = probed(shared_keep, network_mode="host", **privileges)
    assert {"host address", "host loopback", "abstract socket", "interfaces and routes", "mounts and devices"} <= found
    assert "a connection from a unix socket" in heard


def test_an_attempt_that_fails_counts_as_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(task: object) -> probe.Found:
        yield "first", False, "closed"
        raise RuntimeError("cannot be tried")

    monkeypatch.setattr(probe, "WAYS", (("some way", broken),))
    monkeypatch.setattr(sys, "argv", ["probe.py", "{}"])
    probe.main()
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["way"], found["open"]) == ("some way", True)


TRY = """
import socket
libc = ctypes.CDLL(None, use_errno=True)

def outcome(call):
    try:
        return "made" if call() is not None else ""
    except OSError as error:
        return errno.errorcode[error.errno]

def ring():
    if libc.syscall(425, 8, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    return 1

install()
print(outcome(lambda: socket.socket(AF_VSOCK, socket.SOCK_STREAM)), outcome(ring),
      *(outcome(lambda: socket.socket(family, kind)) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)), flush=True)
"""
CHILD = "import os; os.execvp('python3', ['python3', '-c', 'import socket; socket.socket(40, 1)'])"


@pytest.mark.engine
def test_the_filter_closes_the_way_to_the_hypervisor_for_all_that_comes_of_a_process(shared_task: Task) -> None:
    code = Path(guest_filter.__file__).read_text()
    assert text(shared_task.execute(["python3", "-I", "-S", "-c", code + TRY])).split() == [
        "EAFNOSUPPORT",
        "ENOSYS",
        *["made"] * 6,
    ]
    child = shared_task.execute(["python3", "-I", "-S", "-c", CHILD])
    assert child.exit_code == 1
    assert b"Address family not supported" in (child.stderr.data or b"")


@pytest.mark.engine
def test_the_command_lines_verbs(keep: Keep, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    keep.close()
    made = cli("create-task", "reaches out", "--network", "allow", "--allow", "*.Example.org", "--json").json["id"]
    shown = cli("network-policy", made, "--json").json
    assert shown == {
        "network": "allow",
        "allow": ["*.example.org"],
        "private": [],
        "services": [],
        "offers": [],
        "allowed": 0,
        "denied": 0,
        "sent_bytes": 0,
        "received_bytes": 0,
    }
    assert cli("network-policy", made, "--allow", "example.org:22", "--json").json["allow"] == ["example.org:22"]
    assert cli("network-policy", made).stdout.startswith(b"allow\n  example.org:22\n0 allowed, ")
    assert cli("network-policy", made, "none", "--json").json["network"] == "none"
    cli("network-policy", made, "open").refused("policy-denied", 1)
    cli("network-policy", made, "allow", "--private", "127.0.0.1:80").refused("policy-denied", 1)
    cli("network-policy", made, "allow", "--allow", "*").refused("bad-input", 2)
    cli("create-task", "x", "--network", "some").refused("bad-input", 2)
    with (keep.path / "keep.toml").open("a") as settings:
        settings.write("[network]\nopen = true\nprivate = ['127.0.0.1:9']\n")
    shown = cli("network-policy", made, "open", "--private", "127.0.0.1:9", "--json").json
    assert (shown["network"], shown["private"]) == ("open", ["127.0.0.1:9"])
    assert b"127.0.0.1:9  private" in cli("network-policy", made).stdout
    answer = cli("isolation-check", made, "--json")
    document = answer.json
    assert document["task"] == made
    assert {each["way"] for each in document["attempts"] if each["open"]} == set()
    assert (document["closed"], answer.status) == (True, 0)
    assert b"egress proxy" in cli("isolation-check", made).stdout
    assert cli("complete-task", made).status == cli("cleanup-task", made).status == 0
    with (keep.path / "keep.toml").open("a") as settings:
        settings.write("closed = true\n")
    cli("network-policy", made, "none").refused("keep-format", 1)
    assert os.fspath(keep.path / "keep.toml").encode() in cli("network-policy", made, "none").stderr


def test_the_hosts_addresses_are_found() -> None:
    found = isolation._addresses()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe_socket:
        probe_socket.connect(("192.0.2.1", 9))
        assert probe_socket.getsockname()[0] in found
    assert not any(each.startswith("127.") or each == "::1" for each in found)
