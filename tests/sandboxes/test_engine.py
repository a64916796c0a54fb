"""What is really in force in a sandbox, read from inside it and from the engine; and what the engine refuses."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import pytest

from sandkeep.projections import TaskState
from sandkeep.sandboxes import Keep, Task, guest, interpreter, isolation, workspace
from sandkeep.sandboxes.container import FORM, INTENT, KEEP, TASK
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import EngineFailed, EngineUnreachable, ImageNotFound
from sandkeep.sandboxes.limits import LIMITS

from .support import Json, container_of, containers, engine, eventually, shell, text, types

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    with engine() as client:
        yield client


@pytest.fixture(scope="module")
def inspected(shared_task: Task, client: docker.DockerClient) -> Json:
    """What the engine says of the container."""
    return client.api.inspect_container(container_of(shared_task))


@pytest.fixture(scope="module")
def status(shared_task: Task) -> dict[str, str]:
    """The kernel's status of a command in the sandbox."""
    lines = shell(shared_task, "cat /proc/self/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


# ---- from inside


@pytest.mark.parametrize("kind", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_no_command_has_any_capability(status: dict[str, str], kind: str) -> None:
    assert int(status[kind], 16) == 0


def test_a_command_can_gain_no_privileges_and_is_filtered(status: dict[str, str]) -> None:
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"


def test_a_command_is_the_owner_of_the_workspace_and_not_root(status: dict[str, str], shared_task: Task) -> None:
    uid, gid = workspace.owner()
    assert set(status["Uid"].split()) == {str(uid)} != {"0"}
    assert set(status["Gid"].split()) == {str(gid)}
    assert status["Groups"].split() in ([], [str(gid)])
    shell(shared_task, "echo mine >/workspace/owned")
    assert (shared_task.workspace / "owned").stat().st_uid == uid


@pytest.mark.parametrize(
    "call", ["mount(b'none', b'/tmp', b'tmpfs', 0, None)", "unshare(0x10000000)", "chroot(b'/tmp')", "setuid(0)"]
)
def test_system_calls_that_only_the_host_needs_are_refused(shared_task: Task, call: str) -> None:
    code = f"import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.{call}, ctypes.get_errno())"
    assert text(shared_task.execute(["python3", "-c", code])) == "-1 1\n"


def test_there_is_no_network_but_loopback(shared_task: Task) -> None:
    lines = shell(shared_task, "cat /proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]
    code = "import socket; socket.create_connection(('1.1.1.1', 53), 5)"
    result = shared_task.execute(["python3", "-c", code])
    assert result.exit_code == 1
    assert b"Network is unreachable" in (result.stderr.data or b"")


@pytest.mark.parametrize(
    "folder", ["/", "/etc", "/usr/bin", "/var/tmp", "/home", "/memory", "/run", "/dev", "/proc/sys"]
)
def test_nothing_can_be_written_outside_the_workspace(shared_task: Task, folder: str) -> None:
    assert shared_task.execute(["touch", f"{folder}/new"]).exit_code == 1


def test_the_root_and_the_memory_folder_are_mounted_read_only(shared_task: Task) -> None:
    mounts = {
        line.split()[1]: line.split()[3].split(",") for line in shell(shared_task, "cat /proc/mounts").splitlines()
    }
    assert "ro" in mounts["/"]
    assert "ro" in mounts["/memory"]
    assert "rw" in mounts["/workspace"]
    assert {"rw", "nosuid", "nodev"} <= set(mounts["/tmp"])


def test_memory_is_seen_as_the_host_writes_it(shared_task: Task) -> None:
    shared_task._keep.trailing.wait(shared_task.id)  # or the page is written over what follows
    (shared_task.folder / "memory" / "plan.md").write_text("the plan")
    assert shell(shared_task, "cat /memory/plan.md") == "the plan"
    assert shared_task.execute(["rm", "-f", "/memory/plan.md"]).exit_code == 1


def test_an_init_process_reaps_orphans(shared_task: Task) -> None:
    shell(shared_task, "(sleep 0.01 &)")
    states = "cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*(\\(.*\\)) \\(.\\).*/\\1:\\2/'"
    assert "python3:S" in shell(shared_task, states).split()
    eventually(lambda: not [each for each in shell(shared_task, states).split() if each.startswith("sleep:")])


def test_the_environment_holds_nothing_of_the_host(keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = {"proxies": {"default": {"httpProxy": "http://user:secret@proxy:1"}}}
    (tmp_path / "config.json").write_text(json.dumps(proxy))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("SECRET", "of the host")
    names = {line.split("=")[0] for line in shell(keep.create_task("t"), "env").splitlines()}
    assert names <= {"HOSTNAME", "HOME", "PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}


def test_the_temporary_folder_can_be_written_to_and_run_from(shared_task: Task) -> None:
    assert shell(shared_task, "cp /bin/true /tmp/t && /tmp/t && echo $HOME") == "/tmp\n"


def test_the_number_of_processes_is_limited(task: Task) -> None:
    code = """
import os, sys, time
made = 0
try:
    while made < 2000:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        made += 1
except BlockingIOError:
    pass
print(made)
"""
    assert LIMITS.pids - 20 < int(text(task.execute(["python3", "-c", code]))) < LIMITS.pids


def test_memory_is_limited_and_only_the_command_is_killed(task: Task) -> None:
    code = f"x = bytearray({LIMITS.memory_bytes}); x[::4096] = b'x' * len(x[::4096])"
    assert task.execute(["python3", "-c", code]).exit_code in (1, 137)
    assert shell(task, "echo alive") == "alive\n"


# ---- from the engine


def test_the_engine_was_told_of_every_limit(inspected: Json) -> None:
    found = inspected["HostConfig"]
    assert found["CapDrop"] == ["ALL"]
    assert found["CapAdd"] == ["KILL", "SETGID", "SETPCAP", "SETUID"]
    assert not found["Privileged"]
    assert found["SecurityOpt"] == ["no-new-privileges"]
    assert found["NetworkMode"] == "none"
    assert found["ReadonlyRootfs"] is True
    assert found["Init"] is False
    assert found["PidsLimit"] == LIMITS.pids
    assert found["Memory"] == found["MemorySwap"] == LIMITS.memory_bytes
    assert found["NanoCpus"] == min(LIMITS.nano_cpus, (os.cpu_count() or 1) * 10**9)
    assert found["LogConfig"]["Type"] == "none"
    assert found["RestartPolicy"]["Name"] in ("", "no")
    assert not found["PidMode"]
    assert found["IpcMode"] in ("private", "shareable")
    assert not found["Devices"]
    assert not found["PortBindings"]
    assert f"size={LIMITS.tmp_bytes}" in found["Tmpfs"]["/tmp"]


def test_only_the_folders_of_the_task_are_mounted(inspected: Json, shared_keep: Keep, shared_task: Task) -> None:
    found = {mount["Destination"]: (mount["Source"], mount["RW"]) for mount in inspected["Mounts"]}
    assert found == {
        "/workspace": (str(shared_task.workspace), True),
        "/memory": (str(shared_task.folder / "memory"), False),
        "/run/sandkeep/spool": (str(shared_keep.path / "run" / "spool" / shared_task.id), True),
        "/run/sandkeep/agent": (str(guest.install(shared_keep.path / "run")), False),
        "/run/sandkeep-egress": (str(shared_keep.path / "run" / "egress" / shared_task.id), False),
        "/etc/hosts": (str(shared_keep.path / "run" / "egress" / shared_task.id / "hosts"), False),
    }


def test_the_container_says_whose_it_is(inspected: Json, shared_keep: Keep, shared_task: Task) -> None:
    labels = inspected["Config"]["Labels"]
    assert (labels[KEEP], labels[TASK]) == (shared_keep.id, shared_task.id)
    assert labels[INTENT] in [getattr(record.event, "intent", None) for record in shared_task.history()]


# ---- images


def import_image(client: docker.DockerClient, tag: str, *changes: str, base: str | None = None) -> None:
    """Make an image without asking any registry: on `base`, or from nothing."""
    if base is None:
        archive = io.BytesIO()
        tarfile.open(fileobj=archive, mode="w").close()
        name, _, version = tag.partition(":")
        client.api.import_image_from_data(archive.getvalue(), repository=name, tag=version)
        return
    dockerfile = io.BytesIO("\n".join([f"FROM {base}", *changes]).encode())
    for answer in client.api.build(fileobj=dockerfile, tag=tag, rm=True, decode=True):
        assert "error" not in answer, answer


@pytest.fixture
def odd_image(client: docker.DockerClient, shared_task: Task) -> Iterator[str]:
    """An image with settings of its own for everything that we set."""
    changes: tuple[str, ...] = (
        "USER root",
        'ENTRYPOINT ["false"]',
        'CMD ["x"]',
        "WORKDIR /etc",
        "STOPSIGNAL SIGUSR1",
        "EXPOSE 80",
    )
    changes = (*changes, "VOLUME /data /run /tmp /workspace /var/lib/x/../y", "ONBUILD RUN false", "ENV PYTHONPATH=/x")
    changes = (
        *changes,
        "HEALTHCHECK --interval=1s CMD id -u >>/workspace/health",
        f"LABEL {KEEP}=other {TASK}=x {FORM}=shell",
    )
    tag = "sandkeep-test/odd:1"
    import_image(client, tag, *changes, base=shared_task.state.image)
    yield tag
    client.images.remove(tag, force=True)


def volumes(client: docker.DockerClient) -> set[str]:
    return {str(volume.id) for volume in client.volumes.list()}


def test_what_an_image_says_does_not_loosen_the_defaults(
    keep: Keep, odd_image: str, client: docker.DockerClient
) -> None:
    before = volumes(client)
    task = keep.create_task("odd", image=odd_image)
    assert task.state.image == odd_image
    assert shell(task, "id -u; pwd; echo $PYTHONPATH").split() == [str(workspace.owner()[0]), "/workspace", "/x"]
    assert len(containers(keep.id)) == 1
    told = client.api.inspect_container(container_of(task))
    assert {mount["Type"] for mount in told["Mounts"]} == {"bind"}
    assert set(told["HostConfig"]["Tmpfs"]) == {"/tmp", "/run/sandkeep", "/data", "/run", "/var/lib/y"}
    assert told["Config"]["Healthcheck"]["Test"] == ["NONE"]
    assert "Health" not in told["State"]
    assert told["Config"]["StopSignal"] == "SIGTERM"
    assert told["HostConfig"]["PortBindings"] in (None, {})
    assert [found.task for found in keep.engine.containers(keep.id)] == [task.id]
    assert isolation.check(keep, task).closed
    assert shell(task, "touch /data/x /run/x /var/lib/y/x && df -k /data | awk 'END { print $2 * 1024 }'").split() == [
        str(LIMITS.tmp_bytes)
    ]
    task.complete()
    task.clean_up()
    assert volumes(client) == before


@pytest.mark.parametrize(
    ("volumes", "words"),
    [("/workspace/inner", "inside of what"), (" ".join(f"/v{each}" for each in range(40)), "declares 40 volumes")],
)
def test_an_image_whose_volumes_would_be_folders_of_the_host_is_refused(
    keep: Keep, client: docker.DockerClient, shared_task: Task, volumes: str, words: str
) -> None:
    tag = "sandkeep-test/volumes:1"
    import_image(client, tag, f"VOLUME {volumes}", base=shared_task.state.image)
    try:
        task = keep.create_task("t", image=tag)
        with pytest.raises(EngineFailed, match=words):
            task.execute(["true"])
    finally:
        client.images.remove(tag, force=True)
    assert list(task.workspace.iterdir()) == []
    assert containers(keep.id) == []


def test_a_container_of_others_that_pretends_to_be_ours_is_left_alone(
    keep: Keep, client: docker.DockerClient, shared_task: Task
) -> None:
    tag = "sandkeep-test/pretends:1"
    labels = f"LABEL {KEEP}={keep.id} {TASK}={'f' * 12} {INTENT}={'0' * 16}"
    import_image(client, tag, labels, base=shared_task.state.image)
    theirs = client.containers.create(tag, ["true"], network_mode="none")
    try:
        assert containers(keep.id) == [theirs.id]
        assert keep.engine.containers(keep.id) == []
        assert keep.reconcile(again=True) == []
        assert containers(keep.id) == [theirs.id]
    finally:
        theirs.remove()
        client.images.remove(tag, force=True)


def test_an_image_that_cannot_run_a_sandbox_makes_none(
    keep: Keep, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = "sandkeep-test/nothing:1"
    import_image(client, tag)
    monkeypatch.setattr(interpreter, "borrowed", lambda keep: None)
    try:
        task = keep.create_task("t", image=tag)
        with pytest.raises(EngineFailed, match="cannot run a sandbox"):
            task.execute(["true"])
    finally:
        client.images.remove(tag, force=True)
    assert (task.state.state, task.state.pending) == (TaskState.CREATED, ())
    assert types(task.history())[-2:] == ["SandboxRequested", "SandboxFailed"]
    assert containers(keep.id) == []


@pytest.mark.parametrize(
    "name",
    ["sandkeep-test.invalid/nothing:1", "UPPER", "a b", "", "../../containers/json?", "sandkeep/nothing:1", "-x"],
)
def test_an_image_that_is_not_there_is_said_so_before_anything_is_stored(keep: Keep, name: str) -> None:
    head = keep.head()
    with pytest.raises(ImageNotFound):
        keep.create_task("t", image=name)
    assert keep.head() == head
    assert containers(keep.id) == []


# ---- engines that do not answer


@pytest.mark.parametrize(
    "host", ["unix:///nonexistent.sock", "tcp://127.0.0.1:1", "garbage", "unix:///dev/null", "ssh://nowhere.invalid"]
)
def test_an_engine_that_does_not_answer_is_said_so(keep: Keep, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(EngineUnreachable, match="no Docker engine answers"):
        keep.create_task("t", image="debian")
    assert keep.head().position == 1
    task = keep.create_task("t")  # needs no engine
    before = keep.head()
    with pytest.raises(EngineUnreachable, match="no Docker engine answers"):
        task.execute(["true"])
    assert keep.head() == before
    assert task.state.pending == ()
    task.complete()
    task.clean_up()
    assert not task.folder.exists()


def test_an_engine_that_does_not_talk_docker_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nno\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/s")
        with pytest.raises(EngineUnreachable):
            Engine().containers("0" * 16)


def test_containers_that_are_gone_have_no_status_and_are_removed_already() -> None:
    found: Any = Engine()
    assert found.status("0" * 64) is None
    found.remove("0" * 64)
    assert found.containers("0" * 16) == []


def test_several_may_remove_a_container_at_once(keep: Keep, task: Task) -> None:
    container = container_of(task)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(keep.engine.remove, [container] * 4))
    assert keep.engine.status(container) is None
