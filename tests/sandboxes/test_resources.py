"""Limits on the real engine: what a task is given, what is changed while it lives, and what holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task
from sandkeep.sandboxes.errors import BudgetExhausted, EngineFailed
from sandkeep.sandboxes.execution import FLOODED, TIMED_OUT
from sandkeep.sandboxes.limits import LIMITS

from .support import Cli, container_of, engine, shell, stopped_at, types

pytestmark = pytest.mark.engine

MIB = 1 << 20


def configure(keep: Keep | Path, text: str) -> None:
    """Write what the owner of a keep would write into its keep.toml."""
    path = (keep if isinstance(keep, Path) else keep.path) / "keep.toml"
    path.write_text("\n".join([*path.read_text().splitlines()[:3], text]))


def held(task: Task) -> dict[str, Any]:
    """What the engine was told of the task's sandbox."""
    with engine() as client:
        found: dict[str, Any] = client.api.inspect_container(container_of(task))["HostConfig"]
        return found


def cgroup(task: Task, name: str) -> int:
    """What the kernel holds the sandbox to, read inside of it."""
    return int(shell(task, f"cat /sys/fs/cgroup/memory/{name} 2>/dev/null || cat /sys/fs/cgroup/{name}"))


def events(task: Task, *kinds: type[ev.Intent] | type[Any]) -> list[Any]:
    """The task's events of these types."""
    return [record.event for record in task.history() if isinstance(record.event, kinds)]


def test_a_task_has_the_limits_that_it_is_given(keep: Keep) -> None:
    asked = {"memory": "128MiB", "swap": "64MiB", "cpus": 0.5, "pids": 64, "tmp": "16MiB", "open_files": 128}
    task = keep.create_task("small", limits=asked | {"disk": "1GiB"})
    (created,) = events(task, ev.TaskCreated)
    (requested,) = events(task, ev.SandboxRequested)
    assert created.limits == requested.limits == keep.resources(task.id).limits
    assert requested.limits == ev.Limits(
        128 * MIB, 500_000_000, 64, 16 * MIB, 64 * MIB, 128, 1024 * MIB, LIMITS.output_bytes, LIMITS.command_ns
    )
    found = held(task)
    assert (found["Memory"], found["MemorySwap"]) == (128 * MIB, 192 * MIB)
    assert (found["NanoCpus"], found["PidsLimit"]) == (500_000_000, 64)
    assert shell(task, "ulimit -n; ulimit -f; df -m /tmp | tail -1 | tr -s ' ' | cut -d' ' -f2") == "128\n2097152\n16\n"


def test_what_keep_toml_says_holds_for_the_next_sandbox(keep: Keep) -> None:
    configure(keep, '[limits]\nmemory = "96MiB"\npids = 50')
    task = keep.create_task("small")
    assert (held(task)["Memory"], held(task)["PidsLimit"]) == (96 * MIB, 50)
    configure(keep, '[limits]\nmemory = "80MiB"')
    assert keep.resources(task.id).limits.memory_bytes == 96 * MIB
    keep.engine.remove(container_of(task))
    shell(task, "true")
    assert held(task)["Memory"] == 80 * MIB


def test_limits_of_a_live_sandbox_are_changed(keep: Keep, task: Task) -> None:
    code = f"x = bytearray({160 * MIB}); x[::4096] = b'x' * len(x[::4096])"
    resources = keep.resources(task.id)
    now = resources.set({"memory": "128MiB", "cpus": 0.5, "pids": 40}, "too greedy")
    assert task.execute(["python3", "-c", code]).exit_code in (1, 137)
    assert (held(task)["NanoCpus"], held(task)["PidsLimit"]) == (500_000_000, 40)
    assert resources.set({"memory": "512MiB"}).pids == 40
    assert task.execute(["python3", "-c", code]).exit_code == 0
    changes = events(task, ev.LimitsRequested, ev.LimitsSet)
    assert [type(change) for change in changes] == [ev.LimitsRequested, ev.LimitsSet] * 2
    assert (changes[0].limits, changes[0].reason, changes[0].container) == (now, "too greedy", container_of(task))
    assert resources.use.asked == resources.use.limits == resources.limits
    keep.engine.remove(container_of(task))
    shell(task, "true")
    assert held(task)["Memory"] == 512 * MIB


def test_a_change_that_the_engine_refuses_leaves_all_as_it_was(keep: Keep, task: Task) -> None:
    shell(task, "head -c 200M /dev/zero >/tmp/held")
    with pytest.raises(EngineFailed):
        keep.resources(task.id).set({"memory": "64MiB"})
    assert types(task.history())[-2:] == ["LimitsRequested", "LimitsFailed"]
    use = keep.resources(task.id).use
    assert (use.asked, use.changing, use.promised) == (None, None, LIMITS.memory_bytes)
    assert not task.state.pending
    assert held(task)["Memory"] == LIMITS.memory_bytes


@pytest.mark.parametrize("step", ["before:engine.limit", "after:engine.limit"])
def test_a_change_cut_off_is_completed(keep: Keep, task: Task, step: str) -> None:
    with stopped_at(step, "limit", keep.path, task.id, "256MiB") as process:
        process.kill()
        process.wait()
    assert [pending.kind for pending in task.state.pending] == ["LimitsRequested"]
    assert keep.reconcile(again=True)
    assert types(task.history())[-1] == "LimitsSet"
    assert not task.state.pending
    assert held(task)["Memory"] == keep.resources(task.id).limits.memory_bytes == 256 * MIB


def test_a_command_has_no_more_time_and_output_than_its_task(keep: Keep, task: Task) -> None:
    keep.resources(task.id).set({"time": "1s", "output": "50KB"})
    slow = task.execute(["sleep", "1000"])
    assert (slow.exit_code, slow.timed_out) == (TIMED_OUT, True)
    flood = task.execute(["yes"], timeout=60)
    assert flood.exit_code in (FLOODED, TIMED_OUT)
    assert (flood.stdout.size, flood.stdout.truncated) == (50_000, True)


def test_a_single_file_is_no_larger_than_the_disk_limit(keep: Keep) -> None:
    task = keep.create_task("small", limits={"disk": "4MiB", "tmp": "1MiB", "output": "1MiB"})
    assert task.execute(["sh", "-c", "head -c 5M /dev/zero >large"]).exit_code != 0
    assert (task.workspace / "large").stat().st_size == 4 * MIB


def test_memory_is_promised_once(keep: Keep) -> None:
    configure(keep, '[budget]\nmemory = "300MiB"\nwait = 0')
    first = keep.create_task("first", limits={"memory": "200MiB"})
    with pytest.raises(BudgetExhausted) as caught:
        keep.create_task("second", limits={"memory": "128MiB"})
    assert f"100MiB are free and 128MiB needed; held by task {first.id} 200MiB; complete" in str(caught.value)
    with pytest.raises(BudgetExhausted, match="more than all sandboxes of the keep may have, 300MiB"):
        keep.create_task("third", limits={"memory": "301MiB"})
    with pytest.raises(BudgetExhausted, match="more than all sandboxes"):
        keep.resources(first.id).set({"memory": "301MiB"})
    keep.resources(first.id).set({"memory": "150MiB"})
    second = keep.create_task("second", limits={"memory": "128MiB"})
    with pytest.raises(BudgetExhausted, match=f"held by task {second.id}"):
        keep.resources(first.id).set({"memory": "200MiB"})
    second.complete()
    keep.resources(first.id).set({"memory": "200MiB"})


def test_limits_on_the_command_line(keep: Keep, cli: Cli) -> None:
    keep.close()
    created = cli("create-task", "t", "--memory", "128MiB", "--cpus", "0.5", "--json").json
    answer = cli("set-limits", created["id"], "--pids", "99", "--json").json
    assert answer["task"] == created["id"]
    assert (answer["limits"]["memory"], answer["limits"]["cpus"], answer["limits"]["pids"]) == (128 * MIB, 0.5, 99)
    said = cli("set-limits", created["id"], "--memory", "256MiB").stdout.decode()
    assert said.startswith(f"{created['id']}  memory 256MiB, swap 0B, cpus 0.5, pids 99, tmp 512MiB, disk 20GiB")
    cli("set-limits", created["id"], "--memory", "lots", "--pids", "0").refused("bad-limits", 2)
    cli("set-limits", created["id"]).refused("bad-limits", 2)
    configure(keep.path, '[limits]\nmemory = "lots"\npids = 0')
    line = cli("create-task", "t").refused("bad-settings", 1)
    assert "has 2 errors: [limits] memory: 'lots' is no size" in line
    assert "[limits] pids: 0 is not from" in line
    cli("complete-task", created["id"])
