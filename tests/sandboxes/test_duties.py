"""The running steward: one works at a time, does its duties whatever one of them does, and is nobody's burden."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandkeep.events import catalogue as ev
from sandkeep.sandboxes import Keep, Task, duties, intent, settings, slot, steward
from sandkeep.sandboxes.clock import boot_clock
from sandkeep.sandboxes.duties import Duty, Steward
from sandkeep.sandboxes.errors import KeepFormat, TaskRefused
from sandkeep.sandboxes.incumbent import Seat, incumbent
from sandkeep.sandboxes.limits import LIMITS

from .support import SCRIPT, container_of, containers, engine, eventually, shell, status, stopped_at, types


def set_sandboxes(keep: Keep, **values: object) -> None:
    """Write the table `[sandboxes]` into the keep's settings."""
    file = keep.path / "keep.toml"
    identity = file.read_text().partition("[sandboxes]")[0]
    file.write_text(identity + "[sandboxes]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))


# ---- settings


def test_settings_have_defaults_and_are_read_again(keep: Keep) -> None:
    assert settings.load(keep.path).sandboxes == settings.SandboxSettings(300.0, "command", 0)
    set_sandboxes(keep, idle_pause_s=1.5, restart="always", pool=2)
    assert settings.load(keep.path).sandboxes == settings.SandboxSettings(1.5, "always", 2)
    keep.close()
    with Keep.open(keep.path) as again:
        assert again.id == keep.id


@pytest.mark.parametrize(
    "wrong", [{"idle_pause_s": -1}, {"restart": "never"}, {"pool": 65}, {"pool": -1}, {"pool": 1.5}, {"pull": 1}]
)
def test_settings_that_cannot_be_are_refused(keep: Keep, wrong: dict[str, object]) -> None:
    set_sandboxes(keep, **wrong)
    with pytest.raises(KeepFormat, match=r"sandboxes|pull"):
        settings.load(keep.path)


# ---- who is the steward


def test_one_at_a_time_and_known_to_all(keep: Keep) -> None:
    assert incumbent(keep.path) is None
    one, two = Seat(keep.path), Seat(keep.path)
    assert one.take()
    assert not two.take()
    one.say({"a duty": "fails for a long and winding reason"})
    one.say({"it": "x"})
    found = incumbent(keep.path)
    assert found is not None
    assert found.failing == {"it": "x"}
    one.leave()
    one.leave()
    assert incumbent(keep.path) is None
    assert two.take()
    assert failing(keep) == {}
    two.leave()


def failing(keep: Keep) -> dict[str, str]:
    """What the steward says of its duties."""
    found = incumbent(keep.path)
    assert found is not None
    return found.failing


class Counted:
    """A duty that counts, and fails as long as it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self, keep: Keep) -> list[str]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return [f"call {self.calls}"]


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def working(keep: Keep, counted: Counted, told: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Steward]:
    """A steward with a failing duty before the one that counts, and without an engine."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")

    def broken(keep: Keep) -> list[str]:
        raise ZeroDivisionError("always")

    with Steward(keep, duties=(Duty("broken", 0.01, broken), Duty("count", 0.01, counted)), told=told.append) as one:
        assert one.working.wait(30)
        yield one


def test_a_duty_that_fails_is_told_once_and_stops_no_other(
    keep: Keep, working: Steward, counted: Counted, told: list[str]
) -> None:
    eventually(lambda: counted.calls > 5)
    assert [line for line in told if line.startswith("broken")] == ["broken: ZeroDivisionError: always"]
    counted.error = OSError("no room")
    eventually(lambda: "count" in failing(keep))
    assert failing(keep) == {"broken": "ZeroDivisionError: always", "count": "OSError: no room"}
    counted.error = None
    eventually(lambda: "count: works again" in told)
    assert set(failing(keep)) == {"broken"}


def test_a_duty_that_takes_long_holds_up_no_other(
    keep: Keep, counted: Counted, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    begun, goes_on = threading.Event(), threading.Event()

    def slow(keep: Keep) -> list[str]:
        begun.set()
        assert goes_on.wait(60)
        raise OSError("no room")

    with Steward(keep, duties=(Duty("slow", 0.01, slow, apart=True), Duty("count", 0.01, counted)), told=told.append):
        assert begun.wait(30)
        before = counted.calls
        eventually(lambda: counted.calls > before + 5)
        assert failing(keep) == {}
        goes_on.set()
        eventually(lambda: failing(keep) == {"slow": "OSError: no room"})
        eventually(lambda: counted.calls > before + 10)
    assert [line for line in told if line.startswith("slow")] == ["slow: OSError: no room"]
    assert [thread for thread in threading.enumerate() if thread.name == "sandkeep-slow"] == []


def test_what_looks_at_whole_folders_has_a_thread_of_its_own() -> None:
    assert {duty.name for duty in duties.DUTIES if duty.apart} == {
        *("disk", "caches", "checkpoints", "sessions", "archive", "scrub")
    }


def test_the_next_takes_over(keep: Keep, working: Steward, counted: Counted) -> None:
    other, said = Counted(), list[str]()
    with Steward(keep, duties=(Duty("count", 0.01, other),), told=said.append) as waiting:
        eventually(lambda: any("waiting to take over" in line for line in said))
        assert (other.calls, waiting.working.is_set()) == (0, False)
        working.stop()
        assert waiting.working.wait(30)
        eventually(lambda: other.calls > 2)
        before = counted.calls
        eventually(lambda: other.calls > 5)
        assert counted.calls == before
    assert incumbent(keep.path) is None


def test_one_that_waits_can_be_stopped(keep: Keep, working: Steward) -> None:
    waiting = Steward(keep, duties=())
    waiting.start()
    waiting.stop()
    assert waiting.join(0)


def test_the_memory_folders_follow_the_log(keep: Keep, working: Steward, monkeypatch: pytest.MonkeyPatch) -> None:
    task = keep.create_task("t")
    keep.trailing.wait(task.id)
    # As it is when who did something in the task died before it had brought the folder up to date.
    keep.decide(task.id, lambda found: [ev.DecisionRecorded("remember this")])
    eventually(lambda: "remember this" in (task.folder / "memory" / "decisions.md").read_text())


def test_a_steward_that_cannot_go_on_says_so(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: Seat) -> bool:
        raise PermissionError("no")

    monkeypatch.setattr(Seat, "take", take)
    stopped = Steward(keep, duties=())
    stopped.start()
    with pytest.raises(PermissionError):
        stopped.join(30)


# ---- sweeping


def test_only_old_files_of_dead_processes_are_swept(keep: Keep) -> None:
    old, young = keep.intents / "0", keep.intents / "1"
    for path in (old, young):
        path.touch()
    long_ago = time.time() - 1000
    os.utime(old, (long_ago, long_ago))
    with intent.held(keep.intents) as living:
        os.utime(keep.intents / living, (long_ago, long_ago))
        assert duties.sweep(keep) == ["removed 1 files of processes that were killed"]
        assert sorted(path.name for path in keep.intents.iterdir()) == sorted(["1", living])
    assert duties.sweep(keep) == []


def leavings(keep: Keep, task: str) -> list[str]:
    """The files of `run/` that are called after a task."""
    return sorted(str(path.relative_to(keep.path / "run")) for path in (keep.path / "run").glob(f"*/*{task}*"))


def leave(keep: Keep, task: str) -> None:
    """What commands, a steward, a relief, a fork and somebody who waits leave of a task."""
    for path in (f"tasks/{task}", f"tasks/{task}-7", f"disk/{task}", f"disk/.{task}-99", f"extensions/{task}"):
        (keep.path / "run" / path).parent.mkdir(exist_ok=True)
        (keep.path / "run" / path).touch()
    (keep.path / "run" / "locks" / task).mkdir(parents=True)
    (keep.path / "run" / "locks" / task / "99-x").touch()


def test_what_is_left_of_a_task_goes_with_it(keep: Keep) -> None:
    task, other = keep.create_task("t"), keep.create_task("other")
    for each in (task, other):
        leave(keep, each.id)
    task.complete()
    assert len(leavings(keep, task.id)) == 6 + 1  # and its spool
    task.clean_up()
    assert leavings(keep, task.id) == []
    assert len(leavings(keep, other.id)) == 6 + 1
    with pytest.raises(TaskRefused):
        task.clean_up()
    assert leavings(keep, task.id) == [f"tasks/{task.id}"]  # of who tried to work on it
    assert duties.sweep(keep) == ["removed what was left of 1 tasks"]
    assert leavings(keep, task.id) == []
    assert len(leavings(keep, other.id)) == 6 + 1


def test_what_is_left_of_tasks_that_are_no_more_is_swept_unless_somebody_works_on_them(keep: Keep) -> None:
    for name in ("a" * 12, "b" * 12, "c" * 12):
        leave(keep, name)
    slot.write(keep, "b" * 12, slot.Slot("image", "id", LIMITS))
    (keep.path / "run" / "disk" / "cache-pip").touch()
    with keep.working("c" * 12):
        assert duties.sweep(keep) == ["removed what was left of 1 tasks"]
    assert leavings(keep, "a" * 12) == []
    assert len(leavings(keep, "b" * 12)) == 6 + 1  # and the slot itself
    assert len(leavings(keep, "c" * 12)) == 6
    assert (keep.path / "run" / "disk" / "cache-pip").exists()
    assert duties.sweep(keep) == ["removed what was left of 1 tasks"]
    assert leavings(keep, "c" * 12) == []


# ---- with an engine


@pytest.mark.engine
def test_an_idle_sandbox_is_frozen_and_a_busy_one_is_not(keep: Keep, task: Task) -> None:
    set_sandboxes(keep, idle_pause_s=0.05)
    busy = keep.create_task("busy")
    with keep.steward() as running:
        assert running.working.wait(30)
        line = "touch begun; while ! [ -e stop ]; do sleep 0.05; done"
        thread = threading.Thread(target=busy.execute, args=(["sh", "-c", line],), kwargs={"timeout": 60})
        thread.start()
        eventually((busy.workspace / "begun").exists)
        eventually(lambda: task.state.idle)
        assert (status(task), status(busy), busy.state.idle) == ("paused", "running", False)
        (busy.workspace / "stop").touch()
        thread.join()
        assert shell(task, "echo alive") == "alive\n"
        eventually(lambda: busy.state.idle)


@pytest.mark.engine
def test_never_frozen_if_the_settings_say_so(keep: Keep, task: Task) -> None:
    set_sandboxes(keep, idle_pause_s=0)
    assert duties.rest(keep) == []
    set_sandboxes(keep, idle_pause_s=0.001)
    assert len(duties.rest(keep)) == 1
    assert duties.rest(keep) == []


@pytest.mark.engine
def test_what_works_in_the_background_or_waits_for_memory_is_not_idle(keep: Keep, task: Task) -> None:
    set_sandboxes(keep, idle_pause_s=0.001)
    running = task.start(["sleep", "1000"])
    assert duties.rest(keep) == []
    running.stop()
    asked = ev.ExtensionRequested("e", container_of(task), 1, 1, 2, boot_clock()().lease(10**12))
    before = len(types(task.history()))
    keep.decide(task.id, lambda found: [asked])
    assert duties.rest(keep) == []
    assert len(types(task.history())) == before + 1
    assert (status(task), task.state.idle) == ("running", False)
    keep.decide(task.id, lambda found: [ev.ExtensionEnded("e", "resumed")])
    assert len(duties.rest(keep)) == 1
    assert (status(task), task.state.idle) == ("paused", True)


@pytest.mark.engine
@pytest.mark.parametrize("restart", ["command", "always"])
def test_a_sandbox_that_dies_is_noticed_at_once_and_started_again_if_so_set(
    keep: Keep, task: Task, restart: str
) -> None:
    set_sandboxes(keep, restart=restart)
    before = container_of(task)
    first = threading.Event()
    with keep.steward(lambda line: first.set()) as running:
        assert running.working.wait(30)
        # The first reconciliation is over, and only a hint of the engine's can make another so soon.
        eventually(lambda: (keep.path / "run" / "reconciled").exists())
        with engine() as client:
            client.api.kill(before)
        if restart == "always":
            eventually(lambda: task.state.container not in (None, before))
        else:
            eventually(lambda: task.state.container is None)
            eventually(lambda: containers(keep.id) == [])
    lost = [record.event for record in task.history() if isinstance(record.event, ev.SandboxLost)]
    assert lost == [ev.SandboxLost(before, "it was found exited")]
    assert shell(task, "echo alive") == "alive\n"
    assert len(containers(keep.id)) == 1


@pytest.mark.engine
def test_what_a_crash_leaves_is_settled_by_the_steward(keep: Keep, task: Task) -> None:
    cut_off = stopped_at("after:locks.act", "execute", keep.path, task.id, "true")
    with cut_off as process, keep.steward() as running:
        assert running.working.wait(30)
        process.kill()
        process.wait()
        running.hurry()
        eventually(lambda: not task.state.pending)
    assert "CommandFailed" in types(task.history())[-2:]  # what it used may have been measured since


@pytest.mark.engine
def test_with_a_steward_a_command_asks_nobody_to_settle_anything(
    keep: Keep, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat = Seat(keep.path)
    assert seat.take()
    asked: list[Keep] = []

    def reconciled(keep: Keep) -> list[str]:
        asked.append(keep)
        return []

    monkeypatch.setattr(steward, "_reconcile", reconciled)
    keep._reconciled = float("-inf")
    shell(task, "true")
    assert asked == []
    seat.leave()
    keep._reconciled = float("-inf")
    shell(task, "true")
    assert asked == [keep]
    (keep.path / "run" / "reconciled").touch()
    keep._reconciled = float("-inf")
    shell(task, "true")
    assert asked == [keep]
    keep.reconcile(again=True)
    assert asked == [keep, keep]


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_verb_works_until_it_is_interrupted(keep: Keep, task: Task, number: signal.Signals) -> None:
    set_sandboxes(keep, idle_pause_s=0.05)
    command = [str(SCRIPT), "steward", "--keep", str(keep.path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            eventually(lambda: task.state.idle)
            found = incumbent(keep.path)
            assert found is not None
            assert found.pid == process.pid
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (-9 if number is signal.SIGKILL else 0, b"")
    lines = [json.loads(line)["did"] for line in stdout.splitlines()]
    assert lines[0] == f"process {process.pid} is the steward"
    assert incumbent(keep.path) is None
    assert Path(keep.path / "run" / "steward.lock").exists()
