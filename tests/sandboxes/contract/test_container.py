"""What we rely on of an engine's containers, seen by the kernel rather than told by the engine."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from sandkeep.events.catalogue import Limits
from sandkeep.sandboxes import Keep, Task, cgroup, guest, workspace
from sandkeep.sandboxes.cgroup import Group
from sandkeep.sandboxes.container import INTENT, KEEP, TASK
from sandkeep.sandboxes.engine import Engine
from sandkeep.sandboxes.errors import EngineFailed, SandboxGone
from sandkeep.sandboxes.limits import LIMITS

from ..support import container_of, engine, eventually, shell, text

MIB = 1 << 20
NOWHERE = "0" * 64


def group(keep: Keep, task: Task) -> Group:
    """The control group of the task's sandbox."""
    container = container_of(task)
    found = cgroup.find(container, lambda: keep.engine.init_pid(container))
    assert found is not None
    return found


def in_force(keep: Keep, task: Task) -> tuple[int, int, float]:
    """Memory with swap, processes and processors that the kernel allows the task's sandbox."""
    found = group(keep, task)
    sample = cgroup.read(found)
    assert sample is not None
    if found.version == 2:
        quota, period = (found.cpu / "cpu.max").read_text().split()
    else:
        quota, period = ((found.cpu / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return sample.memory_limit, sample.pids_limit, int(quota) / int(period)


def status(text: str) -> dict[str, str]:
    """A process's status, as the kernel tells it."""
    return {name: value.strip() for name, value in (line.split(":", 1) for line in text.splitlines())}


def test_an_engine_is_known_again(shared_keep: Keep, backend: str) -> None:
    assert Engine().facts == shared_keep.engine.facts
    assert Engine().facts.identity


def test_a_command_has_no_privileges(shared_task: Task) -> None:
    found = status(shell(shared_task, "cat /proc/self/status"))
    assert {found[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    uid, gid = workspace.owner()
    assert (found["Uid"].split(), found["Gid"].split()) == ([str(uid)] * 4, [str(gid)] * 4)
    assert found["Groups"].split() in ([], [str(gid)])


def test_the_first_process_has_only_what_it_needs(shared_keep: Keep, shared_task: Task) -> None:
    first = shared_keep.engine.init_pid(container_of(shared_task))
    found = status(Path(f"/proc/{first}/status").read_text())
    kill, setgid, setuid, setpcap = (1 << number for number in (5, 6, 7, 8))
    assert int(found["CapEff"], 16) == kill | setgid | setuid | setpcap
    assert int(found["CapBnd"], 16) == 0
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize(
    "call",
    ["mount(b'none', b'/tmp', b'tmpfs', 0, None)", "unshare(0x10000000)", "unshare(0x20000)", "chroot(b'/')"],
)
def test_system_calls_that_only_the_host_needs_are_refused(shared_task: Task, call: str) -> None:
    code = f"import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.{call}, ctypes.get_errno())"
    assert text(shared_task.execute(["python3", "-c", code])) == "-1 1\n"


def test_nothing_can_be_written_but_the_workspace_and_the_temporary_folder(shared_task: Task) -> None:
    line = "for f in / /etc /usr/bin /var/tmp /run /dev /memory; do touch $f/w 2>/dev/null && echo $f; done"
    assert shell(shared_task, f"{line}; touch /workspace/w /tmp/w") == ""
    mounts = {
        line.split()[1]: line.split()[3].split(",") for line in shell(shared_task, "cat /proc/mounts").splitlines()
    }
    assert "ro" in mounts["/"]
    assert "ro" in mounts["/memory"]
    assert {"rw", "nosuid", "nodev"} <= set(mounts["/tmp"])
    assert "noexec" not in mounts["/tmp"]


def test_there_is_no_network_but_loopback(shared_task: Task) -> None:
    lines = shell(shared_task, "cat /proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_every_limit_is_in_force(shared_keep: Keep) -> None:
    wanted = {"memory": "200MiB", "swap": 0, "pids": 60, "cpus": 0.5, "tmp": "8MiB", "open_files": 99, "disk": "64MiB"}
    task = shared_keep.create_task("limited", limits={**wanted, "output": "1MiB"})
    size = "df -k /tmp | tail -n 1 | awk '{print $2}'"
    found = shell(task, f"ulimit -n; {size}; head -c 65M /dev/zero >large 2>/dev/null || stat -c %s large")
    assert found.split() == ["99", str(8 * 1024), str(64 * MIB)]
    assert in_force(shared_keep, task) == (200 * MIB, 60, 0.5)
    task.stop()


def test_limits_are_changed_of_one_that_lives_and_hold_after_it_was_started_again(
    shared_keep: Keep, shared_task: Task
) -> None:
    resources = shared_keep.resources(shared_task.id)
    resources.set({"memory": "300MiB", "pids": 99, "cpus": 0.25}, reason="contract")
    assert in_force(shared_keep, shared_task) == (300 * MIB, 99, 0.25)
    shared_task.sandbox.restart(container_of(shared_task))
    assert in_force(shared_keep, shared_task) == (300 * MIB, 99, 0.25)
    assert shell(shared_task, "echo again") == "again\n"
    resources.set({"memory": "2GiB", "pids": 512, "cpus": 1}, reason="contract")
    assert in_force(shared_keep, shared_task) == (2048 * MIB, 512, 1.0)


def test_one_that_is_frozen_stands_still(shared_keep: Keep, shared_task: Task) -> None:
    container = container_of(shared_task)
    shared_keep.engine.pause(container)
    assert shared_keep.engine.status(container) == "paused"
    with pytest.raises(EngineFailed):
        shared_keep.engine.pause(container)
    shared_keep.engine.unpause(container)
    assert shared_keep.engine.status(container) == "running"
    assert shell(shared_task, "echo on") == "on\n"


def test_they_are_found_by_their_labels(shared_keep: Keep, shared_task: Task) -> None:
    (found,) = [each for each in shared_keep.engine.containers(shared_keep.id) if each.task == shared_task.id]
    assert (found.container, found.status) == (container_of(shared_task), "running")
    with engine() as client:
        listed = client.api.containers(all=True, filters={"label": f"{TASK}={shared_task.id}"})
    (labels,) = [each["Labels"] for each in listed]
    assert (labels[KEEP], labels[INTENT]) == (shared_keep.id, found.intent)
    assert listed[0]["Names"] == [f"/sandkeep-{shared_task.id}-{found.intent}"]
    assert shared_keep.engine.containers("f" * 16) == []


def test_only_the_folders_of_the_task_are_mounted(shared_keep: Keep, shared_task: Task) -> None:
    with engine() as client:
        mounts = client.api.inspect_container(container_of(shared_task))["Mounts"]
    run = shared_keep.path / "run"
    assert {each["Destination"]: (each["Source"], each["RW"]) for each in mounts if each["Type"] == "bind"} == {
        "/workspace": (str(shared_task.workspace), True),
        "/memory": (str(shared_task.folder / "memory"), False),
        "/run/sandkeep/spool": (str(run / "spool" / shared_task.id), True),
        "/run/sandkeep/agent": (str(guest.install(run)), False),
        "/run/sandkeep-egress": (str(run / "egress" / shared_task.id), False),
        "/etc/hosts": (str(run / "egress" / shared_task.id / "hosts"), False),
    }


def test_what_it_uses_is_told(shared_keep: Keep, shared_task: Task) -> None:
    shell(shared_task, "head -c 20M /dev/zero >/tmp/held")
    told = shared_keep.engine.statistics(container_of(shared_task))
    assert 20 * MIB < told.memory_bytes < 400 * MIB
    read = cgroup.read(group(shared_keep, shared_task))
    assert read is not None
    assert told.memory_limit == read.memory_limit
    assert told.cpu_ns > 0
    shell(shared_task, "rm /tmp/held")


def test_a_container_that_is_not_there_is_said_so(shared_keep: Keep) -> None:
    found = shared_keep.engine
    assert (found.status(NOWHERE), found.init_pid(NOWHERE)) == (None, None)
    found.remove(NOWHERE)
    for act in (found.pause, found.unpause, found.restart, found.form, found.statistics):
        with pytest.raises(SandboxGone):
            act(NOWHERE)
    with pytest.raises(SandboxGone):
        found.limit(NOWHERE, Limits(memory_bytes=LIMITS.memory_bytes, nano_cpus=10**9, pids=64, tmp_bytes=MIB))
    with pytest.raises(SandboxGone):
        found.detach(NOWHERE, ["true"])
    with pytest.raises(SandboxGone):
        found.relayed(NOWHERE, 1)


def test_one_that_ends_is_told_of_and_what_is_removed_is_gone(keep: Keep) -> None:
    task = keep.create_task("ends")
    task.start_sandbox()
    container, heard, told = container_of(task), threading.Event(), []
    with keep.engine.endings(keep.id) as endings:

        def listen() -> None:
            for each in endings:
                told.append(json.loads(each))
                heard.set()

        listening = threading.Thread(target=listen)
        listening.start()
        os.kill(keep.engine.init_pid(container) or 0, 9)
        assert heard.wait(30)
        endings.close()
        listening.join(30)
    assert not listening.is_alive()
    assert [(each["Action"], each["id"]) for each in told] == [("die", container)]
    eventually(lambda: keep.engine.status(container) == "exited")
    assert keep.engine.init_pid(container) is None
    keep.engine.remove(container)
    assert keep.engine.status(container) is None
    assert keep.engine.containers(keep.id) == []
