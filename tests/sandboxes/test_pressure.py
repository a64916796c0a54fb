"""Memory bombs on the real engine: held, recorded, and given more, or not."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.projections import Extension
from sandkeep.sandboxes import Keep, Task, command, monitor
from sandkeep.sandboxes.cgroup import Sample
from sandkeep.sandboxes.errors import BudgetExhausted, ExtensionNotFound, ExtensionOpen

from .limited import MIB, Running, begun, configure, ended, events, held
from .support import Cli, container_of, containers, eventually, shell, status, stopped_at, types

pytestmark = pytest.mark.engine

# It says what it has, and goes on to the end when it may.
BOMB = "import sys\nx = bytearray({bytes})\nfor i in range(0, len(x), 4096): x[i] = 1\nprint('lived')"
CHILD = ("python3", "-c")
GRANDCHILD = ("sh", "-c", 'sh -c "python3 -c \\"$0\\"; exit \\$?"; code=$?; exit $code')


def bomb(mib: int) -> str:
    return BOMB.format(bytes=mib * MIB)


@contextlib.contextmanager
def ticking(keep: Keep) -> Iterator[list[str]]:
    """Tick as a steward does, until the end of the block; gives what was said. What lives already is guarded."""
    said = monitor.tick(keep)
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.1):
            said.extend(monitor.tick(keep))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield said
    finally:
        ended.set()
        thread.join()


def short(keep: Keep, settings: str = "") -> Task:
    """A task with a sandbox that has 128 MiB of memory."""
    configure(keep, f'[limits]\nmemory = "128MiB"\n{settings}')
    return begun(keep, "short of memory")


def waiting(keep: Keep, task: Task) -> Extension:
    """The extension that waits for an answer, when the sandbox is prepared for it."""

    def look() -> Extension | None:
        found = keep.resources(task.id).use.extension
        return found if found is not None and found.prepared else None

    found = eventually(look)
    assert found is not None
    return found


def sample(keep: Keep, task: Task) -> Sample:
    """What the task's sandbox uses now."""
    found = keep.resources(task.id).sample()
    assert found is not None
    return found


def said_of(task: Task) -> list[str]:
    """The events of an extension, in order."""
    kinds = (
        ev.ExtensionRequested,
        ev.ExtensionPrepared,
        ev.ExtensionGranted,
        ev.ExtensionDenied,
        ev.ExtensionEnded,
        ev.LimitsRequested,
        ev.LimitsSet,
    )
    return [type(each).__name__ for each in events(task, *kinds)]


GIVEN = [
    "ExtensionRequested",
    "ExtensionPrepared",
    "ExtensionGranted",
    "LimitsRequested",
    "LimitsSet",
    "ExtensionEnded",
]
DENIED = ["ExtensionRequested", "ExtensionPrepared", "ExtensionDenied", "ExtensionEnded"]


@pytest.mark.parametrize("program", [CHILD, GRANDCHILD], ids=["child", "grandchild"])
def test_a_sandbox_is_given_more_up_to_its_ceiling(keep: Keep, program: tuple[str, ...]) -> None:
    task = short(keep, 'memory_max = "400MiB"')
    shell(task, "echo precious >file")
    with ticking(keep):
        result = task.execute([*program, bomb(250)], timeout=120)
    assert (result.exit_code, result.stdout.data) == (0, b"lived\n")
    assert said_of(task) == GIVEN * 2
    assert [each.memory_bytes // MIB for each in events(task, ev.ExtensionGranted)] == [192, 288]
    assert held(task)["Memory"] == keep.resources(task.id).limits.memory_bytes == 288 * MIB
    assert [each.outcome for each in events(task, ev.ExtensionEnded)] == ["extended"] * 2
    for prepared in events(task, ev.ExtensionPrepared):
        (found,) = [each for each in task.checkpoints() if each.id == prepared.checkpoint]
        assert (found.files, found.label) == (1, f"emergency {prepared.extension}")
    # What it was at when it was held, at least; what it had at its end may have been missed.
    assert keep.resources(task.id).use.memory_bytes > 180 * MIB


@pytest.mark.parametrize("program", [CHILD, GRANDCHILD], ids=["child", "grandchild"])
def test_at_the_ceiling_the_workspace_is_recorded_before_the_kernel_kills(keep: Keep, program: tuple[str, ...]) -> None:
    task = short(keep)
    shell(task, "echo precious >file")
    with ticking(keep):
        assert task.execute([*program, bomb(500)], timeout=120).exit_code == 137
        eventually(lambda: keep.resources(task.id).use.extension is None)
        assert shell(task, "cat file") == "precious\n"
    assert said_of(task) == DENIED
    (denied,) = events(task, ev.ExtensionDenied)
    assert (denied.reason, denied.stop) == ("it is at its ceiling", False)
    assert [each.files for each in task.checkpoints()] == [1]
    assert status(task) == "running"


def test_without_a_monitor_the_kernel_kills_as_ever(keep: Keep) -> None:
    task = short(keep, 'memory_max = "400MiB"')
    assert task.execute([*CHILD, bomb(250)], timeout=120).exit_code == 137
    assert said_of(task) == []


def test_somebody_is_asked_and_gives_more(keep: Keep) -> None:
    task = short(keep, 'when_full = "ask"\n[budget]\nmemory = "1GiB"')
    with ticking(keep) as said:
        running = Running(task, *CHILD, bomb(150))
        extension = waiting(keep, task)
        assert (extension.limit_bytes, extension.wanted_bytes) == (128 * MIB, 192 * MIB)
        with pytest.raises(ExtensionOpen, match="needs 192MiB of memory"):
            task.execute(["true"])
        with pytest.raises(BudgetExhausted):
            keep.resources(task.id).extend("1TiB")
        given = keep.resources(task.id).extend("256MiB", "it is worth it")
        assert given.id == extension.id
        assert (running.result.exit_code, running.result.stdout.data) == (0, b"lived\n")
    assert said_of(task) == GIVEN
    (granted,) = events(task, ev.ExtensionGranted)
    assert (granted.memory_bytes, granted.reason) == (256 * MIB, "it is worth it")
    assert held(task)["Memory"] == 256 * MIB
    assert any("needs 192MiB of memory" in line for line in said)
    with pytest.raises(ExtensionNotFound):
        keep.resources(task.id).extend()


def test_somebody_is_asked_and_says_no(keep: Keep) -> None:
    task = short(keep, 'when_full = "ask"')
    with ticking(keep):
        running = Running(task, *CHILD, bomb(500))
        waiting(keep, task)
        keep.resources(task.id).deny("not today")
        assert running.result.exit_code == 137
    assert said_of(task) == DENIED
    assert events(task, ev.ExtensionDenied)[0].reason == "not today"
    assert shell(task, "echo alive") == "alive\n"


def test_a_no_needs_no_monitor(keep: Keep) -> None:
    task = short(keep, 'when_full = "ask"')
    with ticking(keep):
        running = Running(task, *CHILD, bomb(500))
        waiting(keep, task)
    keep.resources(task.id).deny()
    assert running.result.exit_code == 137
    assert said_of(task) == DENIED


SLOWLY = """
import time
x = []
for i in range(160):
    x.append(b"x" * (1 << 20))
    time.sleep(0.3 if 100 < i < 125 else 0)
print("lived")
"""


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_what_is_not_held_yet_is_frozen(keep: Keep, answer: str) -> None:
    task = short(keep, 'when_full = "ask"')
    with ticking(keep):
        running = Running(task, *CHILD, SLOWLY)
        waiting(keep, task)
    (prepared,) = events(task, ev.ExtensionPrepared)
    assert (prepared.frozen, prepared.problem) == (True, "")
    assert status(task) == "paused"
    keep.reconcile(again=True)
    assert status(task) == "paused"
    if answer == "yes":
        keep.resources(task.id).extend("256MiB")
        assert (running.result.exit_code, running.result.stdout.data) == (0, b"lived\n")
    else:
        keep.resources(task.id).deny()
        assert running.result.exit_code == 137
    assert status(task) == "running"


def test_files_that_were_read_are_no_pressure(keep: Keep) -> None:
    task = short(keep)
    shell(task, "head -c 200M /dev/zero >large; cat large large >/dev/null; sync large")
    monitor.tick(keep)
    assert sample(keep, task).memory_bytes < 64 * MIB
    assert events(task, ev.LimitNeared) == []


def test_silence_is_a_no(keep: Keep) -> None:
    task = short(keep, 'when_full = "ask"\nanswer = "1s"')
    with ticking(keep):
        assert task.execute([*CHILD, bomb(500)], timeout=120).exit_code == 137
    assert events(task, ev.ExtensionDenied)[0].reason == "nobody answered in time"


def test_after_a_no_the_sandbox_may_be_stopped(keep: Keep) -> None:
    task = short(keep, 'on_denied = "stop"')
    with ticking(keep):
        running = Running(task, *CHILD, bomb(500))
        assert ended(running)
    eventually(lambda: keep.resources(task.id).use.extension is None or monitor.tick(keep))
    assert [each.outcome for each in events(task, ev.ExtensionEnded)] == ["stopped"]
    assert containers(keep.id) == []
    assert shell(task, "echo alive") == "alive\n"


def test_the_budget_holds_for_more_memory(keep: Keep) -> None:
    task = short(keep, 'memory_max = "400MiB"\n[budget]\nmemory = "150MiB"')
    with ticking(keep):
        assert task.execute([*CHILD, bomb(250)], timeout=120).exit_code == 137
    assert said_of(task) == DENIED
    assert "more than all sandboxes of the keep may have" in events(task, ev.ExtensionDenied)[0].reason


STEPS = (
    "after:pressure._prepare",
    "before:engine.limit",
    "after:engine.limit",
    "after:resources.change",
    "before:pressure._end",
)


@pytest.mark.parametrize("step", STEPS)
def test_a_relief_cut_off_is_completed(keep: Keep, step: str) -> None:
    task = short(keep, 'memory_max = "400MiB"')
    monitor.tick(keep)  # so that it is guarded
    running = Running(task, *CHILD, bomb(165))
    eventually(lambda: sample(keep, task).held)
    with stopped_at(step, "tick", keep.path) as process:
        process.kill()
        process.wait()
    keep.reconcile(again=True)
    with ticking(keep):
        assert (running.result.exit_code, running.result.stdout.data) == (0, b"lived\n")
        eventually(lambda: keep.resources(task.id).use.extension is None)
    assert events(task, ev.ExtensionEnded)[-1].outcome == "extended"
    assert held(task)["Memory"] == keep.resources(task.id).limits.memory_bytes == 192 * MIB
    assert not task.state.pending
    assert shell(task, "echo alive") == "alive\n"


def test_what_nobody_watches_any_more_is_not_held(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    task = short(keep)
    monitor.tick(keep)
    assert sample(keep, task).guarded
    keep.reconcile(again=True)
    assert sample(keep, task).guarded
    os.utime(keep.path / "run" / "monitor.lock", (time.time() + 3600,) * 2)  # then the clock was set back
    keep.reconcile(again=True)
    assert not sample(keep, task).guarded
    monitor.tick(keep)
    assert sample(keep, task).guarded
    monkeypatch.setattr(monitor, "_STALE_SECONDS", 0.0)
    keep.reconcile(again=True)
    assert not sample(keep, task).guarded


def test_a_task_that_ends_while_it_waits_leaves_nothing(keep: Keep) -> None:
    task = short(keep, 'when_full = "ask"')
    with ticking(keep):
        running = Running(task, *CHILD, bomb(500))
        waiting(keep, task)
        keep.engine.remove(container_of(task))
        assert ended(running)
        keep.reconcile(again=True)
        eventually(lambda: keep.resources(task.id).use.extension is None)
    assert events(task, ev.ExtensionEnded)[0].outcome == "gone"
    task.complete()
    assert monitor.live(keep) == []


def test_two_changes_that_were_cut_off_are_both_settled(keep: Keep, task: Task) -> None:
    for memory in ("256MiB", "300MiB"):
        with stopped_at("before:engine.limit", "limit", keep.path, task.id, memory) as process:
            process.kill()
            process.wait()
    assert len(task.state.pending) == 2
    keep.reconcile(again=True)
    assert not task.state.pending
    assert types(task.history())[-2:] == ["LimitsFailed", "LimitsSet"]
    assert held(task)["Memory"] == keep.resources(task.id).limits.memory_bytes == 300 * MIB


def test_answers_and_figures_on_the_command_line(keep: Keep, cli: Cli) -> None:
    task = short(keep, 'when_full = "ask"')
    monitor.tick(keep)
    keep.close()
    top = cli("top", "--json").json
    (found,) = top["sandboxes"]
    assert (found["task"], found["memory_limit"], found["guarded"]) == (task.id, 128 * MIB, True)
    assert top["promised"] == found["promised"] == 128 * MIB
    assert 0 < found["memory"] < 128 * MIB
    assert found["pids"] > 0
    assert task.id in cli("top").stdout.decode()
    cli("extend-limits", task.id).refused("extension-not-found", 1)
    cli("deny-extension", task.id).refused("extension-not-found", 1)
    cli("complete-task", task.id)
    assert cli("top", "--json").json["sandboxes"] == []
    assert b"no sandbox lives" in cli("top").stdout


def test_the_time_of_a_command_that_stands_still_is_over_all_the_same(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PATIENCE_SECONDS", 1.0)  # who would end it in time stands still too
    task = short(keep, 'when_full = "ask"')
    with ticking(keep):
        running = Running(task, *CHILD, SLOWLY, timeout=15)
        waiting(keep, task)
        assert status(task) == "paused"
        assert (running.result.exit_code, running.result.timed_out) == (124, True)
        keep.resources(task.id).deny()
        eventually(lambda: keep.resources(task.id).use.extension is None)
        assert shell(task, "echo alive") == "alive\n"
