"""Limits on the real engine: what a task is given, what is changed while it lives, and what holds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandkeep.events import StaleFence
from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, adapting, disk, monitor
from sandkeep.sandboxes.clock import BootTime, boot_clock
from sandkeep.sandboxes.errors import BudgetExhausted, DiskFull, EngineFailed, LockHeld
from sandkeep.sandboxes.execution import FLOODED, TIMED_OUT
from sandkeep.sandboxes.limits import LIMITS

from .limited import MIB, Running, begun, configure, ended, events, held
from .support import Cli, container_of, containers, eventually, shell, stopped_at, types

pytestmark = pytest.mark.engine


def test_a_task_has_the_limits_that_it_is_given(keep: Keep) -> None:
    asked = {"memory": "128MiB", "swap": "64MiB", "cpus": 0.5, "pids": 64, "tmp": "16MiB", "open_files": 128}
    task = begun(keep, "small", limits=asked | {"disk": "1GiB"})
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
    task = begun(keep, "small")
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


def test_a_lock_admits_who_may_change_limits(keep: Keep, task: Task) -> None:
    with task.lock() as held_lock:
        with pytest.raises(LockHeld):
            keep.resources(task.id).set({"pids": 99})
        keep.resources(task.id, held_lock.token).set({"pids": 99})
    with pytest.raises(StaleFence):
        keep.resources(task.id, held_lock.token).set({"pids": 100})
    with task.lock("collaborative") as first, task.lock("collaborative", session="other") as second:
        keep.resources(task.id, second.token).set({"pids": 100})
        keep.resources(task.id, first.token).set({"pids": 101})  # the later token has not ended the earlier
    assert held(task)["PidsLimit"] == 101


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
    first = begun(keep, "first", limits={"memory": "200MiB"})
    with pytest.raises(BudgetExhausted) as caught:
        begun(keep, "second", limits={"memory": "128MiB"})
    assert f"100MiB are free and 128MiB needed; held by task {first.id} 200MiB; complete" in str(caught.value)
    with pytest.raises(BudgetExhausted, match="more than all sandboxes of the keep may have, 300MiB"):
        begun(keep, "third", limits={"memory": "301MiB"})
    with pytest.raises(BudgetExhausted, match="more than all sandboxes"):
        keep.resources(first.id).set({"memory": "301MiB"})
    keep.resources(first.id).set({"memory": "150MiB"})
    second = begun(keep, "second", limits={"memory": "128MiB"})
    with pytest.raises(BudgetExhausted, match=f"held by task {second.id}"):
        keep.resources(first.id).set({"memory": "200MiB"})
    second.complete()
    keep.resources(first.id).set({"memory": "200MiB"})


def test_the_steward_waits_for_no_memory(keep: Keep) -> None:
    settings = '[sandboxes]\nrestart = "always"\n[budget]\nwait = "1h"\nmemory = '
    configure(keep, settings + '"300MiB"')
    large, small = (begun(keep, memory, limits={"memory": memory}) for memory in ("200MiB", "90MiB"))
    configure(keep, settings + '"250MiB"')
    keep.engine.remove(container_of(large))
    done = keep.reconcile(again=True)
    assert "could not be started again: of the 250MiB that all sandboxes may have, 160MiB are free" in done[-1]
    small.complete()
    large.start_sandbox(wait=False)
    assert held(large)["Memory"] == 200 * MIB


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


# ---- disk


def test_a_disk_filler_is_ended_and_nothing_begins_until_there_is_room(keep: Keep) -> None:
    task = keep.create_task("filler", limits={"disk": "8MiB", "tmp": "1MiB", "output": "1MiB"})
    filler = "i=0; while :; do head -c 1M /dev/zero >f$i; i=$((i+1)); touch begun; done"
    running = Running(task, "sh", "-c", filler)
    eventually((task.workspace / "begun").exists)
    eventually(lambda: disk.measure(keep, task.id).bytes > 8 * MIB)
    said = disk.look(keep, keep.resources(task.id).use)
    assert said[-1] == f"task {task.id}: it takes too much of the disk, and its sandbox was ended"
    assert ended(running)
    assert containers(keep.id) == []
    near = events(task, ev.LimitNeared)[-1]
    assert (near.resource, near.percent, near.limit) == ("disk", 100, 8 * MIB)
    assert near.used > 8 * MIB
    with pytest.raises(DiskFull, match="takes more than 8MiB"):
        task.execute(["true"])
    for path in task.workspace.iterdir():
        path.unlink()
    assert shell(task, "echo alive") == "alive\n"
    assert types(task.history()).count("LimitEased") == 1


def test_more_disk_is_room_too(keep: Keep) -> None:
    task = keep.create_task("filler", limits={"disk": "2MiB", "tmp": "1MiB", "output": "1MiB"})
    shell(task, "for i in 1 2 3; do head -c 1M /dev/zero >f$i; done")
    keep.resources(task.id)
    disk.tick(keep)
    with pytest.raises(DiskFull):
        task.execute(["true"])
    keep.resources(task.id).set({"disk": "10MiB"})
    assert shell(task, "echo alive") == "alive\n"


def test_the_disk_is_measured_when_it_can_have_changed(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    task = begun(keep, "t", limits={"disk": "100MiB"})
    use, clock = keep.resources(task.id).use, boot_clock()
    free = disk._free(keep)
    monkeypatch.setattr(disk, "_free", lambda keep: free)
    assert disk.due(keep, use, clock())
    found = disk.measure(keep, task.id)
    assert disk.remembered(keep, task.id) == found

    def due(seconds: float, gone: int = 0, boot: str = found.boot) -> bool:
        monkeypatch.setattr(disk, "_free", lambda keep: free - gone)
        return disk.due(keep, use, BootTime(boot, found.at_ns + int(seconds * 1e9)))

    settled = 2 + disk._PART * found.took_ns / 1e9
    assert not due(settled)
    assert not due(settled, gone=5 * MIB)
    assert due(settled, gone=11 * MIB)
    assert not due(0.5, gone=11 * MIB)
    assert due(61 + settled)
    assert due(0, boot="another")
    (keep.path / "run" / "disk" / task.id).write_bytes(b"torn")
    assert due(0)


def test_measuring_follows_no_link_and_counts_once(keep: Keep, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(bytes(4 * MIB))
    task = keep.create_task("t")
    (task.workspace / "link").symlink_to(outside)
    (task.workspace / "file").write_bytes(bytes(MIB))
    (task.workspace / "same").hardlink_to(task.workspace / "file")
    (task.workspace / "holes").touch()
    os.truncate(task.workspace / "holes", 1 << 40)
    assert MIB <= disk.measure(keep, task.id).bytes < 2 * MIB


# ---- what those before have used


def test_a_new_sandbox_is_suggested_what_those_like_it_have_used(keep: Keep) -> None:
    settings = '[limits]\nadaptive = true\nmemory = "512MiB"\nfloor = "64MiB"\nheadroom = 2'
    configure(keep, settings)
    for number in range(adapting.LEAST):
        task = begun(keep, f"before {number}", tags=["small"])
        assert held(task)["Memory"] == 512 * MIB
        shell(task, "head -c 60M /dev/zero >/tmp/held")
        task.complete()
        measured = events(task, ev.SandboxMeasured)[-1]
        assert 60 * MIB < measured.memory_bytes < 100 * MIB
    suggested = held(begun(keep, "after"))["Memory"]
    assert 120 * MIB < suggested < 201 * MIB
    assert held(begun(keep, "tagged", tags=["small"]))["Memory"] == suggested
    assert held(begun(keep, "asked", limits={"memory": "300MiB"}))["Memory"] == 300 * MIB
    # One that has needed more itself is not given less than that when it goes on.
    hungry = begun(keep, "hungry", tags=["small"])
    keep.decide(hungry.id, lambda _: [ev.SandboxMeasured(container_of(hungry), 200 * MIB, 1, 0, 0, 0)])
    hungry.stop()
    hungry.start_sandbox()
    assert 400 * MIB <= held(hungry)["Memory"] < 402 * MIB
    configure(keep, settings.replace("true", "false"))
    assert held(begun(keep, "off"))["Memory"] == 512 * MIB


def test_an_image_has_limits_of_its_own(keep: Keep) -> None:
    configure(keep, '[limits]\nmemory = "128MiB"\npids = 60\n[limits.image.base]\nmemory = "96MiB"')
    task = begun(keep, "t")
    assert (held(task)["Memory"], held(task)["PidsLimit"]) == (96 * MIB, 60)
    asked = keep.resources(keep.create_task("asked", limits={"pids": 70}).id).limits
    assert (asked.memory_bytes, asked.pids) == (96 * MIB, 70)
    assert keep.resources(keep.create_task("t").id).limits.memory_bytes == 96 * MIB


@given(st.lists(st.integers(min_value=0, max_value=2**40), min_size=1, max_size=64))
def test_the_percentile_is_that_of_the_nearest_rank(peaks: list[int]) -> None:
    found = adapting.percentile(peaks)
    assert found in peaks
    assert sum(peak <= found for peak in peaks) * 100 >= 95 * len(peaks)
    assert sum(peak < found for peak in peaks) * 100 < 95 * len(peaks)


def test_a_fork_bomb_is_held_and_said(keep: Keep) -> None:
    task = keep.create_task("bomb", limits={"pids": 64})
    code = "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(0.1)"
    running = Running(task, "python3", "-c", code)
    eventually(lambda: monitor.tick(keep) or events(task, ev.LimitNeared))
    near = events(task, ev.LimitNeared)[-1]
    assert (near.resource, near.limit) == ("pids", 64)
    assert near.used <= 64
    keep.engine.restart(container_of(task))
    assert running.result is not None
    assert shell(task, "echo alive") == "alive\n"
    assert events(task, ev.ExtensionRequested) == []
